"""Events of the payment processor between the contract and the domain."""

from datetime import UTC, datetime
from typing import Final

from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.pages import Page
from services.kit.times import timestamp
from services.payouts.domain.event import EventState, ProcessorEvent
from tallystick.payouts.v1 import reconciliation_service_pb2 as pb

_STATE_TO_PROTO: Final[dict[EventState, pb.ProcessorEventState.ValueType]] = {
    state: pb.ProcessorEventState.Value(f"PROCESSOR_EVENT_STATE_{state.name}") for state in EventState
}
_STATE_FROM_PROTO: Final[dict[int, EventState]] = {number: state for state, number in _STATE_TO_PROTO.items()}


def state_from_proto(state: int) -> EventState | None:
    """The state of a filter; None for any. Raises InvalidArgument for one that is not known."""
    if state == pb.PROCESSOR_EVENT_STATE_UNSPECIFIED:
        return None
    if state not in _STATE_FROM_PROTO:
        raise InvalidArgument.of("state", "must be a known state")
    return _STATE_FROM_PROTO[state]


def event_to_proto(event: ProcessorEvent) -> pb.ProcessorEvent:
    """An event as it travels."""
    return pb.ProcessorEvent(
        event_id=event.event_id,
        type=event.type,
        stripe_account_id=event.stripe_account_id,
        object_id=event.object_id,
        state=_STATE_TO_PROTO[event.state],
        note=event.note,
        create_time=timestamp(event.create_time),
        receive_time=timestamp(event.receive_time),
        caught_up=event.caught_up,
    )


def received_before(page: Page) -> tuple[datetime, str] | None:
    """When the last event of the page before was received, and its id; None for the first page."""
    if page.after is None:
        return None
    received, event_id = page.after
    try:
        # A token is not signed: it may say anything.
        return datetime.fromisoformat(str(received)).astimezone(UTC), str(event_id)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            "page_token is damaged",
            reason="INVALID_PAGE_TOKEN",
            field_violations=[FieldViolation("page_token", "is damaged")],
        ) from None
