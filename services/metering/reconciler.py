"""Compares what Redis allocates with what the ledger and the counters of budgets say, and mends it."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple

from prometheus_client import Gauge

from services.kit import log
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.worker import PeriodicWorker
from services.metering.domain.budget import Budget, CounterKey, counter_key, period_of
from services.metering.domain.price_index import DEFAULT_CURRENCY
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.budget_gate import counter_state, pool_key
from services.metering.rpc.leases import Leases, lease_key, lease_state
from services.metering.rpc.ledger import Ledger
from services.metering.store import budgets
from services.metering.store.pools import CounterState, PoolKey, Pools, PoolView
from tallystick.ledger.v1 import credit_pb2

MAX_DRIFTS: Final = 1000
_PAGE: Final = 500
# How long what differs is given to agree: longer than any call takes to tell Redis what the ledger did.
_PAUSE_SECONDS: Final = 0.5
_DRIFT = Gauge("tallystick_drift", "Differences between Redis and PostgreSQL at the last look.", ["kind"])
_log = log.get_logger()


class DriftKind(StrEnum):
    """In what they differ; the values of `tallystick.metering.v1.DriftKind` without their prefix."""

    LEASE_LOST = "lease_lost"
    EPOCH_DIFFERS = "epoch_differs"
    REMAINING_DIFFERS = "remaining_differs"
    OVER_ALLOCATED = "over_allocated"
    LEAKED = "leaked"
    BUDGET_DIFFERS = "budget_differs"


class _Words(NamedTuple):
    """What a difference means, what a repair does about it, and why there is none where there is none."""

    meaning: str
    repair: str = ""
    lasting: str = ""


_WORDS: Final[Mapping[DriftKind, _Words]] = {
    DriftKind.LEASE_LOST: _Words(
        "Redis was emptied or restarted and has lost the allocations of this lease",
        "the next lease is opened, and this one drains until its last reservation could have expired",
    ),
    DriftKind.EPOCH_DIFFERS: _Words(
        "Redis allocates in a lease that the ledger has superseded, as after a restored copy",
        "the next lease is opened",
    ),
    DriftKind.REMAINING_DIFFERS: _Words(
        "Redis has another rest of this lease than the ledger, as after a crash between the two",
        "Redis is told; where it is not behind, the next lease is opened, and this one drains",
    ),
    DriftKind.OVER_ALLOCATED: _Words(
        "more is promised than the lease still holds, because reservations were settled that Redis had lost",
        lasting="what exceeds it is paid like any other excess, and it ends with the reservations",
    ),
    DriftKind.LEAKED: _Words(
        "reservations whose time is over are still counted, because nobody used this lease since",
        "they are taken out",
    ),
    DriftKind.BUDGET_DIFFERS: _Words(
        "Redis counts another spend of this budget than PostgreSQL",
        "Redis, which was not told of the last charges, is told",
        "Redis is ahead, as after a database was restored, and a counter only rises: it ends with the period",
    ),
}


class Drift(NamedTuple):
    """One difference, in micros of the currency. Of lease and counter one is set."""

    kind: DriftKind
    customer_id: str
    budget_id: str
    currency_code: str
    expected: int
    found: int
    repairable: bool
    repaired: bool = False

    @property
    def explanation(self) -> str:
        """What it means, and what was, would or cannot be done about it."""
        words = _WORDS[self.kind]
        if self.repaired:
            return f"{words.meaning}; repaired: {words.repair}"
        if self.repairable:
            return f"{words.meaning}; to repair it: {words.repair}"
        return f"{words.meaning}; nothing is to be repaired: {words.lasting}"


class Reconciliation(NamedTuple):
    """What was compared, and what differed."""

    drifts: Sequence[Drift]
    compared_leases: int
    compared_budgets: int


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A difference that may be a matter of a moment, and what would end it, if anything can."""

    drift: Drift
    pool: PoolKey
    repair: Callable[[], Awaitable[object]] | None = None

    @property
    def identity(self) -> tuple[DriftKind, PoolKey]:
        return self.drift.kind, self.pool


@dataclass(slots=True)
class _Comparison:
    suspects: list[_Suspect] = field(default_factory=list)
    leases: int = 0
    budgets: int = 0


