"""ReconciliationService: the payment processor's books compared with ours, and what came from there."""

from typing import Any, Final

import grpc

from services.kit.auth import current_principal
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import InvalidArgument, NotFound, Unavailable
from services.kit.pages import Page
from services.kit.tenancy import scope, tenants_of
from services.kit.text import check_text
from services.kit.times import optional_time_from_proto
from services.payouts.domain.event import ProcessorEvent
from services.payouts.processor.errors import ProcessorError
from services.payouts.reconciler import Reconciler
from services.payouts.rpc.event_convert import event_to_proto, received_before, state_from_proto
from services.payouts.rpc.reconciliation_convert import comparison_to_proto
from services.payouts.store import events
from tallystick.payouts.v1 import reconciliation_service_pb2 as pb
from tallystick.payouts.v1 import reconciliation_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_LONGEST_EVENT_ID: Final = 255


class ReconciliationService(reconciliation_service_pb2_grpc.ReconciliationServiceServicer):
    """Serves ReconciliationService."""

    def __init__(self, *, writer: Database, reader: Database, reconciler: Reconciler, clock: Clock) -> None:
        self._writer = writer
        self._reader = reader
        self._reconciler = reconciler
        self._clock = clock

    async def Reconcile(self, request: pb.ReconcileRequest, context: Context) -> pb.ReconcileResponse:
        start = optional_time_from_proto(request, "start_time")
        end = optional_time_from_proto(request, "end_time")
        if start is not None and end is not None and start >= end:
            raise InvalidArgument.of("end_time", "must be later than start_time")
        try:
            found = await self._reconciler.compare(start, end)
        except ProcessorError as error:
            raise Unavailable(f"the payment processor's books cannot be read: {error.message}") from error
        return comparison_to_proto(found)

    async def ListProcessorEvents(
        self, request: pb.ListProcessorEventsRequest, context: Context
    ) -> pb.ListProcessorEventsResponse:
        state = state_from_proto(request.state)
        page = Page.parse(
            request.page_size, request.page_token, key_types=(str, str), filter={"state": state}
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await events.list_newest(connection, state, received_before(page), page.limit)
        shown, token = page.cut(found, lambda one: (one.receive_time.isoformat(), one.event_id))
        return pb.ListProcessorEventsResponse(events=map(event_to_proto, shown), next_page_token=token)

    async def RetryProcessorEvent(
        self, request: pb.RetryProcessorEventRequest, context: Context
    ) -> pb.RetryProcessorEventResponse:
        event_id = check_text(request.event_id, "event_id", shortest=1, longest=_LONGEST_EVENT_ID)
        return pb.RetryProcessorEventResponse(event=event_to_proto(await self._try_again(event_id)))

    async def _try_again(self, event_id: str) -> ProcessorEvent:
        async with self._writer.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            # One that is pending or done stays so: a repeated call finds what the first one did.
            await events.try_again(connection, event_id, self._clock.now())
            event = await events.find(connection, event_id)
        if event is None:
            raise NotFound(
                "there is no such event", reason="PROCESSOR_EVENT_NOT_FOUND", metadata={"event_id": event_id}
            )
        return event
