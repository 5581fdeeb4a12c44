"""A reporting of a few lines on a real server: it answers what a test gives it, and keeps what was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.auth import Authenticator
from services.kit.errors import NotFound
from services.kit.server import bind, build_server
from tallystick.common.v1.money_pb2 import Money
from tallystick.ledger.v1 import charge_pb2
from tallystick.metering.v1 import charge_line_pb2, price_book_pb2, usage_pb2
from tallystick.payouts.v1 import payout_pb2
from tallystick.reporting.v1 import (
    charge_report_pb2,
    period_pb2,
    projection_pb2,
    projection_service_pb2,
    projection_service_pb2_grpc,
    reporting_service_pb2,
    reporting_service_pb2_grpc,
    revenue_pb2,
    statement_pb2,
    usage_report_pb2,
)

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def usd(micros: int) -> Money:
    return Money(currency_code="USD", amount_micros=micros)


def at(moment: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(moment)
    return made


AS_OF = period_pb2.AsOf(journal_position=120, usage_position=80, time=at(NOON))


def totals(executions: int, micros: int, **outcomes: int) -> usage_report_pb2.UsageTotals:
    """So many executions at this cost; the success rate follows from the outcomes."""
    decided = sum(outcomes.get(name, 0) for name in ("success", "failure", "partial"))
    return usage_report_pb2.UsageTotals(
        execution_count=executions,
        input_tokens=1_000 * executions,
        output_tokens=100 * executions,
        cost=usd(micros),
        outcomes=usage_report_pb2.OutcomeCounts(**outcomes),
        success_rate_bps=10_000 * outcomes.get("success", 0) // decided if decided else None,
    )


def revenue(gross: int, charges: int = 1) -> revenue_pb2.Revenue:
    """Split at 15 % and 2.9 %."""
    platform, processing = gross * 1_500 // 10_000, gross * 290 // 10_000
    return revenue_pb2.Revenue(
        gross=usd(gross),
        platform_fees=usd(platform),
        processing_fees=usd(processing),
        net=usd(gross - platform - processing),
        charge_count=charges,
    )


USAGE = reporting_service_pb2.GetUsageResponse(
    groups=[
        usage_report_pb2.UsageGroup(key="agt_helper", totals=totals(3, 654_036, success=2, failure=1)),
        usage_report_pb2.UsageGroup(key="agt_scout", totals=totals(1, 5_000, unknown=1)),
    ],
    total=totals(4, 659_036, success=2, failure=1, unknown=1),
    points=[usage_report_pb2.UsagePoint(start_time=at(NOON), totals=totals(4, 659_036, success=2))],
    interval=period_pb2.INTERVAL_DAY,
    as_of=AS_OF,
)

EARNINGS = reporting_service_pb2.GetRevenueSummaryResponse(
    organization_id="org_lark",
    month_to_date=revenue(218_012),
    month_to_date_parts=revenue_pb2.RevenueParts(
        usage=revenue(218_012), subscriptions=revenue(0, 0), period_closings=revenue(0, 0)
    ),
    previous_month_to_date=revenue(100_000),
    run_rate=revenue_pb2.RunRate(monthly_proxy=usd(178_989), annual_proxy=usd(2_147_868)),
    standing=revenue_pb2.EarningsStanding(
        available=usd(150_000), pending=usd(28_989), uncollected=usd(20_000), in_transit=usd(10_000)
    ),
    trend=[
        revenue_pb2.RevenuePoint(start_time=at(datetime(2026, 10, 1, tzinfo=UTC)), revenue=revenue(100_000)),
        revenue_pb2.RevenuePoint(start_time=at(datetime(2026, 11, 1, tzinfo=UTC)), revenue=revenue(218_012)),
    ],
    lifetime=revenue(318_012, 2),
    as_of=AS_OF,
)


def line(
    component: str, quantity: int, price: str, per_units: int, micros: int
) -> charge_line_pb2.ChargeLine:
    return charge_line_pb2.ChargeLine(
        component_name=component,
        quantity=quantity,
        unit_price=price_book_pb2.UnitPrice(amount=price, per_units=per_units),
        amount=usd(micros),
    )


CHARGE = charge_report_pb2.ReportedCharge(
    charge_id="ch_1",
    customer_id="cus_ada",
    workflow_id="ticket-4711",
    component=charge_pb2.CHARGE_COMPONENT_BASE,
    gross=usd(218_012),
    corrected=usd(0),
    net=usd(178_989),
    agent_id="agt_helper",
    action_type="ticket.resolve",
    model="gpt-4o-mini",
    input_tokens=18_042,
    output_tokens=911,
    outcome=usage_pb2.OUTCOME_SUCCESS,
    lines=[
        line("run", 1, "0.005", 0, 5_000),
        line("input", 18_042, "0.60", 1_000_000, 10_825),
        line("output", 911, "2.40", 1_000_000, 2_187),
        line("success", 1, "0.20", 0, 200_000),
    ],
    price_version_id="pv_1",
    occur_time=at(NOON),
    create_time=at(NOON),
    kind=charge_report_pb2.CHARGE_KIND_USAGE,
)


def payout(number: int) -> statement_pb2.PayoutRecord:
    """One that the bank has; those of even numbers are held."""
    held = number % 2 == 0
    state = payout_pb2.PAYOUT_STATE_REQUESTED if held else payout_pb2.PAYOUT_STATE_COMPLETED
    bank = payout_pb2.BANK_STATUS_UNSPECIFIED if held else payout_pb2.BANK_STATUS_PAID
    return statement_pb2.PayoutRecord(
        payout=payout_pb2.Payout(
            payout_id=f"po_{number}",
            organization_id="org_lark",
            amount=usd(8_030_000),
            state=state,
            bank_status=bank,
            reversed=usd(0),
            hold=payout_pb2.PAYOUT_HOLD_FROZEN if held else payout_pb2.PAYOUT_HOLD_UNSPECIFIED,
            create_time=at(NOON),
            update_time=at(NOON),
            bank_arrival_time=None if held else at(NOON),
        ),
        transitions=[
            payout_pb2.PayoutTransition(number=1, state=state, bank_status=bank, create_time=at(NOON))
        ],
        debit_transaction_id="txn_1",
    )


def projection(
    *,
    lag: timedelta = timedelta(0),
    heard: datetime | None = None,
    state: projection_pb2.ProjectionState.ValueType = projection_pb2.PROJECTION_STATE_SERVING,
) -> projection_pb2.Projection:
    """One whose feeds are this far behind, and were last heard from now unless told otherwise."""
    wait = Duration()
    wait.FromTimedelta(lag)
    return projection_pb2.Projection(
        projection_id=1,
        state=state,
        feeds=[
            projection_pb2.FeedProgress(
                feed=feed,
                position=100,
                head_position=120 if lag else 100,
                lag=wait,
                hear_time=at(heard or datetime.now(UTC)),
            )
            for feed in ("journal", "usage")
        ],
    )


@dataclass
class Fake:
    """What it answers may be changed at any time."""

    usage: reporting_service_pb2.GetUsageResponse = field(default_factory=lambda: USAGE)
    earnings: reporting_service_pb2.GetRevenueSummaryResponse = field(default_factory=lambda: EARNINGS)
    payouts: list[statement_pb2.PayoutRecord] = field(default_factory=lambda: [payout(1), payout(2)])
    charges: list[charge_report_pb2.ReportedCharge] = field(default_factory=lambda: [CHARGE])
    projections: list[projection_pb2.Projection] = field(default_factory=lambda: [projection()])
    # Raised, one by one, before anything is answered.
    errors: list[Exception] = field(default_factory=list)
    asked: list[Message] = field(default_factory=list)
    address: str = ""

    def __getattr__(self, name: str) -> Any:
        """An RPC that no test needs yet."""

        async def rpc(request: Message, context: Any) -> Message:
            raise NotFound(f"{name} is not faked")

        return rpc

    def _ask(self, request: Message) -> None:
        kept = type(request)()
        kept.CopyFrom(request)
        self.asked.append(kept)
        if self.errors:
            raise self.errors.pop(0)

    async def GetUsage(self, request: reporting_service_pb2.GetUsageRequest, context: Any) -> Message:
        self._ask(request)
        return self.usage

    async def GetRevenueSummary(self, request: Message, context: Any) -> Message:
        self._ask(request)
        return self.earnings

    async def ListPayoutHistory(
        self, request: reporting_service_pb2.ListPayoutHistoryRequest, context: Any
    ) -> Message:
        self._ask(request)
        start = int(request.page_token or 0)
        end = start + request.page_size
        return reporting_service_pb2.ListPayoutHistoryResponse(
            payouts=self.payouts[start:end],
            next_page_token=str(end) if end < len(self.payouts) else "",
            as_of=AS_OF,
        )

    async def GetCharge(self, request: reporting_service_pb2.GetChargeRequest, context: Any) -> Message:
        self._ask(request)
        for charge in self.charges:
            if charge.charge_id == request.charge_id:
                return reporting_service_pb2.GetChargeResponse(charge=charge, as_of=AS_OF)
        raise NotFound("there is no such charge", reason="CHARGE_NOT_FOUND")

    async def ListProjections(self, request: Message, context: Any) -> Message:
        self._ask(request)
        return projection_service_pb2.ListProjectionsResponse(projections=self.projections)


@asynccontextmanager
async def running_fake(authenticator: Authenticator, schema: Any = None) -> AsyncIterator[Fake]:
    """Serve it to whom this knows until the end of the `async with`."""
    fake = Fake()
    servicer: Any = fake
    server = build_server(
        services=[
            bind(
                reporting_service_pb2.DESCRIPTOR.services_by_name["ReportingService"],
                reporting_service_pb2_grpc.add_ReportingServiceServicer_to_server,
                servicer,
            ),
            bind(
                projection_service_pb2.DESCRIPTOR.services_by_name["ProjectionService"],
                projection_service_pb2_grpc.add_ProjectionServiceServicer_to_server,
                servicer,
            ),
        ],
        authenticator=authenticator,
        schema=schema,
    )
    fake.address = server.listen("127.0.0.1:0")
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(timedelta(seconds=2))
