"""What is read of an event, who handles it, and what becomes of it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.payouts.domain.event import (
    DONE,
    EventError,
    EventState,
    Handlers,
    Outcome,
    ProcessorEvent,
    arrived,
    ended,
    failing,
    parse_event,
    quarantined,
)

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


async def _first(_: ProcessorEvent) -> Outcome:
    return DONE


async def _second(_: ProcessorEvent) -> Outcome:
    return DONE


def _content(**changes: Any) -> dict[str, Any]:
    return {
        "object": "event",
        "id": "evt_1",
        "type": "transfer.created",
        "created": 1_790_000_000,
        "livemode": False,
        "data": {"object": {"id": "tr_1"}},
        **changes,
    }


def _parsed(**changes: Any) -> ProcessorEvent:
    return parse_event(_content(**changes), now=NOW, caught_up=False)


def test_what_an_event_is_about_is_kept_and_nothing_of_what_it_says() -> None:
    event = _parsed(account="acct_1", data={"object": {"id": "tr_1", "amount": 5}})
    assert event == ProcessorEvent(
        event_id="evt_1",
        type="transfer.created",
        stripe_account_id="acct_1",
        object_id="tr_1",
        livemode=False,
        caught_up=False,
        create_time=datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC),
        receive_time=NOW,
        next_attempt_time=NOW,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"object": "v2.core.event"},
        {"id": ""},
        {"id": "tr_1"},
        {"id": "evt_\x00"},
        {"id": "evt_" + "x" * 300},
        {"type": None},
        {"created": True},
        {"created": -1},
        {"created": 10**12},
        {"created": "1790000000"},
        {"livemode": 0},
        {"account": ""},
        {"account": 5},
        {"data": None},
        {"data": {}},
        {"data": {"object": []}},
        {"data": {"object": {"id": 5}}},
        {"data": {"object": {"id": "\ud800"}}},
    ],
)
def test_what_is_no_event_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(EventError):
        _parsed(**changes)


def test_the_longest_prefix_handles_an_event() -> None:
    handlers = Handlers({"charge.": _first, "charge.dispute.": _second, "refund.failed": _second})
    assert handlers.find("charge.succeeded") is _first
    assert handlers.find("charge.dispute.created") is _second
    assert handlers.find("refund.failed") is _second
    assert handlers.find("refund.failed_again") is None
    assert handlers.find("charged") is None


def test_events_of_the_other_mode_or_of_no_handler_are_ignored() -> None:
    handlers = Handlers({"transfer.": _first})
    assert arrived(_parsed(), handlers, livemode=False) == _parsed()
    assert arrived(_parsed(livemode=True), handlers, livemode=True).state is EventState.PENDING
    for event in (_parsed(livemode=True), _parsed(type="customer.created")):
        stored = arrived(event, handlers, livemode=False)
        assert (stored.state, stored.next_attempt_time) == (EventState.IGNORED, None)
        assert stored.note
    with pytest.raises(EventError):
        arrived(_parsed(data={"object": {"id": "../charges"}}), handlers, livemode=False)


def test_only_what_fails_is_tried_again_and_ever_later() -> None:
    event = _parsed()
    over = ended(event, quarantined("x" * 1000), NOW)
    assert (over.state, len(over.note), over.next_attempt_time) == (EventState.QUARANTINED, 500, None)
    again = ended(event, failing("away"), NOW)
    assert again.next_attempt_time is not None
    assert NOW < again.next_attempt_time <= NOW + timedelta(minutes=15)
