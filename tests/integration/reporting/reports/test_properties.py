"""Whatever is posted and whenever, and whatever is asked: the figures are those of plain sums."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.kit.clock import FixedClock
from tallystick.reporting.v1 import period_pb2, revenue_pb2, usage_report_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.conftest import FreshDatabase
from tests.integration.reporting.reports.facts import NOW, add_charges, revenue_figures, usage_figures
from tests.support.reporting_books import Books
from tests.support.reports_server import opened_database, running_reporting

MOMENTS = st.timedeltas(timedelta(0), timedelta(days=335)).map(
    lambda passed: datetime(2025, 12, 30, tzinfo=UTC) + passed
) | st.sampled_from(
    [
        datetime(2026, 11, 1, tzinfo=UTC),
        datetime(2026, 11, 1, 4, 15, tzinfo=UTC),
        datetime(2026, 10, 31, 18, 30, tzinfo=UTC),
        NOW,
    ]
)
ZONES = st.sampled_from(["UTC", "Asia/Kolkata", "Asia/Kathmandu", "America/New_York", "Australia/Lord_Howe"])


@pytest.fixture(scope="module")
def growing(fresh_database: FreshDatabase) -> Iterator[tuple[str, Books, Iterator[int]]]:
    """A database that every example adds an organization to."""
    with fresh_database() as url:
        yield url, Books(), count()


@given(
    seed=st.integers(0, 2**32),
    number=st.integers(1, 25),
    moments=st.tuples(MOMENTS, MOMENTS).filter(lambda pair: pair[0] != pair[1]),
    zone=ZONES,
    interval=st.sampled_from([period_pb2.INTERVAL_DAY, period_pb2.INTERVAL_MONTH]),
    usage_first=st.booleans(),
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reports_are_those_of_the_facts(
    growing: tuple[str, Books, Iterator[int]],
    seed: int,
    number: int,
    moments: tuple[datetime, datetime],
    zone: str,
    interval: period_pb2.Interval.ValueType,
    usage_first: bool,
) -> None:
    url, books, examples = growing
    start, end = sorted(moments)
    period = period_pb2.Period(time_zone=zone)
    period.start_time.FromDatetime(start)
    period.end_time.FromDatetime(end)
    organization_id = f"org_example-{next(examples)}"

    async def compare() -> None:
        async with AsyncExitStack() as stack:
            writer = await stack.enter_async_context(opened_database(url, "reporting_writer"))
            reporting = await stack.enter_async_context(running_reporting(url, FixedClock(NOW)))
            add_charges(books, random.Random(seed), number, organization_id, f"{organization_id}-other")
            await books.apply(writer, usage_first=usage_first)
            owner = await reporting.caller(f"owner/{organization_id}")
            series = await owner.GetRevenueSeries(
                pb.GetRevenueSeriesRequest(
                    period=period,
                    interval=interval,
                    grouping=revenue_pb2.REVENUE_GROUPING_AGENT_VERSION,
                    series_limit=1,
                )
            )
            whole = books.revenue(organization_id, start, end).get("", (0,) * 5)
            totals = [(0,) * 5, *(revenue_figures(one.total) for one in series.series)]
            assert tuple(map(sum, zip(*totals, strict=True))) == whole
            top = await owner.ListTopCustomers(pb.ListTopCustomersRequest(period=period, limit=1000))
            assert {one.key: revenue_figures(one.revenue) for one in top.customers} == books.revenue(
                organization_id, start, end, lambda one: one.charge.customer_id
            )
            usage = await owner.GetUsage(
                pb.GetUsageRequest(
                    period=period,
                    grouping=usage_report_pb2.USAGE_GROUPING_MODEL,
                    include_series=True,
                    interval=interval,
                )
            )
            assert {one.key: usage_figures(one.totals) for one in usage.groups} == books.usage(
                organization_id, start, end, lambda one: one.model
            )
            assert usage.points[0].start_time.ToDatetime(UTC) == start
            assert {one.points[0].start_time.ToDatetime(UTC) for one in series.series} <= {start}
            summary = await owner.GetRevenueSummary(pb.GetRevenueSummaryRequest(time_zone=zone))
            everything = books.revenue(organization_id, start - timedelta(days=999), NOW + timedelta(days=9))
            assert revenue_figures(summary.lifetime) == everything.get("", (0,) * 5)
            stream = owner.GetStatement(pb.GetStatementRequest(period=period))
            first: pb.GetStatementResponse = await anext(aiter(stream))
            facts = books.movements(organization_id)
            for account in first.accounts:
                assert account.opening.amount_micros == sum(
                    one.amount for one in facts if one.create_time < start
                )
                assert account.closing.amount_micros == sum(
                    one.amount for one in facts if one.create_time < end
                )

    asyncio.run(compare())
