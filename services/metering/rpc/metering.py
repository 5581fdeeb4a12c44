"""MeteringService."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.clock import Clock
from services.kit.coalesce import Coalescer
from services.kit.db import Database
from services.kit.errors import Code, InvalidArgument, NotFound, TallystickError
from services.kit.status import from_rpc_error, to_item_error
from services.kit.tenancy import scope, tenants_of
from services.metering.domain.usage_event import MAX_ORDINAL, EventKey
from services.metering.domain.usage_record import KnownUsage, UsageRecord, charge_id
from services.metering.rpc.balances import Balances
from services.metering.rpc.budget_gate import BudgetGate
from services.metering.rpc.convert import (
    event_from_proto,
    event_to_proto,
    metered_to_proto,
    money_to_proto,
    within,
)
from services.metering.rpc.credits import Credits
from services.metering.rpc.ledger import Ledger
from services.metering.rpc.outcomes import Outcomes
from services.metering.rpc.pipeline import Metered, Pipeline, Verdict, may_see_balance
from services.metering.rpc.report import Report
from services.metering.rpc.reservations import Reservations
from services.metering.store import usage_events
from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import metering_service_pb2, metering_service_pb2_grpc, usage_pb2

MAX_EVENTS_PER_CALL = 1000
_BATCHES_AT_ONCE = 4
_BATCHES_WAITING = 32


class MeteringService(metering_service_pb2_grpc.MeteringServiceServicer):
    """Serves MeteringService.

    `meter` is the way of single events: those in flight are gathered. `watch` is told what a customer has
    left: customer, currency, micros.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        meter: Callable[[Report], Awaitable[Metered]],
        credits: Credits,
        gate: BudgetGate,
        reservations: Reservations,
        balances: Balances,
        outcomes: Outcomes,
        reader: Database,
        ledger: Ledger,
        clock: Clock,
        watch: Callable[[str, str, int], None],
    ) -> None:
        self._watch = watch
        self._pipeline = pipeline
        self._meter = meter
        self._credits = credits
        self._gate = gate
        self._reservations = reservations
        self._balances = balances
        self._outcomes = outcomes
        self._reader = reader
        self._ledger = ledger
        self._clock = clock
        # Batches are not gathered, only bounded; several at once, because each waits for PostgreSQL, then for
        # the ledger.
        self._batches = Coalescer[list[Report], list[Verdict]](
            self._run_batch, max_batch=1, max_queue=_BATCHES_WAITING, concurrency=_BATCHES_AT_ONCE
        )

    async def Meter(
        self,
        request: metering_service_pb2.MeterRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.MeterRequest, metering_service_pb2.MeterResponse
        ],
    ) -> metering_service_pb2.MeterResponse:
        try:
            metered = await self._meter(self._report(request.event))
        except InvalidArgument as error:
            raise within("event", error) from None
        await self._complete([metered])
        return metering_service_pb2.MeterResponse(metered=metered.event)

    async def MeterBatch(
        self,
        request: metering_service_pb2.MeterBatchRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.MeterBatchRequest, metering_service_pb2.MeterBatchResponse
        ],
    ) -> metering_service_pb2.MeterBatchResponse:
        if not 1 <= len(request.events) <= MAX_EVENTS_PER_CALL:
            raise InvalidArgument.of("events", f"must be 1 to {MAX_EVENTS_PER_CALL}")
        reports = [self._try_report(event) for event in request.events]
        well_formed = [report for report in reports if isinstance(report, Report)]
        judged = await self._batches.submit(well_formed) if well_formed else []
        await self._complete([verdict for verdict in judged if isinstance(verdict, Metered)])
        verdicts = iter(judged)
        response = metering_service_pb2.MeterBatchResponse()
        for report in reports:
            verdict = next(verdicts) if isinstance(report, Report) else report
            if isinstance(verdict, TallystickError):
                response.verdicts.add(error=to_item_error(verdict))
            else:
                response.verdicts.add().metered.CopyFrom(verdict.event)
        return response

    async def Authorize(
        self,
        request: metering_service_pb2.AuthorizeRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.AuthorizeRequest, metering_service_pb2.AuthorizeResponse
        ],
    ) -> metering_service_pb2.AuthorizeResponse:
        return await self._reservations.authorize(request)

    async def Extend(
        self,
        request: metering_service_pb2.ExtendRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.ExtendRequest, metering_service_pb2.ExtendResponse
        ],
    ) -> metering_service_pb2.ExtendResponse:
        return await self._reservations.extend(request)

    async def Settle(
        self,
        request: metering_service_pb2.SettleRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.SettleRequest, metering_service_pb2.SettleResponse
        ],
    ) -> metering_service_pb2.SettleResponse:
        return await self._reservations.settle(request)

    async def Release(
        self,
        request: metering_service_pb2.ReleaseRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.ReleaseRequest, metering_service_pb2.ReleaseResponse
        ],
    ) -> metering_service_pb2.ReleaseResponse:
        return await self._reservations.release(request)

    async def CheckAccess(
        self,
        request: metering_service_pb2.CheckAccessRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.CheckAccessRequest, metering_service_pb2.CheckAccessResponse
        ],
    ) -> metering_service_pb2.CheckAccessResponse:
        return await self._balances.check_access(request)

    async def GetBalance(
        self,
        request: metering_service_pb2.GetBalanceRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.GetBalanceRequest, metering_service_pb2.GetBalanceResponse
        ],
    ) -> metering_service_pb2.GetBalanceResponse:
        return await self._balances.get(request)

    async def ResolveOutcome(
        self,
        request: metering_service_pb2.ResolveOutcomeRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.ResolveOutcomeRequest, metering_service_pb2.ResolveOutcomeResponse
        ],
    ) -> metering_service_pb2.ResolveOutcomeResponse:
        return await self._outcomes.resolve(request)

    async def GetOutcome(
        self,
        request: metering_service_pb2.GetOutcomeRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.GetOutcomeRequest, metering_service_pb2.GetOutcomeResponse
        ],
    ) -> metering_service_pb2.GetOutcomeResponse:
        return await self._outcomes.get(request)

    async def GetUsageEvent(
        self,
        request: metering_service_pb2.GetUsageEventRequest,
        context: grpc.aio.ServicerContext[
            metering_service_pb2.GetUsageEventRequest, metering_service_pb2.GetUsageEventResponse
        ],
    ) -> metering_service_pb2.GetUsageEventResponse:
        ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        ids.check_workflow_id(request.workflow_id)
        if not 0 <= request.ordinal <= MAX_ORDINAL:
            raise InvalidArgument.of("ordinal", "must not be negative")
        known = await self._find(EventKey(request.customer_id, request.workflow_id, request.ordinal))
        return metering_service_pb2.GetUsageEventResponse(
            event=event_to_proto(known.record), metered=await self._metered(known.record)
        )

    async def _complete(self, metered: Sequence[Metered]) -> None:
        """Tell Redis what budgets have spent, and add what leases have free to what customers have left."""
        await self._gate.spent({key: total for one in metered for key, total in one.spent.items()})
        for one in metered:
            # Without what a lease has free: rather too little than too much, since payouts looks again.
            left = one.posted.balance
            self._watch(left.customer_id, left.available.currency_code, left.available.amount_micros)
        if not metered or not may_see_balance(current_principal()):
            return
        spendable = await self._credits.spendable([one.posted.balance for one in metered])
        for one, available in zip(metered, spendable, strict=True):
            one.event.available_balance.amount_micros = available

    def _report(self, event: usage_pb2.UsageEvent) -> Report:
        return Report(event_from_proto(event, self._clock.now()), current_principal())

    def _try_report(self, event: usage_pb2.UsageEvent) -> Report | InvalidArgument:
        try:
            return self._report(event)
        except InvalidArgument as error:
            return error

    async def _run_batch(self, batches: list[list[Report]]) -> list[list[Verdict]]:
        return [await self._pipeline.run(reports) for reports in batches]

    async def _find(self, key: EventKey) -> KnownUsage:
        principal = current_principal()
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(principal))
            known = await usage_events.find(connection, key)
        if (
            known is None
            or not principal.may_use_agent(known.record.charge.agent_id)
            or not principal.may_use_customer(key.customer_id)
        ):
            raise NotFound(
                f"customer {key.customer_id} has no event {key.ordinal} of workflow {key.workflow_id}",
                reason="USAGE_EVENT_NOT_FOUND",
                metadata={
                    "customer_id": key.customer_id,
                    "workflow_id": key.workflow_id,
                    "ordinal": str(key.ordinal),
                },
            )
        return known

    async def _metered(self, record: UsageRecord) -> metering_service_pb2.MeteredEvent | None:
        """What the event cost, as the ledger says now; None until the charge is posted."""
        intended = record.charge
        try:
            charge, available = await asyncio.gather(
                self._ledger.get_charge(charge_id(intended.key)),
                self._available(intended.key.customer_id, intended.currency_code),
            )
        except grpc.aio.AioRpcError as error:
            answer = from_rpc_error(error)
            if answer.code is Code.NOT_FOUND:
                return None
            raise answer from error
        return metered_to_proto(record, charge, available)

    async def _available(self, customer_id: str, currency_code: str) -> money_pb2.Money | None:
        if not may_see_balance(current_principal()):
            return None
        return money_to_proto(currency_code, await self._credits.available(customer_id, currency_code))
