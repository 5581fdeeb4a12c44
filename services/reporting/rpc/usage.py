"""What agents did, what it cost, and what their models cost: RPCs about usage."""

from datetime import timedelta
from typing import Final

from services.kit.errors import InvalidArgument
from services.reporting.domain.usage import MarginGrouping
from services.reporting.rpc import usage_convert as convert
from services.reporting.rpc.access import organization_of, owner_of, tenants_of_owner
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
from services.reporting.store import usage
from services.reporting.store.usage import User
from tallystick.reporting.v1 import period_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb

_DEFAULT_GROUPS: Final = 100
_MAX_GROUPS: Final = 1000
# No sums are kept by run: each event of the period is read.
_LONGEST_OF_RUNS: Final = timedelta(days=32)


class UsageRpcs(ReportingBase):
    """Usage, and margins."""

    _catalogue: str

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        owner, currency = owner_of(request), currency_of(request.currency_code)
        period = period_from_proto(request.period, self._clock)
        grouping = convert.grouping_from_proto(request.grouping, of_customer=owner.is_customer)
        limit = limit_from_proto(request.limit, field="limit", default=_DEFAULT_GROUPS, most=_MAX_GROUPS)
        interval = interval_from_proto(request.interval, period)
        spans = steps_of(period, interval) if request.include_series else []
        async with self._snapshot(tenants_of_owner(owner)) as snapshot:
            user = User(snapshot.projection_id, owner, currency)
            ranking = await usage.rank(snapshot.connection, user, (period.start, period.end), grouping, limit)
            points = await usage.sum_spans(snapshot.connection, user, spans) if spans else []
        return pb.GetUsageResponse(
            groups=[convert.group_to_proto(group, currency) for group in ranking.groups],
            total=convert.usage_to_proto(ranking.total, currency),
            points=convert.points_to_proto([start for start, _ in spans], points, currency),
            interval=interval_to_proto(interval) if spans else period_pb2.INTERVAL_UNSPECIFIED,
            as_of=as_of_to_proto(snapshot.known),
        )

    async def GetMargin(self, request: pb.GetMarginRequest, context: Context) -> pb.GetMarginResponse:
        owner, currency = organization_of(request), currency_of(request.currency_code)
        period = period_from_proto(request.period, self._clock)
        grouping = convert.margin_grouping_from_proto(request.grouping)
        limit = limit_from_proto(request.limit, field="limit", default=_DEFAULT_GROUPS, most=_MAX_GROUPS)
        if grouping is MarginGrouping.RUN and period.end - period.start > _LONGEST_OF_RUNS:
            raise InvalidArgument.of(
                "period", f"must be at most {_LONGEST_OF_RUNS.days} days when runs are told apart"
            )
        async with self._snapshot(tenants_of_owner(owner)) as snapshot:
            user = User(snapshot.projection_id, owner, currency)
            margins, total = await usage.margins(
                snapshot.connection, user, (period.start, period.end), grouping, limit
            )
        return pb.GetMarginResponse(
            margins=[convert.margin_to_proto(margin, currency) for margin in margins],
            total=convert.margin_to_proto(total, currency),
            catalogue=self._catalogue,
            as_of=as_of_to_proto(snapshot.known),
        )
