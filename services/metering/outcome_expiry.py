"""Expiry of deferred outcomes: those that nobody resolved in time fall to their defaults."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

import grpc

from services.kit import log
from services.kit.db import Database, HotConnection, retry_transaction
from services.kit.errors import TallystickError
from services.kit.worker import PeriodicWorker
from services.metering.domain.outcome import OutcomeState
from services.metering.domain.usage_record import IntendedCharge, KnownUsage, outcome_charge
from services.metering.rpc.budget_alerts import announce_alerts
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.budget_gate import BudgetGate
from services.metering.rpc.confirmations import Confirmations
from services.metering.rpc.decisions import Decided, rate_decisions
from services.metering.rpc.ledger import Ledger
from services.metering.rpc.outcomes import DECIDED, outcome_spends
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.store import budgets, outcomes, usage_events
from services.metering.store.budgets import CountedSpend

# However many are due at once, others get their turn at PostgreSQL and the ledger between two batches.
BATCH: Final = 250
_PAUSE_SECONDS: Final = 0.1
_log = log.get_logger()


class OutcomeExpiry:
    """Lets due outcomes expire, a batch at a time, and settles what follows: mostly money that was held for
    them and goes back. What it cannot settle now is left to recovery.
    """

    def __init__(
        self,
        *,
        writer: Database,
        ledger: Ledger,
        confirmations: Confirmations,
        budgets: BudgetCatalog,
        gate: BudgetGate,
        catalog: PriceCatalog,
        recovery_delay: timedelta,
    ) -> None:
        self._catalog = catalog
        self._writer = writer
        self._ledger = ledger
        self._confirmations = confirmations
        self._budgets = budgets
        self._gate = gate
        self._recovery_delay = recovery_delay

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """The worker that does this for as long as the process lives."""
        return PeriodicWorker("outcome_expiry", interval, self.step)

    async def step(self) -> bool:
        """Let some of the due outcomes expire; whether more may be due."""
        known_before, rated_now = (
            await self._expire(self._expire_known),
            await self._expire(self._expire_rated),
        )
        expired = [*known_before, *rated_now]
        # What is still to be posted for the event itself comes first, and recovery does that.
        await self._settle(
            [outcome_charge(known.record) for known in expired if known.outcome_pending and not known.pending]
        )
        if max(len(known_before), len(rated_now)) < BATCH:
            return False
        await asyncio.sleep(_PAUSE_SECONDS)
        return True

    async def _expire_known(self, connection: HotConnection) -> list[KnownUsage]:
        """Outcomes of which is known what they add."""
        return await outcomes.expire(connection, BATCH, self._recovery_delay)

    async def _expire_rated(self, connection: HotConnection) -> list[KnownUsage]:
        """Outcomes that are rated now."""
        taken = await outcomes.lock_due(connection, BATCH)
        if not taken:
            return []
        decisions = await rate_decisions(
            connection, self._catalog, taken, lambda deferred: Decided(deferred.expired_outcome)
        )
        await outcomes.decide(connection, OutcomeState.EXPIRED, decisions, self._recovery_delay)
        return await usage_events.look_up(connection, [known.record.charge.key for known in taken])

    async def _expire(self, some: Callable[[HotConnection], Awaitable[list[KnownUsage]]]) -> list[KnownUsage]:
        index = await self._budgets.index()

        async def expire() -> tuple[list[KnownUsage], CountedSpend]:
            async with self._writer.hot() as connection:
                expired = await some(connection)
                added = [spend for known in expired for spend in outcome_spends(index, known)]
                return expired, await budgets.count_spend(connection, added)

        expired, counted = await retry_transaction(expire, idempotent=True)
        announce_alerts(counted.alerts)
        await self._gate.spent(counted.spent)
        if expired:
            DECIDED.labels(OutcomeState.EXPIRED.value).inc(len(expired))
            _log.info("outcomes.expired", count=len(expired))
        return expired

    async def _settle(self, charges: Sequence[IntendedCharge]) -> None:
        if not charges:
            return
        try:
            verdicts = await self._ledger.settle_charges(charges)
        except grpc.aio.AioRpcError as error:
            code, detail = error.code().name, error.details()
            _log.warning("outcomes.pending", count=len(charges), code=code, detail=detail)
            return
        settled = [
            charge.charge_key
            for charge, verdict in zip(charges, verdicts, strict=True)
            if not isinstance(verdict, TallystickError)
        ]
        self._confirmations.add(settled)
