"""What organizations earned: RPCs about revenue."""

from typing import Final

from services.reporting.domain import period as periods
from services.reporting.domain.revenue import FEW, Ranking, RevenueGrouping
from services.reporting.rpc import revenue_convert as convert
from services.reporting.rpc.access import organization_of, tenants_of_owner
from services.reporting.rpc.convert import (
    as_of_to_proto,
    currency_of,
    interval_from_proto,
    interval_to_proto,
    limit_from_proto,
    period_from_proto,
    steps_of,
)
from services.reporting.rpc.reporting_base import Context, ReportingBase
from services.reporting.store import revenue
from services.reporting.store.revenue import Earner
from services.reporting.store.snapshots import Known
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tallystick.reporting.v1 import revenue_pb2

_DEFAULT_MONTHS: Final = 12
_MAX_MONTHS: Final = 36
_DEFAULT_SERIES: Final = 10
_MAX_SERIES: Final = 50
_DEFAULT_TOP: Final = 10
_MAX_TOP: Final = 1000

TopRequest = pb.ListTopCustomersRequest | pb.ListTopAgentsRequest


class RevenueRpcs(ReportingBase):
    """Revenue over time, and by what it is told apart by."""

    async def GetRevenueSummary(
        self, request: pb.GetRevenueSummaryRequest, context: Context
    ) -> pb.GetRevenueSummaryResponse:
        owner, currency = organization_of(request), currency_of(request.currency_code)
        time_zone = periods.check_time_zone(request.time_zone)
        months = limit_from_proto(
            request.month_count, field="month_count", default=_DEFAULT_MONTHS, most=_MAX_MONTHS
        )
        now = self._clock.now()
        current = periods.month_to_date(time_zone, now=now)
        previous = periods.previous_month_to_date(time_zone, now=now)
        begins = periods.month_begins(months, time_zone, now=now)
        spans = [*zip(begins, [*begins[1:], current.end], strict=True), (previous.start, previous.end)]
        async with self._snapshot(tenants_of_owner(owner)) as snapshot:
            earner = Earner(snapshot.projection_id, owner.id, currency)
            *trend, before = await revenue.sum_spans(snapshot.connection, earner, spans)
            parts = await revenue.parts(snapshot.connection, earner, spans[months - 1], trend[-1])
            lifetime = await revenue.lifetime(snapshot.connection, earner)
            standing = await revenue.standing(snapshot.connection, earner)
        return pb.GetRevenueSummaryResponse(
            organization_id=owner.id,
            month_to_date=convert.revenue_to_proto(trend[-1], currency),
            previous_month_to_date=convert.revenue_to_proto(before, currency),
            month_to_date_parts=convert.parts_to_proto(parts, currency),
            run_rate=convert.run_rate_to_proto(parts.usage, currency),
            standing=convert.standing_to_proto(standing, currency),
            trend=convert.points_to_proto(begins, trend, currency),
            lifetime=convert.revenue_to_proto(lifetime, currency),
            as_of=as_of_to_proto(snapshot.known),
        )

    async def GetRevenueSeries(
        self, request: pb.GetRevenueSeriesRequest, context: Context
    ) -> pb.GetRevenueSeriesResponse:
        owner, currency = organization_of(request), currency_of(request.currency_code)
        period = period_from_proto(request.period, self._clock)
        interval = interval_from_proto(request.interval, period)
        spans = steps_of(period, interval)
        grouping = convert.grouping_from_proto(request.grouping)
        most = limit_from_proto(
            request.series_limit, field="series_limit", default=_DEFAULT_SERIES, most=_MAX_SERIES
        )
        async with self._snapshot(tenants_of_owner(owner)) as snapshot:
            earner = Earner(snapshot.projection_id, owner.id, currency)
            if grouping is RevenueGrouping.NONE:
                shown = [""]
            else:
                ranking = await revenue.rank(
                    snapshot.connection, earner, (period.start, period.end), grouping, most
                )
                shown = [group.key for group in ranking.groups]
            found = await revenue.series(snapshot.connection, earner, spans, grouping, shown)
        begins = [start for start, _ in spans]
        keys: list[str | None] = [*shown]
        if None in found:
            keys.append(None)
        return pb.GetRevenueSeriesResponse(
            series=[convert.series_to_proto(key, begins, found.get(key, {}), currency) for key in keys],
            interval=interval_to_proto(interval),
            as_of=as_of_to_proto(snapshot.known),
        )

    async def ListTopCustomers(
        self, request: pb.ListTopCustomersRequest, context: Context
    ) -> pb.ListTopCustomersResponse:
        ranking, known = await self._rank(request, RevenueGrouping.CUSTOMER)
        return pb.ListTopCustomersResponse(
            customers=_top_to_proto(ranking, request),
            total=convert.revenue_to_proto(ranking.total, currency_of(request.currency_code)),
            customer_count=ranking.group_count,
            top_five_share_bps=ranking.few_share_bps,
            concentration_index=ranking.concentration_index,
            as_of=as_of_to_proto(known),
        )

    async def ListTopAgents(
        self, request: pb.ListTopAgentsRequest, context: Context
    ) -> pb.ListTopAgentsResponse:
        ranking, known = await self._rank(request, RevenueGrouping.AGENT)
        return pb.ListTopAgentsResponse(
            agents=_top_to_proto(ranking, request),
            total=convert.revenue_to_proto(ranking.total, currency_of(request.currency_code)),
            as_of=as_of_to_proto(known),
        )

    async def _rank(self, request: TopRequest, grouping: RevenueGrouping) -> tuple[Ranking, Known]:
        """The groups that earned most, at least as many as the share of few needs."""
        owner, currency = organization_of(request), currency_of(request.currency_code)
        period = period_from_proto(request.period, self._clock)
        limit = max(_limit(request), FEW)
        async with self._snapshot(tenants_of_owner(owner)) as snapshot:
            earner = Earner(snapshot.projection_id, owner.id, currency)
            ranking = await revenue.rank(
                snapshot.connection, earner, (period.start, period.end), grouping, limit
            )
        return ranking, snapshot.known


def _limit(request: TopRequest) -> int:
    return limit_from_proto(request.limit, field="limit", default=_DEFAULT_TOP, most=_MAX_TOP)


def _top_to_proto(ranking: Ranking, request: TopRequest) -> list[revenue_pb2.RevenueGroup]:
    currency = currency_of(request.currency_code)
    return [
        convert.group_to_proto(group, ranking.total, currency) for group in ranking.groups[: _limit(request)]
    ]
