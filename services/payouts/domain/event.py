"""Events of the payment processor: what is kept of one, and what can become of it.

An event only says that something happened to an object. What happened is read from the object itself when the
event is handled, so that late, repeated and reordered events all come to the same end.
"""

import dataclasses
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from services.payouts.domain.backoff import backoff

_EVENT_ID: Final = re.compile(r"evt_[A-Za-z0-9_]{1,250}")
_ACCOUNT_ID: Final = re.compile(r"acct_[A-Za-z0-9_]{1,250}")
_OBJECT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
_TYPE: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,200}")
_LONGEST_OBJECT_ID: Final = 255
# The year 2100: nothing later is the time of an event.
_LATEST: Final = 4_102_444_800
_LONGEST_NOTE: Final = 500


class EventState(StrEnum):
    """What became of an event; values as in the table."""

    PENDING = "pending"
    DONE = "done"
    IGNORED = "ignored"
    QUARANTINED = "quarantined"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class ProcessorEvent:
    """A row of payouts.processor_event. Times are UTC."""

    event_id: str
    type: str
    # The connected account that it is of; "" for the platform's own.
    stripe_account_id: str
    # "" if the object has none, as a balance. Some are made by people, but none that we handle.
    object_id: str
    livemode: bool
    caught_up: bool
    create_time: datetime
    receive_time: datetime
    state: EventState = EventState.PENDING
    note: str = ""
    # Attempts to handle it that were begun.
    attempt_count: int = 0
    next_attempt_time: datetime | None = None


class EventError(ValueError):
    """What was given is not an event; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of handling an event. FAILING means that it is to be tried again."""

    state: EventState
    note: str = ""


Handler = Callable[[ProcessorEvent], Awaitable[Outcome]]

DONE: Final = Outcome(EventState.DONE)


def ignored(note: str) -> Outcome:
    """It does not concern us."""
    return Outcome(EventState.IGNORED, note)


def quarantined(note: str) -> Outcome:
    """It is about something that is not ours, or not as our books say: an operator should look."""
    return Outcome(EventState.QUARANTINED, note)


def failing(note: str) -> Outcome:
    """It could not be handled now."""
    return Outcome(EventState.FAILING, note)


class Handlers:
    """Who handles which events: the handler with the longest prefix of an event's type.

    A prefix is a whole type or ends with a dot, such as "transfer.".
    """

    def __init__(self, by_prefix: Mapping[str, Handler]) -> None:
        self._by_prefix = sorted(by_prefix.items(), key=lambda item: len(item[0]), reverse=True)

    def find(self, type: str) -> Handler | None:
        """The handler of a type; None if that never concerns us."""
        for prefix, handler in self._by_prefix:
            if type == prefix or (prefix.endswith(".") and type.startswith(prefix)):
                return handler
        return None


def parse_event(content: object, *, now: datetime, caught_up: bool) -> ProcessorEvent:
    """The event in a webhook's decoded JSON, or in the list of events. Raises EventError."""
    if not isinstance(content, Mapping) or content.get("object") != "event":
        raise EventError("it is not an event object")
    data = content.get("data")
    about = data.get("object") if isinstance(data, Mapping) else None
    if not isinstance(about, Mapping):
        raise EventError("data.object is missing")
    livemode = content.get("livemode")
    if not isinstance(livemode, bool):
        raise EventError("livemode must be true or false")
    return ProcessorEvent(
        event_id=_text(content, "id", _EVENT_ID),
        type=_text(content, "type", _TYPE),
        stripe_account_id=_optional_text(content, "account", _ACCOUNT_ID),
        object_id=_object_id(about),
        livemode=livemode,
        caught_up=caught_up,
        create_time=_time(content.get("created")),
        receive_time=now,
        next_attempt_time=now,
    )


def arrived(event: ProcessorEvent, handlers: Handlers, *, livemode: bool) -> ProcessorEvent:
    """The event as it is stored when it comes: to be handled, or ignored. Raises EventError if it is to be
    handled and does not say what it is about.
    """
    if event.livemode is not livemode:
        # An endpoint for live events of connected accounts is sent their test events too.
        ours, other = ("live", "test") if livemode else ("test", "live")
        return ended(
            event, ignored(f"of {other} mode, and our API key is of {ours} mode"), event.receive_time
        )
    if handlers.find(event.type) is None:
        return ended(event, ignored("of a type that does not concern us"), event.receive_time)
    # It becomes part of an address.
    if not _OBJECT_ID.fullmatch(event.object_id):
        raise EventError("data.object.id is missing or malformed")
    return event


def ended(event: ProcessorEvent, outcome: Outcome, now: datetime) -> ProcessorEvent:
    """The event after an attempt to handle it."""
    again = outcome.state is EventState.FAILING
    return dataclasses.replace(
        event,
        state=outcome.state,
        note=outcome.note[:_LONGEST_NOTE],
        next_attempt_time=now + backoff(event.attempt_count) if again else None,
    )


def _text(content: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise EventError(f"{name} is missing or malformed")
    return value


def _optional_text(content: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    return "" if content.get(name) is None else _text(content, name, pattern)


def _object_id(about: Mapping[str, Any]) -> str:
    value = about.get("id")
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _LONGEST_OBJECT_ID or not value.isprintable():
        raise EventError("data.object.id is malformed")
    return value


def _time(created: object) -> datetime:
    # A bool is an int to Python.
    if not isinstance(created, int) or isinstance(created, bool) or not 0 <= created < _LATEST:
        raise EventError("created is missing or malformed")
    return datetime.fromtimestamp(created, UTC)
