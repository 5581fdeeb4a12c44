"""Between the contract and the domain: revenue."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from services.kit.errors import InvalidArgument
from services.kit.times import timestamp
from services.reporting.domain.revenue import Revenue, RevenueGroup, RevenueGrouping, RevenueParts, Standing
from services.reporting.domain.shares import share_bps
from services.reporting.rpc.convert import money
from tallystick.reporting.v1 import revenue_pb2

_GROUPINGS: Final[Mapping[int, RevenueGrouping]] = {
    revenue_pb2.REVENUE_GROUPING_UNSPECIFIED: RevenueGrouping.NONE,
    revenue_pb2.REVENUE_GROUPING_AGENT: RevenueGrouping.AGENT,
    revenue_pb2.REVENUE_GROUPING_AGENT_VERSION: RevenueGrouping.AGENT_VERSION,
    revenue_pb2.REVENUE_GROUPING_CUSTOMER: RevenueGrouping.CUSTOMER,
    revenue_pb2.REVENUE_GROUPING_ACTION: RevenueGrouping.ACTION,
}
_MONTHS_OF_A_YEAR: Final = 12


def grouping_from_proto(number: int) -> RevenueGrouping:
    """Raises InvalidArgument for a number that is no grouping."""
    if number not in _GROUPINGS:
        raise InvalidArgument.of("grouping", "must be a known grouping")
    return _GROUPINGS[number]


def revenue_to_proto(revenue: Revenue, currency: str) -> revenue_pb2.Revenue:
    return revenue_pb2.Revenue(
        gross=money(currency, revenue.gross),
        platform_fees=money(currency, revenue.platform_fees),
        processing_fees=money(currency, revenue.processing_fees),
        net=money(currency, revenue.net),
        charge_count=revenue.charge_count,
    )


def group_to_proto(group: RevenueGroup, total: Revenue, currency: str) -> revenue_pb2.RevenueGroup:
    """A group, with its share in the total."""
    return revenue_pb2.RevenueGroup(
        key=group.key,
        revenue=revenue_to_proto(group.revenue, currency),
        share_bps=share_bps(group.revenue.gross, total.gross),
    )


def points_to_proto(
    begins: Sequence[datetime], revenues: Sequence[Revenue], currency: str
) -> list[revenue_pb2.RevenuePoint]:
    return [
        revenue_pb2.RevenuePoint(start_time=timestamp(begin), revenue=revenue_to_proto(revenue, currency))
        for begin, revenue in zip(begins, revenues, strict=True)
    ]


def series_to_proto(
    key: str | None, begins: Sequence[datetime], found: Mapping[int, Revenue], currency: str
) -> revenue_pb2.RevenueSeries:
    """The series of a key, None for all others, from what is found of its steps by number."""
    revenues = [found.get(number, Revenue()) for number in range(len(begins))]
    return revenue_pb2.RevenueSeries(
        key=key or "",
        others=key is None,
        points=points_to_proto(begins, revenues, currency),
        total=revenue_to_proto(sum(revenues, Revenue()), currency),
    )


def parts_to_proto(parts: RevenueParts, currency: str) -> revenue_pb2.RevenueParts:
    return revenue_pb2.RevenueParts(
        usage=revenue_to_proto(parts.usage, currency),
        subscriptions=revenue_to_proto(parts.subscriptions, currency),
        period_closings=revenue_to_proto(parts.period_closings, currency),
    )


def run_rate_to_proto(usage: Revenue, currency: str) -> revenue_pb2.RunRate:
    """What would come of the usage of a month so far."""
    return revenue_pb2.RunRate(
        monthly_proxy=money(currency, usage.net),
        annual_proxy=money(currency, usage.net * _MONTHS_OF_A_YEAR),
    )


def standing_to_proto(standing: Standing, currency: str) -> revenue_pb2.EarningsStanding:
    return revenue_pb2.EarningsStanding(
        available=money(currency, standing.available),
        pending=money(currency, standing.pending),
        uncollected=money(currency, standing.uncollected),
        in_transit=money(currency, standing.in_transit),
    )
