"""The gate of hard budgets: a run is counted before it starts, and refused if a limit would be exceeded.

Counted in Redis; in PostgreSQL while Redis is away. What was spent is counted in PostgreSQL alone, with the
usage itself, and Redis is told.
"""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from services.kit.auth import Principal
from services.kit.db import Database, retry_transaction
from services.kit.errors import FailedPrecondition, Unavailable
from services.kit.worker import PeriodicWorker
from services.metering.domain.budget import (
    Budget,
    CounterKey,
    Period,
    budget_exceeded,
    counter_key,
    period_of,
)
from services.metering.domain.reservation import MAX_TTL, Reservation
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.kept import attempt_reused
from services.metering.store import budgets
from services.metering.store.pools import (
    COUNTER_KEEP,
    MAX_MICROS,
    CounterState,
    CounterUse,
    End,
    Extend,
    Missing,
    PoolKey,
    Pools,
    PoolsUnavailable,
    PoolView,
    Refused,
    Reserve,
    Reused,
    Stale,
)
from services.metering.valkey import Valkey

_ATTEMPTS: Final = 4
_PURGED_AT_ONCE: Final = 1000
_TOLD_AT_ONCE: Final = 500
_MAX_UNTOLD: Final = 10_000
_MAX_REMEMBERED: Final = 10_000
# Longer than any reservation, its grace, and the clocks' differences.
_WORKFLOW_KEEP: Final = 2 * MAX_TTL
# Under this state Redis remembers that a run which was counted did not start.
_CANCELLED_STATE: Final = "cancelled"
_ENDED_STATE: Final = "ended"


class Gate(NamedTuple):
    """A hard budget that counts a run, and in which counter."""

    budget: Budget
    period: Period
    key: CounterKey


class _Ended(NamedTuple):
    """News for Redis: a reservation has ended, as what, and what its counters had reached then."""

    reservation: Reservation
    spent: Mapping[CounterKey, int]
    state: str


