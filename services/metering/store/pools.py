"""Pools: bounded amounts in Redis, inside which reservations are allocated.

A *lease* is bounded by what the ledger granted, a *counter* by the limit that each call names. PostgreSQL
holds the truth of both; what is here is its copy, merged so that neither replays nor late news add anything.
Each function is atomic on the pools of one tag, and can be repeated: a second time it changes nothing.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, TypeAlias, overload

from services.kit.coalesce import Coalescer
from services.kit.errors import TallystickError
from services.metering.store.pool_format import (
    ANY_POOL,
    MICROSECOND,
    from_lease_state,
    from_micros,
    from_state,
    from_time,
    from_uses,
    pool_keys,
    record_key,
    to_answer,
    to_end_answer,
    to_pool_key,
    to_time,
    to_view,
)
from services.metering.store.pool_functions import (
    Call,
    Client,
    Functions,
    PoolError,
    PoolsUnavailable,
    text,
)
from services.metering.store.pool_types import (
    COUNTER_KEEP,
    EXPIRED_STATE,
    MAX_MICROS,
    OPEN_STATE,
    REFUSED_STATE,
    UNKNOWN_STATE,
    Answer,
    CounterState,
    CounterUse,
    End,
    EndAnswer,
    Ended,
    Extend,
    Installed,
    LeaseState,
    LeaseUse,
    Missing,
    OpenReservation,
    Outlives,
    PoolKey,
    PoolView,
    Refused,
    Reserve,
    Reserved,
    Reused,
    Stale,
    State,
    Superseded,
    Use,
    Withdrawal,
)

__all__ = [
    "COUNTER_KEEP",
    "EXPIRED_STATE",
    "MAX_MICROS",
    "UNKNOWN_STATE",
    "Answer",
    "CounterState",
    "CounterUse",
    "End",
    "EndAnswer",
    "Ended",
    "Extend",
    "Installed",
    "LeaseState",
    "LeaseUse",
    "Missing",
    "OpenReservation",
    "Outlives",
    "PoolError",
    "PoolKey",
    "PoolView",
    "Pools",
    "PoolsUnavailable",
    "Refused",
    "Request",
    "Reserve",
    "Reserved",
    "Reused",
    "Stale",
    "State",
    "Superseded",
    "Use",
    "Withdrawal",
]

Request: TypeAlias = Reserve | Extend | End

_SWEEP_LIMIT: Final = 1000
_SCAN_BATCH: Final = 256
# Measured with 4 to 64 in flight: see docs/performance.md.
_PATIENCE: Final = 3.0


class Pools:
    """The pools in Redis behind `client`, a single server or a cluster.

    A reservation stays in its pools until `grace` after its time, for clocks differ. Every method raises
    PoolsUnavailable when Redis is away.
    """

    def __init__(self, client: Client, *, grace: timedelta) -> None:
        self._functions = Functions(client)
        self._grace = grace // MICROSECOND
        # Redis does one thing after the other in any case, so one round trip at a time, and the next gathers
        # meanwhile. It costs us as much as three requests in it, and is over before many have come.
        # Patient by callers, of whom each may have several requests.
        self._gathering = Coalescer[Sequence[Request], list[Answer | EndAnswer | TallystickError]](
            self._ask_all, patience=_PATIENCE
        )
        self._looking = Coalescer[PoolKey, PoolView | None](self.peek)

    async def load(self) -> None:
        """Load the functions on every primary. Not needed: the first call does it where they are missing."""
        await self._functions.load()

    @overload
    async def submit(self, request: Reserve | Extend) -> Answer: ...
    @overload
    async def submit(self, request: End) -> EndAnswer: ...
    async def submit(self, request: Request) -> Answer | EndAnswer:
        """Do as ask() does, in a round trip with what others want at the same time. Raises what failed it."""
        (answer,) = await self._gathering.submit([request])
        if isinstance(answer, TallystickError):
            raise answer
        return answer

    @overload
    async def submit_all(self, requests: Sequence[Reserve | Extend]) -> list[Answer]: ...
    @overload
    async def submit_all(self, requests: Sequence[End]) -> list[EndAnswer]: ...
    async def submit_all(self, requests: Sequence[Request]) -> Any:
        """Do as submit() does with several, in order. Raises what failed the first that failed."""
        if not requests:
            return []
        answers = await self._gathering.submit(requests)
        _raise_first(answers)
        return answers

    @overload
    async def ask(self, requests: Sequence[Reserve | Extend]) -> list[Answer | TallystickError]: ...
    @overload
    async def ask(self, requests: Sequence[End]) -> list[EndAnswer | TallystickError]: ...
    @overload
    async def ask(self, requests: Sequence[Request]) -> list[Answer | EndAnswer | TallystickError]: ...
    async def ask(self, requests: Sequence[Request]) -> Any:
        """Do each, in order. An answer is an error if Redis, or that node of it, failed this one.

        An extension's token is stored if the amount or the time rises; else the stored one is answered. What
        ends is ended here whether it is known or not, and the states that come with it are merged.
        """
        answers = await self._functions.call([self._built(request) for request in requests])
        return [
            to_end_answer(answer) if isinstance(request, End) else to_answer(answer)
            for request, answer in zip(requests, answers, strict=True)
        ]

    async def _ask_all(
        self, asked: Sequence[Sequence[Request]]
    ) -> list[list[Answer | EndAnswer | TallystickError]]:
        answers = iter(await self.ask([request for requests in asked for request in requests]))
        return [list(islice(answers, len(requests))) for requests in asked]

    async def install(self, key: PoolKey, state: LeaseState) -> Installed:
        """Make the pool of an epoch, with no reservations, unless Redis holds this epoch or a later one.

        Once for each epoch: only who opened it in the ledger may call this.
        """
        answer = await self._functions.call_one(self._call("install", [key], *from_lease_state(state)[1:]))
        return Installed(answer[0] == 1, answer[1])

    async def seed(
        self,
        key: PoolKey,
        spent: int,
        open_reservations: Sequence[tuple[str, int, datetime]],
        *,
        keep: timedelta = COUNTER_KEEP,
    ) -> int:
        """Make a counter, or merge into it: the higher spent, and reservations (id, amount, expire_time) that
        it does not have. What may be an old copy is begun anew, with the higher spent. Answers the sequence.

        The counter stays for `keep` after its last use.
        """
        args: list[str | int] = [from_micros(spent), keep // MICROSECOND]
        for reservation_id, amount, expire_time in open_reservations:
            args += (reservation_id, from_micros(amount), from_time(expire_time))
        return int(await self._functions.call_one(self._call("seed", [key], *args)))

    async def merge(self, states: Sequence[tuple[PoolKey, State]]) -> None:
        """Tell pools what PostgreSQL said of them. What is older, or of another epoch, changes nothing."""
        calls = [self._call("merge", [key], *from_state(state)) for key, state in states]
        _raise_first(await self._functions.call(calls))

    async def withdraw(self, key: PoolKey, epoch: int, return_id: str, amount: int) -> Withdrawal | None:
        """Stop allocating up to `amount` of what is free in a lease.

        Answers the return under way, which may be one that was begun before; None when nothing is free, or
        the pool is lost, stale or of another epoch.
        """
        answer = await self._functions.call_one(
            self._call("withdraw", [key], epoch, return_id, from_micros(amount))
        )
        return None if answer is None else Withdrawal(text(answer[0]), answer[1])

    async def returned(self, key: PoolKey, return_id: str, state: LeaseState) -> bool:
        """The ledger has taken the return, and this is the lease since. Answers whether it was under way."""
        answer = await self._functions.call_one(self._call("returned", [key], return_id, *from_state(state)))
        return bool(answer)

    async def peek(self, keys: Sequence[PoolKey]) -> list[PoolView | None]:
        """Look at pools; None where there is none."""
        answers = await self._functions.call([self._call("peek", [key]) for key in keys])
        _raise_first(answers)
        return [None if answer is None else to_view(answer) for answer in answers]

    async def look(self, key: PoolKey) -> PoolView | None:
        """Look at a pool, in a round trip with those that others look at; None if it is not there."""
        return await self._looking.submit(key)

    async def list_reservations(
        self, key: PoolKey, *, after: OpenReservation | None = None, limit: int = 100
    ) -> list[OpenReservation]:
        """Up to `limit` reservations after the one given, in the order of (expire_time, reservation_id)."""
        start = (from_time(after.expire_time), after.reservation_id) if after is not None else (-(2**53), "")
        answer = await self._functions.call_one(self._call("list", [key], limit, *start))
        return [
            OpenReservation(text(answer[i]), answer[i + 1], to_time(answer[i + 2]))
            for i in range(0, len(answer), 3)
        ]

    async def sweep(self, keys: Sequence[PoolKey]) -> int:
        """Take out all reservations whose time and grace are over, and answer how many there were.

        Calls that change a pool do so for up to 100 on the way.
        """
        total = 0
        while keys:
            answers = await self._functions.call([self._call("sweep", [key], _SWEEP_LIMIT) for key in keys])
            _raise_first(answers)
            total += sum(answers)
            keys = [key for key, swept in zip(keys, answers, strict=True) if swept == _SWEEP_LIMIT]
        return total

    async def scan_leases(self) -> AsyncIterator[tuple[PoolKey, PoolView]]:
        """Every lease that Redis holds. What is made or lost meanwhile may be missing; none comes twice."""
        seen: set[PoolKey] = set()
        batch: list[PoolKey] = []
        async for name in self._functions.keys(ANY_POOL):
            key = to_pool_key(name)
            if key in seen:
                continue
            seen.add(key)
            batch.append(key)
            if len(batch) == _SCAN_BATCH:
                for found in await self._leases(batch):
                    yield found
                batch = []
        for found in await self._leases(batch):
            yield found

    async def _leases(self, keys: Sequence[PoolKey]) -> list[tuple[PoolKey, PoolView]]:
        views = await self.peek(keys)
        return [
            (key, view) for key, view in zip(keys, views, strict=True) if view is not None and view.is_lease
        ]

    def _call(self, function: str, keys: Sequence[PoolKey], *args: str | int) -> Call:
        return Call(function, [name for key in keys for name in pool_keys(key)], (self._grace, *args))

    def _built(self, request: Request) -> Call | TallystickError:
        """The call for a request, or its error, so that it fails no other request."""
        try:
            match request:
                case Reserve():
                    return self._reserve(request)
                case Extend():
                    return self._extend(request)
                case End():
                    return self._end(request)
        except PoolError as error:
            return error

    def _reserve(self, request: Reserve) -> Call:
        return self._with_record(
            "reserve",
            request.reservation_id,
            [use.key for use in request.uses],
            from_micros(request.amount),
            from_time(request.expire_time),
            request.content_hash,
            request.token,
            int(request.freeze),
            *from_uses(request.uses),
        )

    def _extend(self, request: Extend) -> Call:
        return self._with_record(
            "extend",
            request.reservation_id,
            [use.key for use in request.uses],
            from_micros(request.amount),
            from_time(request.expire_time),
            request.token,
            *from_uses(request.uses),
        )

    def _end(self, request: End) -> Call:
        if request.state in ("", OPEN_STATE, REFUSED_STATE):
            raise PoolError(f"a reservation cannot end as {request.state!r}")
        return self._with_record(
            "end",
            request.reservation_id,
            [key for key, _ in request.pools],
            request.state,
            request.token,
            from_time(request.expire_time),
            *(word for _, state in request.pools for word in from_state(state)),
        )

    def _with_record(
        self, function: str, reservation_id: str, pools: Sequence[PoolKey], *args: str | int
    ) -> Call:
        tags = {key.tag for key in pools}
        if len(tags) != 1:
            raise PoolError(f"a call needs pools of one tag, not of {sorted(tags)}")
        call = self._call(function, pools, reservation_id, *args)
        return call._replace(keys=[record_key(pools[0].tag, reservation_id), *call.keys])


def _raise_first(answers: Sequence[Any]) -> None:
    for answer in answers:
        if isinstance(answer, TallystickError):
            raise answer
