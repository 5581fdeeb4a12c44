"""The rater of shadows: lets candidate versions rate what was metered, behind the usage feed."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

from services.kit.db import Database, retry_transaction
from services.kit.tenancy import PLATFORM, scope_hot
from services.kit.worker import PeriodicWorker
from services.metering.domain.compiled_price import CompiledPrice, compile_price_list
from services.metering.domain.rerating import PeriodStart
from services.metering.domain.shadow import Happened, Shadow, Shadowing
from services.metering.domain.usage_event import EventKey, Outcome
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.convert import decided_result, execution_from_proto
from services.metering.rpc.subscription_catalog import SubscriptionCatalog
from services.metering.rpc.terms import AgreedTerms, period_start_of
from services.metering.store import counted_format, shadows
from tallystick.metering.v1 import usage_pb2

# Positions of one step, and how many events are rated before others get their turn: a millisecond or two.
_LIMIT: Final = 500
_TURN: Final = 50
_MAX_COMPILED: Final = 1_000


class ShadowRater:
    """Rates for shadows that run. Any number of replicas may run one."""

    def __init__(
        self, writer: Database, contracts: ContractCatalog, subscriptions: SubscriptionCatalog
    ) -> None:
        self._writer = writer
        self._contracts = contracts
        self._subscriptions = subscriptions
        self._compiled: dict[str, Sequence[CompiledPrice]] = {}

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """The worker that does this for as long as the process lives."""
        return PeriodicWorker("metering.shadow", interval, self.step)

    async def step(self) -> bool:
        """Let every shadow that runs look at some of what happened; whether there is more."""
        async with self._writer.hot() as connection:
            await scope_hot(connection, PLATFORM)
            shadow_ids = await shadows.running(connection)
        more = False
        for shadow_id in shadow_ids:

            async def follow(shadow_id: str = shadow_id) -> bool:
                return await self._follow(shadow_id)

            # Idempotent in that a second run goes on where the first one ended.
            more |= await retry_transaction(follow, idempotent=True)
        return more

    async def _follow(self, shadow_id: str) -> bool:
        async with self._writer.hot() as connection:
            await scope_hot(connection, PLATFORM)
            shadow = await shadows.take(connection, shadow_id)
            if shadow is None:
                return False
            log_id, head = await shadows.head(connection)
            if log_id != shadow.log_id:
                # The feed was begun anew. What is in it was rated, as far as it was there before.
                await shadows.advance(connection, shadow, log_id, head, Shadowing((), {}, {}))
                return False
            until = min(head, shadow.position + _LIMIT)
            if until <= shadow.position:
                return False
            rows = await shadows.happened(connection, shadow, until)
            contracts, subscriptions = await self._contracts.index(), await self._subscriptions.index()
            period_start = partial(period_start_of, contracts, subscriptions)
            some = [_happened(row, shadow.currency_code, period_start) for row in rows]
            found = Shadowing(
                self._prices(shadow),
                await shadows.load_shifts(connection, shadow_id, [one.counters for one in some]),
                await shadows.load_openings(
                    connection, shadow_id, [one.key for one in some if one.is_decision]
                ),
            )
            for start in range(0, len(some), _TURN):
                for one in some[start : start + _TURN]:
                    found.add(one)
                await asyncio.sleep(0)
            await shadows.advance(connection, shadow, log_id, until, found)
            return until < head

    def _prices(self, shadow: Shadow) -> Sequence[CompiledPrice]:
        prices = self._compiled.get(shadow.shadow_id)
        if prices is None:
            prices = compile_price_list(shadow.price_list, shadow.price_book_id)
            self._compiled[shadow.shadow_id] = prices
            while len(self._compiled) > _MAX_COMPILED:
                del self._compiled[next(iter(self._compiled))]
        return prices


def _happened(row: Any, currency_code: str, period_start: PeriodStart) -> Happened:
    event = usage_pb2.UsageEvent.FromString(row.content)
    execution = execution_from_proto(event, row.occur_time)
    is_decision = row.kind == "decided"
    if is_decision:
        execution = execution._replace(outcome=Outcome(row.outcome))
        if row.result is not None:
            execution = execution._replace(result=decided_result(row.result))
    start = row.period_start
    if start is None:
        start = period_start(event.customer_id, row.organization_id, currency_code, row.occur_time)
    return Happened(
        EventKey(event.customer_id, event.workflow_id, event.ordinal),
        row.organization_id,
        execution,
        row.bonus_micros if is_decision else row.amount_micros,
        is_decision,
        start,
        AgreedTerms.of(counted_format.to_terms(row.contract_terms)).compiled,
        row.opening or {},
        row.closing or {},
        row.decided_opening,
        row.decided_closing or {},
    )