class BudgetGate:
    """Counts reservations in the hard budgets that match them. `pools` is None where there is no Redis."""

    def __init__(
        self,
        *,
        catalog: BudgetCatalog,
        writer: Database,
        pools: Pools | None,
        valkey: Valkey | None,
    ) -> None:
        self._catalog = catalog
        self._writer = writer
        self._pools = pools
        self._valkey = valkey
        # What is lost with this process, or beyond so many: reservations are swept when their time is over,
        # and counters are told what they have reached with the next usage, or by the drift watch.
        self._untold: deque[_Ended] = deque(maxlen=_MAX_UNTOLD)
        self._untold_spent: dict[CounterKey, int] = {}
        # The ids of reservations that were counted in PostgreSQL, oldest first. Of those that are forgotten,
        # or ended by another process, the rows count until their time is over.
        self._in_database: dict[str, None] = {}

    def purger(self, interval: timedelta) -> PeriodicWorker:
        """The worker that forgets what PostgreSQL counted of runs whose time is over."""
        return PeriodicWorker("budget_reservations", interval, self._purge)

    def teller(self, interval: timedelta) -> PeriodicWorker:
        """The worker that tells Redis, once it is back, what it missed."""
        return PeriodicWorker("untold_budgets", interval, self._tell)

    async def find(
        self,
        *,
        customer_id: str,
        agent_id: str,
        api_key_id: str,
        currency_code: str,
        workflow_id: str,
        at: datetime,
    ) -> list[Gate]:
        """The hard budgets that count a run, with their present counters."""
        index = await self._catalog.index()
        gates = []
        for budget in index.matching(customer_id, agent_id, api_key_id, currency_code):
            # Without a workflow there is no counter of its own, which is then empty.
            if budget.hard and (workflow_id or not budget.per_workflow):
                period = period_of(budget, at)
                gates.append(Gate(budget, period, counter_key(budget, period, workflow_id)))
        return gates

    async def reserve(
        self, reservation: Reservation, gates: Sequence[Gate], content_hash: bytes, principal: Principal
    ) -> None:
        """Count a reservation in every gate, or in none.

        Raises FailedPrecondition BUDGET_EXCEEDED naming the first one without room, for good.
        """
        if not gates:
            return
        if (pools := self._redis()) is not None:
            try:
                await self._reserve_in_redis(pools, reservation, gates, content_hash.hex(), principal)
            except PoolsUnavailable as error:
                self._lost(error)
            else:
                return
        await self._reserve_in_database(reservation, gates, principal, freeze=True)

    async def check(self, reservation: Reservation, more_micros: int, principal: Principal) -> None:
        """Look whether the counters that a reservation is in have room for so much more, and count nothing.

        Raises FailedPrecondition BUDGET_EXCEEDED.
        """
        gates = await self._counting(reservation) if more_micros else []
        for gate, (spent, reserved) in zip(
            gates, await self.rooms([gate.key for gate in gates]), strict=True
        ):
            if spent + reserved + more_micros > gate.budget.limit_micros:
                raise _exceeded(gate, spent, reserved, reservation, principal)

    async def extend(self, reservation: Reservation, principal: Principal) -> None:
        """Count a reservation with a higher amount, or a later expiry, in the counters that it is in.

        Raises FailedPrecondition BUDGET_EXCEEDED.
        """
        gates = await self._counting(reservation)
        if not gates:
            return
        if (pools := self._redis()) is not None:
            try:
                await self._extend_in_redis(pools, reservation, gates, principal)
            except PoolsUnavailable as error:
                self._lost(error)
            else:
                return
        await self._reserve_in_database(reservation, gates, principal, freeze=False)

    async def end(
        self, reservation: Reservation, spent: Mapping[CounterKey, int], *, cancelled: bool = False
    ) -> None:
        """Count a reservation no longer, and tell Redis what was spent since.

        What `spent` does not say of its counters is asked of PostgreSQL: who ends it a second time does not
        know what it cost, and must not make room for others before Redis knows.
        """
        if not reservation.counters:
            return
        if reservation.is_durable or reservation.reservation_id in self._in_database:
            # It may have been counted while Redis was away.
            async with self._writer.hot() as connection:
                await budgets.end_budgets(connection, [reservation.reservation_id])
            self._in_database.pop(reservation.reservation_id, None)
        if self._pools is None:
            return
        news = _Ended(reservation, spent, _CANCELLED_STATE if cancelled else _ENDED_STATE)
        if (pools := self._redis()) is None:
            self._untold.append(news)
            return
        try:
            await self._tell_end(pools, news)
        except PoolsUnavailable as error:
            self._lost(error)
            self._untold.append(news)

    async def spent(self, spent: Mapping[CounterKey, int]) -> None:
        """Tell Redis what counters have reached."""
        if not spent or self._pools is None:
            return
        if (pools := self._redis()) is None:
            self._remember(spent)
            return
        try:
            await pools.merge([(pool_key(key), counter_state(total)) for key, total in spent.items()])
        except PoolsUnavailable as error:
            self._lost(error)
            self._remember(spent)

    async def rooms(self, keys: Sequence[CounterKey]) -> list[tuple[int, int]]:
        """(spent, reserved) of each counter, in micros."""
        views = await self._views(keys)
        # In one call, however many there are: everybody shares the connections.
        states = await self._load([key for key in keys if key not in views])
        return [
            (view.spent, view.reserved)
            if (view := views.get(key)) is not None
            else (states[key].spent, sum(one.amount for one in states[key].open))
            for key in keys
        ]

    async def reserved(self, budget: Budget, key: CounterKey) -> int:
        """What is reserved against a counter of a budget, in micros."""
        ((_, reserved),) = await self.rooms([key])
        return reserved

    async def _views(self, keys: Sequence[CounterKey]) -> Mapping[CounterKey, PoolView]:
        """Those of the counters that are in Redis."""
        pools = self._redis()
        if not keys or pools is None:
            return {}
        try:
            views = await pools.peek([pool_key(key) for key in keys])
        except PoolsUnavailable as error:
            self._lost(error)
            return {}
        return {
            key: view
            for key, view in zip(keys, views, strict=True)
            if view is not None and view.server_matches
        }

    async def _purge(self) -> bool:
        async with self._writer.hot() as connection:
            return await budgets.purge_budget_reservations(connection, _PURGED_AT_ONCE) == _PURGED_AT_ONCE

    async def _tell(self) -> bool:
        try:
            while self._untold_spent and (pools := self._redis()) is not None:
                some = list(self._untold_spent.items())[:_TOLD_AT_ONCE]
                await pools.merge([(pool_key(key), counter_state(total)) for key, total in some])
                for key, total in some:
                    # Unless it has risen meanwhile.
                    if self._untold_spent.get(key) == total:
                        del self._untold_spent[key]
            while self._untold and (pools := self._redis()) is not None:
                news = self._untold[0]
                await self._tell_end(pools, news)
                # Only now: told twice is as good as once. It may have fallen out of a full queue meanwhile.
                if self._untold and self._untold[0] is news:
                    self._untold.popleft()
        except PoolsUnavailable as error:
            self._lost(error)
        return False

    async def _tell_end(self, pools: Pools, news: _Ended) -> None:
        spent = dict(news.spent)
        if news.state != _CANCELLED_STATE:
            unknown = [key for key in news.reservation.counters if key not in spent]
            spent |= {key: state.spent for key, state in (await self._load(unknown)).items()}
        await self._end_in_redis(pools, news.reservation, spent, news.state)

    def _remember(self, spent: Mapping[CounterKey, int]) -> None:
        for key, total in spent.items():
            self._untold_spent[key] = max(total, self._untold_spent.get(key, 0))
        while len(self._untold_spent) > _MAX_UNTOLD:
            del self._untold_spent[next(iter(self._untold_spent))]

    async def _counting(self, reservation: Reservation) -> list[Gate]:
        """The gates that a reservation was counted in, as far as they still exist."""
        index = await self._catalog.index()
        return [
            Gate(budget, _period(budget, key), key)
            for key in reservation.counters
            if (budget := index.find(key.budget_id)) is not None and budget.hard
        ]

    async def _extend_in_redis(
        self, pools: Pools, reservation: Reservation, gates: Sequence[Gate], principal: Principal
    ) -> None:
        answers = await pools.submit_all(
            [
                Extend(
                    reservation_id=reservation.reservation_id,
                    amount=reservation.amount_micros,
                    expire_time=reservation.expire_time,
                    token="",
                    uses=(CounterUse(pool_key(gate.key), gate.budget.limit_micros),),
                )
                for gate in gates
            ]
        )
        for gate, answer in zip(gates, answers, strict=True):
            # A counter that Redis has lost has lost the reservation too. The run is under way in any case.
            if isinstance(answer, Refused):
                raise _exceeded(gate, answer.spent, answer.reserved, reservation, principal)

    async def _reserve_in_redis(
        self,
        pools: Pools,
        reservation: Reservation,
        gates: Sequence[Gate],
        content_hash: str,
        principal: Principal,
    ) -> None:
        waiting, refused = list(gates), None
        refusing: set[CounterKey] = set()
        for _ in range(_ATTEMPTS):
            answers = await pools.submit_all(
                [
                    Reserve(
                        reservation_id=reservation.reservation_id,
                        amount=reservation.amount_micros,
                        expire_time=reservation.expire_time,
                        content_hash=content_hash,
                        token="",
                        uses=(CounterUse(pool_key(gate.key), gate.budget.limit_micros),),
                        freeze=True,
                    )
                    for gate in waiting
                ]
            )
            again = []
            for gate, answer in zip(waiting, answers, strict=True):
                match answer:
                    case Refused():
                        refusing.add(gate.key)
                        refused = refused or _exceeded(
                            gate, answer.spent, answer.reserved, reservation, principal
                        )
                    case Missing() | Stale():
                        # A new period, or Redis was emptied.
                        again.append(gate)
                    case Reused():
                        raise attempt_reused(reservation)
                    case _:
                        # Counted now; or it was and has ended, which the credits judge.
                        pass
            if refused is not None:
                # But not the refused one, which Redis is to remember.
                counted = reservation._replace(counters=tuple(set(reservation.counters) - refusing))
                await self._end_in_redis(pools, counted, {}, _CANCELLED_STATE)
                raise refused
            if not again:
                return
            await self._seed(pools, again)
            waiting = again
        raise Unavailable("the counters of the customer's budgets keep getting lost")

    async def _end_in_redis(
        self, pools: Pools, reservation: Reservation, spent: Mapping[CounterKey, int], state: str
    ) -> None:
        await pools.submit_all(
            [
                End(
                    reservation_id=reservation.reservation_id,
                    state=state,
                    token="",
                    expire_time=reservation.expire_time,
                    pools=((pool_key(key), counter_state(spent[key]) if key in spent else None),),
                )
                for key in reservation.counters
            ]
        )

    async def _seed(self, pools: Pools, gates: Sequence[Gate]) -> None:
        """Begin counters in Redis with what PostgreSQL knows."""
        states = await self._load([gate.key for gate in gates])
        for key, state in states.items():
            await pools.seed(
                pool_key(key),
                counter_state(state.spent).spent,
                [(one.reservation_id, one.amount, one.expire_time) for one in state.open],
                # PostgreSQL knows what was spent, so a counter only has to outlive its reservations: there
                # may be one for every run.
                keep=_WORKFLOW_KEEP if key.workflow_id else COUNTER_KEEP,
            )

    async def _load(self, keys: Sequence[CounterKey]) -> Mapping[CounterKey, budgets.CounterState]:
        if not keys:
            return {}
        async with self._writer.hot() as connection:
            return await budgets.load_counters(connection, keys)

    async def _reserve_in_database(
        self, reservation: Reservation, gates: Sequence[Gate], principal: Principal, *, freeze: bool
    ) -> None:
        async def reserve() -> budgets.Refusal | None:
            async with self._writer.hot() as connection:
                return await budgets.reserve_budgets(
                    connection,
                    reservation.reservation_id,
                    {gate.key: gate.budget.limit_micros for gate in gates},
                    reservation.amount_micros,
                    reservation.expire_time,
                    freeze=freeze,
                )

        # Before it is: whoever asks may be gone by then.
        self._in_database[reservation.reservation_id] = None
        if len(self._in_database) > _MAX_REMEMBERED:
            del self._in_database[next(iter(self._in_database))]
        refusal = await retry_transaction(reserve, idempotent=True)
        if refusal is not None:
            if freeze:
                # Nothing of it is counted.
                self._in_database.pop(reservation.reservation_id, None)
            (gate,) = [gate for gate in gates if gate.key == refusal.key]
            raise _exceeded(gate, refusal.spent, refusal.reserved, reservation, principal)

    def _redis(self) -> Pools | None:
        """The pools, unless there are none, or Redis has just been found away."""
        return self._pools if self._valkey is not None and self._valkey.is_up else None

    def _lost(self, error: PoolsUnavailable) -> None:
        if self._valkey is not None:
            self._valkey.failed(error)


