"""What the benchmarks of payouts send, and what they are answered."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from bench.answerer import WEBHOOK_PATH, bank_payout, transfer
from bench.http_client import HttpError, answer_of, post
from bench.payouts import WEBHOOK_SECRET, events
from sandbox.stripe.spec import load
from services.payouts.domain.event import parse_event
from services.payouts.processor.signatures import check_signature
from services.payouts.web.webhooks import PATH


def test_what_is_answered_is_what_was_asked_for_and_as_stripe_documents_it() -> None:
    names = {"payout_id": "po_1", "organization_id": "org_1"}
    asked = {"amount": "2500", "currency": "usd", "metadata": names}
    made = transfer({**asked, "destination": "acct_1", "transfer_group": "po_1"}, 1)
    bank = bank_payout(asked, 2)
    assert (made["amount"], made["destination"], made["metadata"]) == (2500, "acct_1", names)
    assert (bank["amount"], bank["status"], bank["metadata"]) == (2500, "pending", names)
    assert [load().object_problems(one) for one in (made, bank)] == [[], []]


def test_events_are_signed_and_never_the_same() -> None:
    first, second = (request.partition(b"\r\n\r\n") for request in events("127.0.0.1:1", 2))
    headers = dict(line.split(": ", 1) for line in first[0].decode().split("\r\n")[1:])
    now = datetime.now(UTC)
    check_signature(
        first[2], headers["Stripe-Signature"], [WEBHOOK_SECRET], now=now, tolerance=timedelta(minutes=1)
    )
    ids = [parse_event(json.loads(body), now=now, caught_up=False).event_id for _, _, body in (first, second)]
    assert len(set(ids)) == 2
    assert load().object_problems(json.loads(first[2])) == []


def test_webhooks_go_where_payouts_receives_them() -> None:
    assert WEBHOOK_PATH == PATH


def test_a_request_says_how_long_it_is() -> None:
    request = post("127.0.0.1:1", "/path", b"{}", {"One": "two"})
    assert request.startswith(b"POST /path HTTP/1.1\r\nHost: 127.0.0.1:1\r\n")
    assert b"\r\nContent-Length: 2\r\n" in request
    assert request.endswith(b"\r\nOne: two\r\n\r\n{}")


def test_an_answer_is_its_status_and_the_length_of_its_body() -> None:
    assert answer_of(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 12\r\n\r\n") == (503, 12)


@pytest.mark.parametrize(
    "head",
    [b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 what\r\ncontent-length: 1\r\n\r\n"],
)
def test_an_answer_that_cannot_be_read_on_is_an_error(head: bytes) -> None:
    with pytest.raises(HttpError):
        answer_of(head)
