"""Between the contract and the domain: usage, and what models cost."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from services.kit.errors import InvalidArgument
from services.kit.times import timestamp
from services.reporting.domain.usage import Margin, MarginGrouping, Usage, UsageGroup, UsageGrouping
from services.reporting.rpc.convert import money
from tallystick.reporting.v1 import revenue_pb2, usage_report_pb2

_GROUPINGS: Final[Mapping[int, UsageGrouping]] = {
    usage_report_pb2.USAGE_GROUPING_UNSPECIFIED: UsageGrouping.NONE,
    usage_report_pb2.USAGE_GROUPING_AGENT: UsageGrouping.AGENT,
    usage_report_pb2.USAGE_GROUPING_AGENT_VERSION: UsageGrouping.AGENT_VERSION,
    usage_report_pb2.USAGE_GROUPING_CUSTOMER: UsageGrouping.CUSTOMER,
    usage_report_pb2.USAGE_GROUPING_ACTION: UsageGrouping.ACTION,
    usage_report_pb2.USAGE_GROUPING_MODEL: UsageGrouping.MODEL,
}
_MARGIN_GROUPINGS: Final[Mapping[int, MarginGrouping]] = {
    revenue_pb2.MARGIN_GROUPING_UNSPECIFIED: MarginGrouping.NONE,
    revenue_pb2.MARGIN_GROUPING_AGENT: MarginGrouping.AGENT,
    revenue_pb2.MARGIN_GROUPING_MODEL: MarginGrouping.MODEL,
    revenue_pb2.MARGIN_GROUPING_CUSTOMER: MarginGrouping.CUSTOMER,
    revenue_pb2.MARGIN_GROUPING_RUN: MarginGrouping.RUN,
}


def grouping_from_proto(number: int, *, of_customer: bool) -> UsageGrouping:
    """Raises InvalidArgument for a number that is no grouping, or none of a customer's usage."""
    if number not in _GROUPINGS:
        raise InvalidArgument.of("grouping", "must be a known grouping")
    grouping = _GROUPINGS[number]
    if of_customer and grouping is UsageGrouping.CUSTOMER:
        raise InvalidArgument.of("grouping", "must not be the customer: it is about one")
    return grouping


def margin_grouping_from_proto(number: int) -> MarginGrouping:
    """Raises InvalidArgument for a number that is no grouping."""
    if number not in _MARGIN_GROUPINGS:
        raise InvalidArgument.of("grouping", "must be a known grouping")
    return _MARGIN_GROUPINGS[number]


def usage_to_proto(usage: Usage, currency: str) -> usage_report_pb2.UsageTotals:
    return usage_report_pb2.UsageTotals(
        execution_count=usage.execution_count,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost=money(currency, usage.cost),
        outcomes=usage_report_pb2.OutcomeCounts(
            success=usage.success,
            failure=usage.failure,
            partial=usage.partial,
            unknown=usage.unknown,
            pending=usage.pending,
        ),
        success_rate_bps=usage.success_rate_bps,
    )


def group_to_proto(group: UsageGroup, currency: str) -> usage_report_pb2.UsageGroup:
    return usage_report_pb2.UsageGroup(key=group.key, totals=usage_to_proto(group.usage, currency))


def points_to_proto(
    begins: Sequence[datetime], usages: Sequence[Usage], currency: str
) -> list[usage_report_pb2.UsagePoint]:
    return [
        usage_report_pb2.UsagePoint(start_time=timestamp(begin), totals=usage_to_proto(usage, currency))
        for begin, usage in zip(begins, usages, strict=True)
    ]


def margin_to_proto(margin: Margin, currency: str) -> revenue_pb2.Margin:
    return revenue_pb2.Margin(
        key=margin.key,
        gross=money(currency, margin.gross),
        gross_of_known=money(currency, margin.gross_of_known),
        model_cost_usd=margin.cost(),
        margin_usd=margin.margin(currency),
        known_count=margin.known_count,
        unknown_count=margin.unknown_count,
    )