class Reconciler:
    """Compares and repairs."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        leases: Leases,
        pools: Pools,
        catalog: BudgetCatalog,
        writer: Database,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._leases = leases
        self._pools = pools
        self._catalog = catalog
        self._writer = writer
        self._clock = clock

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """The worker that looks: what differs shows in the metrics. It tells budgets that are behind, which
        costs nobody anything, and repairs nothing else.
        """
        return PeriodicWorker("drift_watch", interval, self.step)

    async def step(self) -> bool:
        """Look once, for the metrics. Answers False: there is no more to do."""
        found = await self._run("", {DriftKind.BUDGET_DIFFERS})
        for kind in DriftKind:
            _DRIFT.labels(kind.value).set(sum(drift.kind is kind for drift in found.drifts))
        return False

    async def run(self, *, customer_id: str, dry_run: bool) -> Reconciliation:
        """Compare everything, or one customer's leases, and repair what differs unless `dry_run`.

        Raises PoolsUnavailable while Redis is away; what the ledger says of a customer that is unknown.
        """
        if customer_id:
            await self._ledger.get_balance(customer_id, DEFAULT_CURRENCY)
        return await self._run(customer_id, () if dry_run else frozenset(DriftKind))

    async def _run(self, customer_id: str, repaired_kinds: Collection[DriftKind]) -> Reconciliation:
        compared = await self._compare(customer_id)
        lasting: list[_Suspect] = []
        if compared.suspects:
            # What differs twice, with a pause between, is not just under way.
            seen = {suspect.identity for suspect in compared.suspects}
            await asyncio.sleep(_PAUSE_SECONDS)
            again = await self._compare(customer_id)
            lasting = [suspect for suspect in again.suspects if suspect.identity in seen][:MAX_DRIFTS]
        drifts = []
        for suspect in lasting:
            drift = suspect.drift
            if suspect.repair is not None and drift.kind in repaired_kinds:
                await suspect.repair()
                drift = drift._replace(repaired=True)
            _log.warning("drift.found", **drift._asdict())
            drifts.append(drift)
        return Reconciliation(drifts, compared.leases, compared.budgets)

    async def _compare(self, customer_id: str) -> _Comparison:
        found = _Comparison()
        async for leases in self._ledger.lease_pages(customer_id, _PAGE):
            current = [lease for lease in leases if not lease.draining]
            found.leases += len(current)
            keys = [lease_key(one.customer_id, one.remaining.currency_code) for one in current]
            for lease, key, view in zip(current, keys, await self._pools.peek(keys), strict=True):
                found.suspects += self._lease_suspects(lease, key, view)
        if not customer_id:
            await self._compare_budgets(found)
        return found

    def _lease_suspects(
        self, lease: credit_pb2.CreditLease, key: PoolKey, view: PoolView | None
    ) -> Iterator[_Suspect]:
        expected = lease.remaining.amount_micros

        def suspect(
            kind: DriftKind, expected: int, found: int, repair: Callable[[], Awaitable[object]] | None
        ) -> _Suspect:
            drift = Drift(kind, key.tag, "", key.name, expected, found, repairable=repair is not None)
            return _Suspect(drift, key, repair)

        next_lease = partial(self._leases.open, key, lease.epoch, 0)
        if view is None or not view.server_matches:
            if expected:
                yield suspect(DriftKind.LEASE_LOST, expected, 0, next_lease)
            return
        if view.epoch != lease.epoch:
            yield suspect(DriftKind.EPOCH_DIFFERS, expected, view.remaining, next_lease)
            return
        if view.remaining != expected:
            # Telling it again ends what came from being late; what is wrong at the same version, only a new
            # lease does.
            told = partial(self._pools.merge, [(key, lease_state(lease))])
            repair = told if view.version < lease.version else next_lease
            yield suspect(DriftKind.REMAINING_DIFFERS, expected, view.remaining, repair)
        if view.reserved > expected:
            yield suspect(DriftKind.OVER_ALLOCATED, expected, view.reserved, None)
        if view.expired:
            yield suspect(DriftKind.LEAKED, 0, view.expired, partial(self._pools.sweep, [key]))

    async def _compare_budgets(self, found: _Comparison) -> None:
        now = self._clock.now()
        index = await self._catalog.index()
        # Those that every run of a workflow counts for itself come and go with the workflows.
        hard = {
            counter_key(budget, period_of(budget, now), ""): budget
            for budget in index.all()
            if budget.hard and not budget.per_workflow
        }
        found.budgets = len(hard)
        for first in range(0, len(hard), _PAGE):
            keys = list(hard)[first : first + _PAGE]
            async with self._writer.hot() as connection:
                states = await budgets.load_counters(connection, keys)
            views = await self._pools.peek([pool_key(key) for key in keys])
            for key, view in zip(keys, views, strict=True):
                spent = counter_state(states[key].spent).spent
                if view is not None and view.server_matches and view.spent != spent:
                    found.suspects.append(self._budget_suspect(key, hard[key], spent, view.spent))

    def _budget_suspect(self, key: CounterKey, budget: Budget, spent: int, found: int) -> _Suspect:
        pool = pool_key(key)
        # A counter only rises: one that is ahead of a restored database stays so until its period ends.
        behind = found < spent
        drift = Drift(
            DriftKind.BUDGET_DIFFERS,
            "",
            budget.budget_id,
            budget.currency_code,
            spent,
            found,
            repairable=behind,
        )
        told = partial(self._pools.merge, [(pool, CounterState(spent))])
        return _Suspect(drift, pool, told if behind else None)
