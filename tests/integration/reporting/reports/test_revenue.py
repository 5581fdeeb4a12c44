"""What organizations earned: every figure is that of plain sums over the facts."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import grpc
import pytest

from services.kit.runs import ChargeKind, kind_of
from tallystick.reporting.v1 import period_pb2, revenue_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.integration.reporting.reports.facts import (
    LARK,
    NOW,
    WREN,
    ranked,
    revenue_figures,
)
from tests.support.reporting_books import Books, Earned
from tests.support.reporting_world import NOT_WORK
from tests.support.reports_server import ReportingServer
from tests.support.rpc_errors import refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")

if TYPE_CHECKING:
    from collections.abc import Callable

ZONES = ("UTC", "Asia/Kolkata", "Asia/Kathmandu", "America/New_York")
ALWAYS = (datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))


def _version(earned: Earned) -> str:
    event = earned.charge.event
    version = event.agent_version if event and event.agent_id == earned.agent_id else ""
    return f"{earned.agent_id}@{version}" if version else earned.agent_id


def _action(earned: Earned) -> str:
    event = earned.charge.event
    if event is None:
        return NOT_WORK[kind_of(earned.charge.workflow_id)]
    return event.action if event.agent_id == earned.agent_id else ""


KEYS: dict[int, Callable[[Earned], str]] = {
    revenue_pb2.REVENUE_GROUPING_UNSPECIFIED: lambda one: "",
    revenue_pb2.REVENUE_GROUPING_AGENT: lambda one: one.agent_id,
    revenue_pb2.REVENUE_GROUPING_AGENT_VERSION: _version,
    revenue_pb2.REVENUE_GROUPING_CUSTOMER: lambda one: one.charge.customer_id,
    revenue_pb2.REVENUE_GROUPING_ACTION: _action,
}


def _month(zone: ZoneInfo, back: int) -> tuple[datetime, datetime]:
    """A month before the present one, from midnight to midnight of a zone."""
    months = NOW.astimezone(zone).year * 12 + NOW.astimezone(zone).month - 1 - back
    begin, end = (datetime(number // 12, number % 12 + 1, 1, tzinfo=zone) for number in (months, months + 1))
    return begin.astimezone(UTC), end.astimezone(UTC)


@pytest.mark.parametrize("zone", ZONES)
async def test_the_summary_is_that_of_the_facts(reporting: ReportingServer, books: Books, zone: str) -> None:
    owner = await reporting.caller(f"owner/{LARK}")
    found = await owner.GetRevenueSummary(pb.GetRevenueSummaryRequest(time_zone=zone, month_count=13))
    trend = []
    for point, back in zip(found.trend, reversed(range(13)), strict=True):
        start, end = _month(ZoneInfo(zone), back)
        assert point.start_time.ToDatetime(UTC) == start
        trend.append(books.revenue(LARK, start, min(end, NOW)).get("", (0,) * 5))
        assert revenue_figures(point.revenue) == trend[-1]
    assert revenue_figures(found.month_to_date) == trend[-1]
    assert revenue_figures(found.lifetime) == books.revenue(LARK, *ALWAYS)[""]
    begin, _ = _month(ZoneInfo(zone), 0)
    before, _ = _month(ZoneInfo(zone), 1)
    until = min(before + (NOW - begin), begin)
    assert revenue_figures(found.previous_month_to_date) == books.revenue(LARK, before, until).get(
        "", (0,) * 5
    )
    assert found.organization_id == LARK
    parts = books.revenue(LARK, begin, NOW, lambda one: kind_of(one.charge.workflow_id))
    for kind, part in (
        (ChargeKind.USAGE, found.month_to_date_parts.usage),
        (ChargeKind.SUBSCRIPTION, found.month_to_date_parts.subscriptions),
        (ChargeKind.PERIOD_CLOSE, found.month_to_date_parts.period_closings),
    ):
        assert revenue_figures(part) == parts[kind]
    assert tuple(map(sum, zip(*parts.values(), strict=True))) == trend[-1]
    # A fee for a year is no run rate, and least of all twelve times.
    assert found.run_rate.monthly_proxy.amount_micros == parts[ChargeKind.USAGE][3]
    assert found.run_rate.annual_proxy.amount_micros == parts[ChargeKind.USAGE][3] * 12
    assert found.as_of.journal_position == books.position
    assert found.as_of.usage_position == books.usage_position
    assert found.as_of.HasField("time")


async def test_what_stands_adds_up_to_the_payable_account(reporting: ReportingServer, books: Books) -> None:
    found = await (await reporting.caller(f"owner/{LARK}")).GetRevenueSummary(pb.GetRevenueSummaryRequest())
    today = datetime.now(UTC).date()
    buckets = {
        (collected, available_on): amount
        for (owner_id, currency, collected, available_on), amount in books.buckets.items()
        if (owner_id, currency) == (LARK, "USD")
    }
    assert any(not collected for collected, _ in buckets)
    standing = found.standing
    assert standing.available.amount_micros == _sum_of(
        buckets, lambda collected, on: collected and on <= today
    )
    assert standing.uncollected.amount_micros == _sum_of(buckets, lambda collected, _: not collected)
    payable = sum(one.amount for one in books.movements(LARK) if one.kind == "organization_payable")
    assert standing.available.amount_micros + standing.pending.amount_micros == payable
    assert standing.in_transit.amount_micros == 3_000


def _sum_of(buckets: dict[tuple[bool, date], int], test: Callable[[bool, date], bool]) -> int:
    return sum(amount for bucket, amount in buckets.items() if test(*bucket))


@pytest.mark.parametrize("grouping", KEYS)
@pytest.mark.parametrize(
    ("zone", "name", "interval"),
    [
        ("UTC", "30d", period_pb2.INTERVAL_UNSPECIFIED),
        ("America/New_York", "2026-11-01", period_pb2.INTERVAL_HOUR),
        ("Asia/Kathmandu", "24h", period_pb2.INTERVAL_UNSPECIFIED),
        ("Asia/Kolkata", "mtd", period_pb2.INTERVAL_DAY),
        ("America/New_York", "2026", period_pb2.INTERVAL_MONTH),
    ],
)
async def test_series_have_every_step_and_every_micro(
    reporting: ReportingServer,
    books: Books,
    zone: str,
    name: str,
    interval: period_pb2.Interval.ValueType,
    grouping: revenue_pb2.RevenueGrouping.ValueType,
) -> None:
    owner = await reporting.caller(f"owner/{LARK}")
    found = await owner.GetRevenueSeries(
        pb.GetRevenueSeriesRequest(
            period=period_pb2.Period(name=name, time_zone=zone),
            interval=interval,
            grouping=grouping,
            series_limit=2,
        )
    )
    begins = [point.start_time.ToDatetime(UTC) for point in found.series[0].points]
    end = datetime(2027, 1, 1, tzinfo=ZoneInfo(zone)) if name == "2026" else NOW
    if name == "2026-11-01":
        # The day on which an hour comes twice.
        end = begins[0] + timedelta(hours=25)
        assert len(begins) == 25
    whole = ranked(books.revenue(LARK, begins[0], end, KEYS[grouping]), by=0)
    shown, others = [key for key, _ in whole[:2]], [key for key, _ in whole[2:]]
    if grouping == revenue_pb2.REVENUE_GROUPING_UNSPECIFIED:
        shown = [""]
    assert [(one.key, one.others) for one in found.series] == [
        *((key, False) for key in shown),
        *([("", True)] if others else []),
    ]
    for series in found.series:
        assert [point.start_time.ToDatetime(UTC) for point in series.points] == begins
        wanted = set(others) if series.others else {series.key}
        total = [0] * 5
        for point, start, stop in zip(series.points, begins, [*begins[1:], end], strict=True):
            step = books.revenue(LARK, start, stop, KEYS[grouping])
            figures = [sum(step.get(key, (0,) * 5)[place] for key in wanted) for place in range(5)]
            assert list(revenue_figures(point.revenue)) == figures
            total = [a + b for a, b in zip(total, figures, strict=True)]
        assert list(revenue_figures(series.total)) == total


@pytest.mark.parametrize("name", ["12m", "30d", "24h"])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
async def test_top_customers_with_their_shares(
    reporting: ReportingServer, books: Books, name: str, zone: str
) -> None:
    owner = await reporting.caller(f"owner/{LARK}")
    period = period_pb2.Period(name=name, time_zone=zone)
    found = await owner.ListTopCustomers(pb.ListTopCustomersRequest(period=period, limit=3))
    series = await owner.GetRevenueSeries(pb.GetRevenueSeriesRequest(period=period))
    start = series.series[0].points[0].start_time.ToDatetime(UTC)
    groups = ranked(books.revenue(LARK, start, NOW, lambda one: one.charge.customer_id), by=0)
    assert [(one.key, revenue_figures(one.revenue)) for one in found.customers] == groups[:3]
    assert found.customer_count == len(groups)
    total = sum(figures[0] for _, figures in groups)
    assert revenue_figures(found.total)[0] == total
    assert [one.share_bps for one in found.customers] == [
        max(0, min(figures[0] * 10_000 // total, 10_000)) for _, figures in groups[:3]
    ]
    assert found.top_five_share_bps == min(
        sum(figures[0] for _, figures in groups[:5]) * 10_000 // total, 10_000
    )
    parts = [figures[0] for _, figures in groups if figures[0] > 0]
    assert found.concentration_index == sum(part * part for part in parts) * 10_000 // sum(parts) ** 2


async def test_top_agents(reporting: ReportingServer, books: Books) -> None:
    operator = await reporting.caller("operator")
    for organization_id in (LARK, WREN):
        found = await operator.ListTopAgents(
            pb.ListTopAgentsRequest(
                organization_id=organization_id, period=period_pb2.Period(name="2026"), currency_code="EUR"
            )
        )
        groups = ranked(
            books.revenue(
                organization_id,
                datetime(2026, 1, 1, tzinfo=UTC),
                datetime(2027, 1, 1, tzinfo=UTC),
                lambda one: one.agent_id,
                "EUR",
            ),
            by=0,
        )
        assert [(one.key, revenue_figures(one.revenue)) for one in found.agents] == groups
        assert found.total.gross.currency_code == "EUR"


async def test_an_organization_without_revenue_has_zeros(reporting: ReportingServer) -> None:
    owner = await reporting.caller("owner/org_new")
    summary = await owner.GetRevenueSummary(pb.GetRevenueSummaryRequest())
    assert revenue_figures(summary.lifetime) == (0,) * 5
    assert len(summary.trend) == 12
    assert summary.standing.available.currency_code == "USD"
    series = await owner.GetRevenueSeries(
        pb.GetRevenueSeriesRequest(period=period_pb2.Period(name="7d"), interval=period_pb2.INTERVAL_DAY)
    )
    assert [len(one.points) for one in series.series] == [7]
    grouped = await owner.GetRevenueSeries(
        pb.GetRevenueSeriesRequest(grouping=revenue_pb2.REVENUE_GROUPING_AGENT)
    )
    assert not grouped.series
    top = await owner.ListTopCustomers(pb.ListTopCustomersRequest())
    assert (top.customer_count, top.concentration_index, top.top_five_share_bps) == (0, 0, 0)


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.GetRevenueSummaryRequest(month_count=37), ["month_count"]),
        (pb.GetRevenueSummaryRequest(month_count=-1), ["month_count"]),
        (pb.GetRevenueSummaryRequest(time_zone="Mars/Olympus"), ["time_zone"]),
        (pb.GetRevenueSummaryRequest(currency_code="XXX"), ["currency_code"]),
        (pb.GetRevenueSeriesRequest(series_limit=51), ["series_limit"]),
        (pb.GetRevenueSeriesRequest(grouping=99), ["grouping"]),  # type: ignore[arg-type]
        (pb.GetRevenueSeriesRequest(interval=99), ["interval"]),  # type: ignore[arg-type]
        (
            pb.GetRevenueSeriesRequest(
                period=period_pb2.Period(name="12m"), interval=period_pb2.INTERVAL_HOUR
            ),
            ["interval"],
        ),
        (pb.GetRevenueSeriesRequest(period=period_pb2.Period(name="sometime")), ["period.name"]),
        (pb.GetRevenueSeriesRequest(period=period_pb2.Period(time_zone="x")), ["period.time_zone"]),
        (pb.ListTopCustomersRequest(limit=1001), ["limit"]),
        (pb.ListTopAgentsRequest(limit=-1), ["limit"]),
        (pb.ListTopAgentsRequest(organization_id="lark"), ["organization_id"]),
    ],
)
async def test_malformed_requests_name_the_field(
    reporting: ReportingServer, request_: object, fields: list[str]
) -> None:
    owner = await reporting.caller(f"owner/{LARK}")
    method = getattr(owner, type(request_).__name__.removesuffix("Request"))
    refused = await refusal(method(request_))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


async def test_a_time_that_is_none_is_refused(reporting: ReportingServer) -> None:
    owner = await reporting.caller(f"owner/{LARK}")
    period = period_pb2.Period()
    period.start_time.seconds = 2**60
    period.end_time.seconds = 1
    refused = await refusal(owner.GetRevenueSeries(pb.GetRevenueSeriesRequest(period=period)))
    assert refused.fields == ["period.start_time"]
