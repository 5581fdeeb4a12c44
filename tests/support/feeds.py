"""Feeds that tests write themselves: a server that answers ReadJournal and ReadUsage from lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from services.kit.client import connect
from services.kit.errors import InvalidArgument
from services.kit.status import to_grpc_status
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.metering.v1 import usage_feed_service_pb2 as metering
from tests.support.journal_columns import fill_columns

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class FakeFeed:
    """What one feed has, and how much of it can be seen."""

    log_id: str
    records: list[Any] = field(default_factory=list)
    # All of it, unless a number is set.
    visible: int | None = None
    # Whether it serves the journal in the form that is asked for, as older ledgers do not.
    knows_columns: bool = True

    @property
    def head(self) -> int:
        return len(self.records) if self.visible is None else min(self.visible, len(self.records))

    def batches(self, after: int, log_id: str, size: int) -> list[tuple[Sequence[Any], int]]:
        """The records behind a position, message by message, each with its last position.

        Raises InvalidArgument for another log, and for one that ends before the position, as the services do.
        """
        if log_id and log_id != self.log_id:
            raise InvalidArgument.of(
                "log_id", f"is not the current log, {self.log_id}: read it from position 0"
            )
        head = self.head
        if after > head:
            raise InvalidArgument.of("log_id", f"ends at position {head}")
        return [
            (self.records[start : min(start + size, head)], min(start + size, head))
            for start in range(after, head, size)
        ]


@dataclass
class FakeFeeds:
    """Both feeds, and the channel that reaches them."""

    channel: grpc.aio.Channel
    address: str
    journal: FakeFeed
    usage: FakeFeed


def _read_journal(feed: FakeFeed) -> Any:
    async def read(
        request: ledger.ReadJournalRequest, context: Context
    ) -> AsyncIterator[ledger.ReadJournalResponse]:
        for records, last in await _batches(feed, request, context):
            response = ledger.ReadJournalResponse(
                log_id=feed.log_id, last_position=last, head_position=feed.head
            )
            if feed.knows_columns and request.form == ledger.JOURNAL_FORM_COLUMNS:
                fill_columns(response.columns, records)
            else:
                response.transactions.extend(records)
            yield response

    return read


def _read_usage(feed: FakeFeed) -> Any:
    async def read(
        request: metering.ReadUsageRequest, context: Context
    ) -> AsyncIterator[metering.ReadUsageResponse]:
        for records, last in await _batches(feed, request, context):
            yield metering.ReadUsageResponse(
                log_id=feed.log_id, records=records, last_position=last, head_position=feed.head
            )

    return read


async def _batches(feed: FakeFeed, request: Any, context: Context) -> list[tuple[Sequence[Any], int]]:
    try:
        return feed.batches(request.after_position, request.log_id, request.batch_size)
    except InvalidArgument as error:
        # Raises.
        await context.abort_with_status(to_grpc_status(error))


def _handler(service: str, method: str, read: Any, request: Any) -> grpc.GenericRpcHandler:
    """One method of a service, which in a test has no other."""
    handler: Any = grpc.unary_stream_rpc_method_handler(
        read,
        request_deserializer=request.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )
    return grpc.method_handlers_generic_handler(service, {method: handler})


@asynccontextmanager
async def running_feeds() -> AsyncIterator[FakeFeeds]:
    """Serve two empty feeds until the end of the `async with`."""
    journal, usage = FakeFeed("log_journal"), FakeFeed("log_usage")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            _handler(
                "tallystick.ledger.v1.LedgerService",
                "ReadJournal",
                _read_journal(journal),
                ledger.ReadJournalRequest,
            ),
            _handler(
                "tallystick.metering.v1.UsageFeedService",
                "ReadUsage",
                _read_usage(usage),
                metering.ReadUsageRequest,
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    async with connect(address, "nobody looks at it") as channel:
        try:
            yield FakeFeeds(channel, address, journal, usage)
        finally:
            await server.stop(None)
