"""What was used, earned and paid out, with either client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.kit import errors as server
from services.kit.auth import Principal, Role
from tallystick import (
    AsyncClient,
    Client,
    InvalidArgument,
    Money,
    NotFound,
    OutcomeCounts,
    PermissionDenied,
    RetryPolicy,
    Unauthenticated,
    Unavailable,
)
from tallystick.metering.v1 import charge_line_pb2
from tallystick.payouts.v1 import payout_pb2
from tallystick.reporting.v1 import period_pb2, reporting_service_pb2, usage_report_pb2
from tests.integration.sdk.either import IMPATIENT, Either, Open
from tests.support.reporting_fake import CHARGE, NOON, Fake, payout, running_fake, usd
from tests.unit.kit.support import KnownKeys

OWNER_KEY, HOST_KEY = "tsk_owner", "tsk_host"
PRINCIPALS = {
    OWNER_KEY: Principal(api_key_id="key_owner", role=Role.OWNER, organization_id="org_lark"),
    HOST_KEY: Principal(api_key_id="key_host", role=Role.HOST),
}


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    async with running_fake(KnownKeys(PRINCIPALS)) as running:
        yield running


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "async"])
def opened(request: pytest.FixtureRequest, fake: Fake) -> Open:
    @asynccontextmanager
    async def open_client(**changes: Any) -> AsyncIterator[Either]:
        retry = RetryPolicy(timeout=30, first_backoff=0.001, max_backoff=0.01)
        client = request.param(**{"api_key": OWNER_KEY, "reporting": fake.address, "retry": retry} | changes)
        try:
            yield Either(client)
        finally:
            if isinstance(client, AsyncClient):
                await client.close()
            else:
                await asyncio.to_thread(client.close)

    return open_client


async def test_usage_is_told_apart_by_agent(opened: Open, fake: Fake) -> None:
    async with opened() as client:
        usage = await client.usage(period="30d", group_by="agent")
    assert fake.asked == [
        reporting_service_pb2.GetUsageRequest(
            currency_code="USD",
            period=period_pb2.Period(name="30d", time_zone="UTC"),
            grouping=usage_report_pb2.USAGE_GROUPING_AGENT,
            limit=100,
        )
    ]
    assert [(group.key, str(group.totals.cost)) for group in usage.groups] == [
        ("agt_helper", "0.654036 USD"),
        ("agt_scout", "0.005 USD"),
    ]
    helper, scout = (group.totals for group in usage.groups)
    assert (helper.executions, helper.input_tokens, helper.output_tokens) == (3, 3_000, 300)
    assert helper.outcomes == OutcomeCounts(success=2, failure=1, partial=0, unknown=0, pending=0)
    assert helper.success_rate_bps == 6_666
    # Nothing was decided: no rate, which is not a rate of zero.
    assert scout.success_rate_bps is None
    assert usage.total.cost == helper.cost + scout.cost
    assert (usage.as_of.journal_position, usage.as_of.usage_position, usage.as_of.time) == (120, 80, NOON)


async def test_usage_comes_over_time(opened: Open, fake: Fake) -> None:
    start, end = NOON - timedelta(days=1), NOON
    async with opened() as client:
        usage = await client.usage((start, end), customer="cus_ada", time_zone="Europe/Berlin", series="hour")
        await client.usage("mtd", series=True)
    exact, named = fake.asked
    assert isinstance(exact, reporting_service_pb2.GetUsageRequest)
    assert isinstance(named, reporting_service_pb2.GetUsageRequest)
    assert (exact.period.start_time.ToDatetime(UTC), exact.period.end_time.ToDatetime(UTC)) == (start, end)
    assert (exact.period.time_zone, exact.customer_id) == ("Europe/Berlin", "cus_ada")
    assert (exact.include_series, exact.interval) == (True, period_pb2.INTERVAL_HOUR)
    assert (named.include_series, named.interval) == (True, period_pb2.INTERVAL_UNSPECIFIED)
    assert usage.interval == "day"
    assert [point.start_time for point in usage.points] == [NOON]


async def test_what_cannot_be_asked_is_refused_before_it_travels(opened: Open, fake: Fake) -> None:
    async with opened() as client:
        with pytest.raises(ValueError, match="group_by is one of agent, agent_version, customer"):
            await client.usage("30d", "colour")
        with pytest.raises(ValueError, match="series is one of hour, day, month"):
            await client.usage("30d", series="week")
        with pytest.raises(ValueError, match="need a time zone"):
            await client.usage((datetime(2026, 11, 1), NOON))  # noqa: DTZ001 - that is the point
        with pytest.raises(ValueError, match="limit is above zero"):
            await client.payouts(limit=0)
    assert fake.asked == []


async def test_earnings_say_what_can_be_paid_out(opened: Open, fake: Fake) -> None:
    async with opened() as client:
        earnings = await client.earnings(months=2, time_zone="America/New_York")
    assert fake.asked == [
        reporting_service_pb2.GetRevenueSummaryRequest(
            currency_code="USD", time_zone="America/New_York", month_count=2
        )
    ]
    month = earnings.month_to_date
    assert month.gross == month.net + month.platform_fees + month.processing_fees == Money.of("0.218012")
    assert (earnings.organization, earnings.previous_month_to_date.charges) == ("org_lark", 1)
    assert (earnings.monthly_proxy, earnings.annual_proxy) == (Money.of("0.178989"), Money.of("2.147868"))
    assert (earnings.available, earnings.pending) == (Money.of("0.15"), Money.of("0.028989"))
    assert (earnings.uncollected, earnings.in_transit) == (Money.of("0.02"), Money.of("0.01"))
    assert [(point.start_time.month, point.revenue.gross) for point in earnings.trend] == [
        (10, Money.of("0.10")),
        (11, Money.of("0.218012")),
    ]
    assert earnings.lifetime.charges == 2


async def test_payouts_come_page_by_page(opened: Open, fake: Fake) -> None:
    fake.payouts = [payout(number) for number in range(1, 131)]
    async with opened() as client:
        everything = await client.payouts(limit=1_000)
        first = await client.payouts("org_lark", limit=2)
    assert [one.payout_id for one in everything] == [f"po_{number}" for number in range(1, 131)]
    paid, held = first
    assert (paid.state, paid.bank_status, paid.bank_arrival_time, paid.hold) == (
        "completed",
        "paid",
        NOON,
        "",
    )
    assert (held.state, held.bank_status, held.bank_arrival_time, held.hold) == (
        "requested",
        None,
        None,
        "frozen",
    )
    assert [(step.state, step.bank_status, step.create_time) for step in paid.steps] == [
        ("completed", "paid", NOON)
    ]
    assert [request.page_size for request in fake.asked] == [100, 100, 2]  # type: ignore[attr-defined]


async def test_a_state_that_is_newer_than_the_client_has_not_ended(opened: Open, fake: Fake) -> None:
    newer = payout(1)
    newer.payout.state = 99  # type: ignore[assignment]
    newer.payout.hold = 98  # type: ignore[assignment]
    newer.payout.bank_status = payout_pb2.BANK_STATUS_CANCELED
    fake.payouts = [newer]
    async with opened() as client:
        (found,) = await client.payouts()
    assert (found.state, found.hold, found.bank_status) == ("processing", "98", "canceled")


async def test_a_charge_says_what_it_was_for(opened: Open, fake: Fake) -> None:
    async with opened() as client:
        charge = await client.charge("ch_1")
        with pytest.raises(NotFound) as caught:
            await client.charge("ch_2")
    assert caught.value.reason == "CHARGE_NOT_FOUND"
    assert (charge.gross, charge.net) == (Money.of("0.218012"), Money.of("0.178989"))
    assert (charge.component, charge.outcome, charge.action) == ("base", "success", "ticket.resolve")
    assert [(line.component, line.quantity, str(line.amount)) for line in charge.lines] == [
        ("run", 1, "0.005 USD"),
        ("input", 18_042, "0.010825 USD"),
        ("output", 911, "0.002187 USD"),
        ("success", 1, "0.20 USD"),
    ]
    seen_by_a_customer = type(CHARGE)()
    seen_by_a_customer.CopyFrom(CHARGE)
    seen_by_a_customer.ClearField("net")
    fake.charges = [seen_by_a_customer]
    async with opened() as client:
        assert (await client.charge("ch_1")).net is None


async def test_lines_say_what_they_are_for(opened: Open, fake: Fake) -> None:
    discounted = type(CHARGE)()
    discounted.CopyFrom(CHARGE)
    discounted.lines[1].tier = 2
    taken_off = discounted.lines.add(component_name="loyal", quantity=1)
    taken_off.kind = charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT
    taken_off.amount.CopyFrom(usd(-218_012))
    fake.charges = [discounted]

    async with opened() as client:
        lines = (await client.charge("ch_1")).lines

    assert [(line.kind, line.tier) for line in lines[:2]] == [("component", 0), ("component", 2)]
    assert [(line.component, line.kind, str(line.amount)) for line in lines[4:5]] == [
        ("loyal", "discount", "-0.218012 USD")
    ]


async def test_what_may_pass_is_asked_again(opened: Open, fake: Fake) -> None:
    fake.errors = [server.Unavailable("soon", retry_after=timedelta(0))] * 2
    async with opened() as client:
        assert (await client.earnings()).organization == "org_lark"
    assert len(fake.asked) == 3


async def test_refusals_are_typed(opened: Open, fake: Fake) -> None:
    fake.errors = [server.InvalidArgument.of("period.name", "is not a period")]
    async with opened() as client:
        with pytest.raises(InvalidArgument) as caught:
            await client.usage("yesteryear")
    assert [one.field for one in caught.value.field_violations] == ["period.name"]
    async with opened(api_key=HOST_KEY) as host:
        with pytest.raises(PermissionDenied):
            await host.earnings()
    async with opened(api_key="tsk_nobody") as nobody:
        with pytest.raises(Unauthenticated):
            await nobody.payouts()
    async with opened(reporting="127.0.0.1:1", retry=IMPATIENT) as lonely:
        with pytest.raises(Unavailable):
            await lonely.usage()
