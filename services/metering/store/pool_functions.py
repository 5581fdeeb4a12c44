"""Calls the functions of pools.lua, on a single server or on the nodes of a cluster."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster

from services.kit import log
from services.kit.errors import Internal, TallystickError, Unavailable

Client = Redis | RedisCluster

_SOURCE: Final = Path(__file__).with_name("pools.lua").read_text(encoding="utf-8")
# The text is its own version: another has other names, so that processes of two versions run side by side.
VERSION: Final = hashlib.sha256(_SOURCE.encode()).hexdigest()[:12]
LIBRARY: Final = f"tallystick_{VERSION}"
_CODE: Final = _SOURCE.replace("tallystick_VERSION", LIBRARY)

# Passes by itself, or when an operator acts: the server cannot be reached, is a replica now, full, loading,
# resharding, cannot save, runs a long script, or wants other credentials. None of it is about the call.
_AWAY_ERRORS: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterError,
    exceptions.RedisClusterException,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.TryAgainError,
    exceptions.AskError,
    exceptions.NoPermissionError,
    OSError,
)
_AWAY_CODES: Final = ("MISCONF", "NOREPLICAS", "BUSY", "UNKILLABLE", "NOAUTH")
# Fewer than the connections that a client opens to a server (16): who comes when all are in use is refused,
# as if the server were away, and who comes here waits. Some are left for those that do not come this way.
_ROUND_TRIPS: Final = 12
_WARN_SECONDS: Final = 1.0
_NOT_LOADED: Final = "Function not found"
_ALREADY_LOADED: Final = "already exists"
_log = log.get_logger()


class PoolsUnavailable(Unavailable):
    """Redis could not be reached or cannot serve. The call may have had its effect; it can be repeated."""


class PoolError(Internal):
    """A call that Redis, or we ourselves, found wrong: a defect, and the log says which."""


class Call(NamedTuple):
    """One call of a function. The keys have one hash tag."""

    function: str
    keys: Sequence[str]
    args: Sequence[str | int]


class Functions:
    """The functions of pools.lua, loaded when a server turns out not to have them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._round_trips = asyncio.Semaphore(_ROUND_TRIPS)
        self._warn_at = 0.0

    async def load(self) -> None:
        """Load the library on every server that accepts writes and does not have it.

        Raises PoolsUnavailable.
        """
        try:
            if isinstance(self._client, RedisCluster):
                await self._client.initialize()
                for node in self._client.get_primaries():
                    await self._load(target_nodes=node)
            else:
                await self._load()
        except (exceptions.RedisError, *_AWAY_ERRORS) as error:
            raise self._translated(error, "load") from error

    async def call_one(self, call: Call) -> Any:
        """Call one function. Raises PoolsUnavailable or PoolError."""
        (answer,) = await self.call([call])
        if isinstance(answer, TallystickError):
            raise answer
        return answer

    async def call(self, calls: Sequence[Call | TallystickError]) -> list[Any]:
        """Call functions in one round trip to each server; the answers are as Redis gave them, in order.

        What is wrong with a single call is its answer, as is an error in place of a call. Raises
        PoolsUnavailable if there is no other answer.
        """
        answers: list[Any] = list(calls)
        await self._run(answers, [i for i, call in enumerate(answers) if isinstance(call, Call)])
        if missing := [i for i, answer in enumerate(answers) if _is_not_loaded(answer)]:
            # A server that was restarted, emptied, or has just joined.
            await self.load()
            for i in missing:
                answers[i] = calls[i]
            await self._run(answers, missing)
        for i, (call, answer) in enumerate(zip(calls, answers, strict=True)):
            if isinstance(call, Call) and isinstance(answer, Exception):
                answers[i] = self._translated(answer, call.function)
        if answers and all(isinstance(answer, PoolsUnavailable) for answer in answers):
            raise answers[0].fresh()
        return answers

    async def keys(self, pattern: str) -> AsyncIterator[str]:
        """Every key like this on any server. A key may come twice. Raises PoolsUnavailable."""
        try:
            async for key in self._client.scan_iter(match=pattern, count=1000):
                yield text(key)
        except (exceptions.RedisError, *_AWAY_ERRORS) as error:
            raise self._translated(error, "scan") from error

    async def _load(self, **options: Any) -> None:
        try:
            await self._client.execute_command("FUNCTION LOAD", _CODE, **options)
        except exceptions.ResponseError as error:
            # The same name is the same text.
            if _ALREADY_LOADED not in str(error):
                raise

    async def _run(self, answers: list[Any], indexes: Sequence[int]) -> None:
        """Put the answers, or exceptions, in the places of the calls."""
        # A pipeline for each server: one that is away does not fail what others answer.
        parts: dict[ClusterNode | None, list[int]] = {}
        try:
            if isinstance(self._client, RedisCluster):
                await self._client.initialize()
                for i in indexes:
                    # The primary, even where the client would read from replicas.
                    node = self._client.get_node_from_key(answers[i].keys[0])
                    parts.setdefault(node, []).append(i)
            elif indexes:
                parts[None] = list(indexes)
        except _AWAY_ERRORS as error:
            for i in indexes:
                answers[i] = error
            return
        pipelines = [self._pipeline(node, [answers[i] for i in part]) for node, part in parts.items()]
        # A single one needs no task of its own: that would be a fifth of what a small batch costs.
        results = [await pipelines[0]] if len(pipelines) == 1 else await asyncio.gather(*pipelines)
        for part, result in zip(parts.values(), results, strict=True):
            for i, answer in zip(part, result, strict=True):
                answers[i] = answer

    async def _pipeline(self, node: ClusterNode | None, calls: Sequence[Call]) -> Sequence[Any]:
        # Without a target, a cluster client asks a server where the keys are, once for every call.
        options = {"target_nodes": node} if node is not None else {}
        pipeline: Any
        pipeline = self._client.pipeline() if node is not None else self._client.pipeline(transaction=False)
        try:
            async with self._round_trips, pipeline:
                for call in calls:
                    name = f"{LIBRARY}_{call.function}"
                    pipeline.execute_command("FCALL", name, len(call.keys), *call.keys, *call.args, **options)
                answers: Sequence[Any] = await pipeline.execute(raise_on_error=False)
                return answers
        except (exceptions.RedisError, *_AWAY_ERRORS) as error:
            return [error] * len(calls)

    def _translated(self, error: Exception, function: str) -> TallystickError:
        if not isinstance(error, _AWAY_ERRORS) and not str(error).startswith(_AWAY_CODES):
            _log.error("pools.failed", function=function, error=type(error).__name__, detail=str(error))
            return PoolError("internal error")
        if time.monotonic() >= self._warn_at:
            # Not for each of the many calls that fail while Redis is away.
            self._warn_at = time.monotonic() + _WARN_SECONDS
            _log.warning("pools.unavailable", error=type(error).__name__, detail=str(error))
        return PoolsUnavailable("the cache could not be reached")


def text(value: bytes | str) -> str:
    """What Redis answered, of clients that decode and of those that do not."""
    return value.decode() if isinstance(value, bytes) else value


def _is_not_loaded(answer: Any) -> bool:
    return isinstance(answer, exceptions.ResponseError) and _NOT_LOADED in str(answer)
