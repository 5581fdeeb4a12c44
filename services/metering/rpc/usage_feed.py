"""UsageFeedService: the feed of usage that read models are made from.

Messages are filled in place, from the rows: made one by one and put together they would take several times as
long.
"""

import json
from collections.abc import AsyncIterator, Iterable
from heapq import merge
from typing import Any

import grpc

from services.kit.auth import current_principal
from services.kit.db import Database
from services.kit.feeds import FeedSlice, in_turns, read_feed
from services.kit.tenancy import scope_hot, tenants_of
from services.kit.times import set_timestamp
from services.metering.domain.outcome import DeferredOutcome
from services.metering.domain.rating import LineKind
from services.metering.domain.usage_event import EventKey
from services.metering.domain.usage_record import charge_id
from services.metering.rpc.convert import LINE_KINDS_TO_PROTO, deferred_to_proto, line_to_proto
from services.metering.store.usage_feed import DecidedUsage, UsageRows, read_usage
from tallystick.metering.v1 import charge_line_pb2, usage_feed_service_pb2_grpc
from tallystick.metering.v1 import usage_feed_service_pb2 as pb


class UsageFeedService(usage_feed_service_pb2_grpc.UsageFeedServiceServicer):
    """Serves UsageFeedService."""

    def __init__(self, reader: Database) -> None:
        self._reader = reader

    async def ReadUsage(
        self,
        request: pb.ReadUsageRequest,
        context: grpc.aio.ServicerContext[pb.ReadUsageRequest, pb.ReadUsageResponse],
    ) -> AsyncIterator[pb.ReadUsageResponse]:
        principal = current_principal()

        async def read(log_id: str, after: int, size: int) -> FeedSlice[UsageRows]:
            async with self._reader.hot() as connection:
                await scope_hot(connection, tenants_of(principal))
                return await read_usage(connection, log_id, after, size)

        async for found in read_feed(request, read):
            yield await _response(found)


async def _response(found: FeedSlice[UsageRows]) -> pb.ReadUsageResponse:
    response = pb.ReadUsageResponse(
        log_id=found.log_id, last_position=found.last_position, head_position=found.head_position
    )
    recorded, decided = found.records
    # Outcomes that are decided later are few.
    records = [*merge(recorded, decided, key=lambda one: one.position)] if decided else recorded
    async for some in in_turns(records):
        for one in some:
            sequenced = response.records.add()
            sequenced.position = one.position
            if isinstance(one, DecidedUsage):
                _fill_decided(sequenced.decided, one)
            else:
                _fill_recorded(sequenced.recorded, one)
    return response


def _fill_recorded(recorded: pb.RecordedUsage, row: Any) -> None:
    event, currency = recorded.event, row.currency_code
    event.MergeFromString(row.content)
    event.evidence_ref = row.evidence_ref
    event.evidence_hash = row.evidence_hash
    set_timestamp(event.occur_time, row.occur_time)
    recorded.organization_id = row.organization_id
    recorded.charge_id = charge_id(EventKey(row.customer_id, row.workflow_id, row.ordinal))
    price = recorded.price
    price.currency_code = currency
    price.amount_micros = row.amount_micros
    lines = recorded.lines
    for name, quantity, unit_amount, per_units, micros, *rest in json.loads(row.lines):
        line = lines.add()
        line.component_name = name
        line.quantity = quantity
        unit_price = line.unit_price
        unit_price.amount = unit_amount
        unit_price.per_units = per_units
        amount = line.amount
        amount.currency_code = currency
        amount.amount_micros = micros
        if rest:
            kind, line.tier = rest
            line.kind = LINE_KINDS_TO_PROTO[LineKind(kind)]
    recorded.price_version_id = row.price_version_id
    set_timestamp(recorded.create_time, row.create_time)


def _fill_decided(decided: pb.DecidedOutcome, one: DecidedUsage) -> None:
    decided.outcome.CopyFrom(deferred_to_proto(one.deferred))
    decided.organization_id = one.organization_id
    decided.lines.extend(_bonus_lines(one.deferred))


def _bonus_lines(deferred: DeferredOutcome) -> Iterable[charge_line_pb2.ChargeLine]:
    bonus = deferred.bonuses.get(deferred.outcome)
    lines = () if bonus is None else bonus.lines
    return [line_to_proto(line, deferred.currency_code) for line in lines]
