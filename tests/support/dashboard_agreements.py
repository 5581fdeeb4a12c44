"""A subscription and a closed period of the made-up world: what they charged, and who tells of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from services.kit.runs import period_run, subscription_run
from tallystick.ledger.v1 import charge_pb2
from tallystick.metering.v1 import (
    charge_line_pb2,
    period_closing_pb2,
    period_service_pb2,
    period_service_pb2_grpc,
    price_book_pb2,
    subscription_pb2,
    subscription_service_pb2,
    subscription_service_pb2_grpc,
)
from tallystick.reporting.v1 import charge_report_pb2
from tests.support.dashboard_world import ACME, SIERRA, World, at, populated, revenue, usd

BEGIN: Final = datetime(2026, 11, 14, 9, 30, tzinfo=UTC)
END: Final = datetime(2026, 12, 14, 9, 30, tzinfo=UTC)
SUBSCRIPTION: Final = "sub_01m7xj2ex96zkkhb2kskg39v87"
FEE: Final = "ch_fee0f52d94361df7c4a45f553aa01"
ADJUSTMENT: Final = "ch_adj0f52d94361df7c4a45f553aa02"
_AGENT: Final = "agt_resolver"
_VERSION: Final = "pv_01m7xj2ex96zkkhb2kskg39v87"
_OCTOBER: Final = datetime(2026, 10, 1, tzinfo=UTC)
_NOVEMBER: Final = datetime(2026, 11, 1, tzinfo=UTC)


def agreed() -> World:
    """The world in which Acme has subscribed, and its October was closed once more."""
    world = populated()
    run = subscription_run(SUBSCRIPTION, BEGIN, END)
    world.charges += [
        _charge(FEE, run, 0, 134_000_000, BEGIN, BEGIN + timedelta(seconds=1)),
        _charge(
            ADJUSTMENT,
            period_run(SIERRA, "USD", _OCTOBER),
            1,
            2_750_000,
            _NOVEMBER - timedelta(microseconds=1),
            _NOVEMBER + timedelta(days=9),
        ),
    ]
    return world


def _charge(
    charge_id: str, run: str, ordinal: int, micros: int, occurred: datetime, posted: datetime
) -> charge_report_pb2.ReportedCharge:
    return charge_report_pb2.ReportedCharge(
        charge_id=charge_id,
        customer_id=ACME,
        workflow_id=run,
        component=charge_pb2.CHARGE_COMPONENT_BASE,
        ordinal=ordinal,
        gross=usd(micros),
        corrected=usd(0),
        net=revenue(micros, 1).net,
        agent_id=_AGENT,
        price_version_id=_VERSION,
        occur_time=at(occurred),
        create_time=at(posted),
    )


def _line(name: str, quantity: int, price: str, micros: int, **more: Any) -> charge_line_pb2.ChargeLine:
    return charge_line_pb2.ChargeLine(
        component_name=name,
        quantity=quantity,
        unit_price=price_book_pb2.UnitPrice(amount=price, per_units=1),
        amount=usd(micros),
        **more,
    )


class Subscriptions(subscription_service_pb2_grpc.SubscriptionServiceServicer):
    """Serves SubscriptionService."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def ListSubscriptions(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("metering", request)
        # A list of nobody's is empty.
        mine = principal.customer_id in (None, ACME) and request.customer_id == ACME
        segment = subscription_pb2.SubscriptionSegment(
            start_time=at(BEGIN), plan_name="team", seats=4, fee=usd(99_000_000), seat_fee=usd(12_000_000)
        )
        found = subscription_pb2.Subscription(
            subscription_id=SUBSCRIPTION,
            customer_id=ACME,
            organization_id=SIERRA,
            agent_id=_AGENT,
            currency_code="USD",
            state=subscription_pb2.SUBSCRIPTION_STATE_ACTIVE,
            segments=[segment],
            pending_plan_name="small",
            pending_seats=1,
            credit=usd(0),
            period_fees=usd(147_000_000),
            period_start_time=at(BEGIN),
            period_end_time=at(END),
        )
        has_any = mine and any(one.charge_id == FEE for one in self._world.charges)
        return subscription_service_pb2.ListSubscriptionsResponse(subscriptions=[found] if has_any else [])

    async def ListSubscriptionFees(self, request: Any, context: Any) -> Any:
        self._world.hear("metering", request)
        kind = charge_line_pb2.CHARGE_LINE_KIND_SUBSCRIPTION
        fee = subscription_pb2.SubscriptionFee(
            subscription_id=SUBSCRIPTION,
            workflow_id=request.workflow_id,
            charge_id=FEE,
            lines=[
                _line("team", 1, "99.00", 99_000_000, kind=kind),
                _line("seats", 4, "12.00", 48_000_000, kind=kind),
            ],
            amount=usd(134_000_000),
            from_credit=usd(13_000_000),
        )
        return subscription_service_pb2.ListSubscriptionFeesResponse(fees=[fee])


class Periods(period_service_pb2_grpc.PeriodServiceServicer):
    """Serves PeriodService."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def ListPeriodClosings(self, request: Any, context: Any) -> Any:
        self._world.hear("metering", request)
        closing = period_closing_pb2.PeriodClosing(
            charge_id=ADJUSTMENT,
            prices=[
                period_closing_pb2.ClosedPrice(
                    price_name="tickets",
                    lines=[_line("resolved", 1_250, "0.01", 12_500_000, tier=2)],
                )
            ],
            total=usd(12_500_000),
            closed_before=usd(9_750_000),
            from_credit=usd(0),
            amount=usd(2_750_000),
        )
        return period_service_pb2.ListPeriodClosingsResponse(period_closings=[closing])
