"""What agents did and what their models cost: every figure is that of plain sums over the facts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import grpc
import pytest

from tallystick.reporting.v1 import period_pb2, revenue_pb2, usage_report_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.integration.reporting.reports.facts import LARK, NOW, ranked, usage_figures
from tests.support.reporting_books import Books, Event
from tests.support.reports_server import CATALOGUE, ReportingServer
from tests.support.rpc_errors import refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS: dict[int, Callable[[Event], str]] = {
    usage_report_pb2.USAGE_GROUPING_UNSPECIFIED: lambda one: "",
    usage_report_pb2.USAGE_GROUPING_AGENT: lambda one: one.agent_id,
    usage_report_pb2.USAGE_GROUPING_AGENT_VERSION: lambda one: (
        f"{one.agent_id}@{one.agent_version}" if one.agent_version else one.agent_id
    ),
    usage_report_pb2.USAGE_GROUPING_CUSTOMER: lambda one: one.customer_id,
    usage_report_pb2.USAGE_GROUPING_ACTION: lambda one: one.action,
    usage_report_pb2.USAGE_GROUPING_MODEL: lambda one: one.model,
}
MARGIN_KEYS: dict[int, Callable[[Event], str]] = {
    revenue_pb2.MARGIN_GROUPING_UNSPECIFIED: lambda one: "",
    revenue_pb2.MARGIN_GROUPING_AGENT: lambda one: one.agent_id,
    revenue_pb2.MARGIN_GROUPING_MODEL: lambda one: one.model,
    revenue_pb2.MARGIN_GROUPING_CUSTOMER: lambda one: one.customer_id,
    revenue_pb2.MARGIN_GROUPING_RUN: lambda one: f"{one.customer_id}/{one.workflow_id}",
}


@pytest.mark.parametrize("grouping", KEYS)
@pytest.mark.parametrize("key", [f"owner/{LARK}", "customer/cus_ada"])
@pytest.mark.parametrize(
    ("zone", "name"),
    [("UTC", "30d"), ("Asia/Kathmandu", "mtd"), ("America/New_York", "12m"), ("Asia/Kolkata", "today")],
)
async def test_usage_is_that_of_the_facts(
    reporting: ReportingServer,
    books: Books,
    zone: str,
    name: str,
    key: str,
    grouping: usage_report_pb2.UsageGrouping.ValueType,
) -> None:
    owner_id = key.partition("/")[2]
    if owner_id.startswith("cus_") and grouping == usage_report_pb2.USAGE_GROUPING_CUSTOMER:
        return
    caller = await reporting.caller(key)
    found = await caller.GetUsage(
        pb.GetUsageRequest(
            period=period_pb2.Period(name=name, time_zone=zone),
            grouping=grouping,
            limit=3,
            include_series=True,
        )
    )
    begins = [point.start_time.ToDatetime(UTC) for point in found.points]
    groups = ranked(books.usage(owner_id, begins[0], NOW, KEYS[grouping]), by=3)
    assert [(one.key, usage_figures(one.totals)) for one in found.groups] == groups[:3]
    whole = books.usage(owner_id, begins[0], NOW).get("", (0,) * 9)
    assert usage_figures(found.total) == whole
    decided = sum(whole[4:7])
    assert found.total.HasField("success_rate_bps") == bool(decided)
    if decided:
        assert found.total.success_rate_bps == whole[4] * 10_000 // decided
    for point, start, end in zip(found.points, begins, [*begins[1:], NOW], strict=True):
        assert usage_figures(point.totals) == books.usage(owner_id, start, end).get("", (0,) * 9)
    assert found.interval != period_pb2.INTERVAL_UNSPECIFIED


async def test_usage_over_time_is_answered_only_when_asked_for(reporting: ReportingServer) -> None:
    found = await (await reporting.caller(f"owner/{LARK}")).GetUsage(pb.GetUsageRequest())
    assert not found.points
    assert found.interval == period_pb2.INTERVAL_UNSPECIFIED


@pytest.mark.parametrize("grouping", MARGIN_KEYS)
@pytest.mark.parametrize("name", ["30d", "24h"])
async def test_margins_know_what_is_not_known(
    reporting: ReportingServer, books: Books, name: str, grouping: revenue_pb2.MarginGrouping.ValueType
) -> None:
    owner = await reporting.caller(f"billing_admin/{LARK}")
    period = period_pb2.Period(name=name)
    found = await owner.GetMargin(pb.GetMarginRequest(period=period, grouping=grouping, limit=5))
    usage = await owner.GetUsage(pb.GetUsageRequest(period=period, include_series=True))
    start = usage.points[0].start_time.ToDatetime(UTC)
    groups: dict[str, list[Event]] = {}
    for event in books.events:
        if event.organization_id == LARK and event.currency == "USD" and start <= event.occur_time < NOW:
            groups.setdefault(MARGIN_KEYS[grouping](event), []).append(event)
    assert groups
    wanted = sorted(groups, key=lambda key: (-sum(one.cost for one in groups[key]), key.encode()))
    assert [one.key for one in found.margins] == wanted[:5]
    for margin in found.margins:
        _check(margin, groups[margin.key])
    _check(found.total, [event for events in groups.values() for event in events])
    assert found.catalogue == CATALOGUE


def _check(margin: revenue_pb2.Margin, events: list[Event]) -> None:
    known = [event for event in events if event.model_cost is not None]
    assert margin.gross.amount_micros == sum(event.cost for event in events)
    assert margin.gross_of_known.amount_micros == sum(event.cost for event in known)
    assert (margin.known_count, margin.unknown_count) == (len(known), len(events) - len(known))
    if not known:
        assert (margin.model_cost_usd, margin.margin_usd) == ("", "")
        return
    cost = sum((event.model_cost or Decimal(0) for event in known), Decimal(0))
    assert Decimal(margin.model_cost_usd) == cost
    assert Decimal(margin.margin_usd) == Decimal(margin.gross_of_known.amount_micros).scaleb(-6) - cost
    assert "E" not in margin.model_cost_usd + margin.margin_usd


async def test_the_margin_of_another_currency_is_not_guessed(reporting: ReportingServer) -> None:
    owner = await reporting.caller(f"owner/{LARK}")
    found = await owner.GetMargin(
        pb.GetMarginRequest(currency_code="EUR", period=period_pb2.Period(name="12m"))
    )
    assert found.total.known_count > 0
    assert found.total.model_cost_usd != ""
    assert found.total.margin_usd == ""


@pytest.mark.parametrize(
    ("key", "request_", "field"),
    [
        (
            "customer/cus_ada",
            pb.GetUsageRequest(grouping=usage_report_pb2.USAGE_GROUPING_CUSTOMER),
            "grouping",
        ),
        (f"owner/{LARK}", pb.GetUsageRequest(grouping=99), "grouping"),  # type: ignore[arg-type]
        (f"owner/{LARK}", pb.GetUsageRequest(limit=1001), "limit"),
        (f"owner/{LARK}", pb.GetMarginRequest(grouping=99), "grouping"),  # type: ignore[arg-type]
        (
            f"owner/{LARK}",
            pb.GetMarginRequest(
                grouping=revenue_pb2.MARGIN_GROUPING_RUN, period=period_pb2.Period(name="33d")
            ),
            "period",
        ),
    ],
)
async def test_malformed_requests_name_the_field(
    reporting: ReportingServer, key: str, request_: object, field: str
) -> None:
    caller = await reporting.caller(key)
    method = getattr(caller, type(request_).__name__.removesuffix("Request"))
    refused = await refusal(method(request_))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_a_long_period_of_a_customer_begins_where_it_says(
    reporting: ReportingServer, books: Books
) -> None:
    period = period_pb2.Period()
    start = datetime(2025, 12, 31, 22, 7, 3, tzinfo=UTC)
    period.start_time.FromDatetime(start)
    period.end_time.FromDatetime(NOW)
    found = await (await reporting.caller("operator")).GetUsage(
        pb.GetUsageRequest(customer_id="cus_ada", period=period)
    )
    assert usage_figures(found.total) == books.usage("cus_ada", start, NOW)[""]