def pool_key(key: CounterKey) -> PoolKey:
    """The pool of a counter. By the budget, for a counter may count what several customers spend."""
    start = "" if key.period_start is None else f"{int(key.period_start.timestamp())}"
    workflow = hashlib.sha256(key.workflow_id.encode()).hexdigest()[:32] if key.workflow_id else ""
    return PoolKey(tag=key.budget_id, name=f"{start}:{workflow}")


def counter_state(spent: int) -> CounterState:
    """What a counter has spent, for Redis, which counts further than any limit goes, but not for ever."""
    return CounterState(min(spent, MAX_MICROS))


def _period(budget: Budget, key: CounterKey) -> Period:
    return Period(None, None) if key.period_start is None else period_of(budget, key.period_start)


def may_see_amounts(budget: Budget, principal: Principal) -> bool:
    """Whether the caller may know a budget's amounts: an organization only its own, and who may not use every
    customer none that counts what others spend.
    """
    if principal.customer_ids and not (budget.customer_id or budget.api_key_id):
        return False
    return principal.organization_id in (None, budget.owner_id)


def _exceeded(
    gate: Gate, spent: int, reserved: int, reservation: Reservation, principal: Principal
) -> FailedPrecondition:
    return budget_exceeded(
        gate.budget,
        gate.period,
        spent,
        reserved,
        reservation.amount_micros,
        may_see_amounts(gate.budget, principal),
    )
