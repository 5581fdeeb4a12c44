"""Calls as an agent host makes them: several in flight, and each again until it is answered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

import grpc

from sandbox.replay import ReplayError, Work
from services.kit.status import from_rpc_error

# With the waits below about a minute in all: a service that is restarted is back by then.
MAX_ATTEMPTS = 20
TIMEOUT_SECONDS = 60.0

_FIRST_WAIT = timedelta(milliseconds=100)
_LONGEST_WAIT = timedelta(seconds=5)
_POLL_SECONDS = 0.1

# What a host may simply send again: an event is charged once and a run authorized once, however often asked.
_RETRIED = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
}

T = TypeVar("T")


class Patience:
    """The attempts to get work answered."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._attempt = 0

    async def wait(self, cause: str, asked: timedelta) -> None:
        """Wait before the next attempt: as long as the server asked, at least the usual backoff.

        Raises:
            ReplayError: there were enough of them.
        """
        self._attempt += 1
        if self._attempt == MAX_ATTEMPTS:
            where = f"{self._work.path}:{self._work.number}"
            raise ReplayError(f"{where} and others: no answer in {MAX_ATTEMPTS} attempts: {cause}")
        await asyncio.sleep(_wait(self._attempt - 1, asked).total_seconds())

    async def wait_after(self, error: grpc.aio.AioRpcError) -> None:
        """Wait after a call that failed; raises `error` itself when trying again does not mend it."""
        if error.code() not in _RETRIED:
            raise error
        asked = from_rpc_error(error).retry_after or timedelta()
        await self.wait(f"{error.code().name}: {error.details()}", asked)


async def persist(work: Work, call: Callable[[], Awaitable[T]]) -> T:
    """Make a call about `work`, one that may be repeated, until it is answered.

    Raises:
        ReplayError: it was not answered in MAX_ATTEMPTS.
        grpc.aio.AioRpcError: it was refused for a reason that trying again does not mend.
    """
    patience = Patience(work)
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            await patience.wait_after(error)


async def until(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds.

    Raises:
        ReplayError: it does not for so long that it never will.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TIMEOUT_SECONDS
    while not await holds():
        if loop.time() > deadline:
            raise ReplayError(f"waited {TIMEOUT_SECONDS:.0f} seconds in vain until {what}")
        await asyncio.sleep(_POLL_SECONDS)


async def in_flight(most: int, items: Iterable[T], handle: Callable[[T], Awaitable[None]]) -> None:
    """Handle every item, at most so many at once; they start in order.

    Raises what the first one raises that fails; the others are cancelled.
    """
    slots = asyncio.Semaphore(most)

    async def one(item: T) -> None:
        try:
            await handle(item)
        finally:
            slots.release()

    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                # Taken before the next item is read: what waits is bounded, however long the recording.
                await slots.acquire()
                group.create_task(one(item))
    except ExceptionGroup as failed:
        # One is enough to tell; the others are most likely the same.
        raise failed.exceptions[0] from None


def first_of_each(work: Iterable[Work], repeats: list[Work]) -> Iterator[Work]:
    """The first piece of work of each workflow; the others go to `repeats`.

    A second line of the same run must find the first one answered, or chance would say which of two that
    differ counts. So these go last, one after the other.
    """
    seen: set[str] = set()
    for piece in work:
        if piece.workflow_id in seen:
            repeats.append(piece)
        else:
            seen.add(piece.workflow_id)
            yield piece


def _wait(attempt: int, asked: timedelta) -> timedelta:
    """As long as the server asked, at least the usual backoff, and not in step with other callers."""
    backoff = min(_FIRST_WAIT * 2.0**attempt, _LONGEST_WAIT)
    return max(asked, backoff) * random.uniform(1.0, 1.25)  # noqa: S311 - spreads load, keeps no secret
