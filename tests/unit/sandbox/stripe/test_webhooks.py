"""Webhooks: signed, to whom they concern, again and again, and wrongly on demand."""

from __future__ import annotations

from typing import Any

import pytest
import stripe as library
from stripe import StripeClient

from sandbox.process import SandboxError
from sandbox.stripe.server import StripeStandIn
from tests.unit.sandbox.stripe.driving import CONNECT_SECRET, SECRET, START, Received, Receiver, key, payee

DAY = 86_400


def customers(stripe: StripeClient, count: int = 1) -> list[str]:
    return [stripe.v1.customers.create({"name": str(n)}, key()).id for n in range(count)]


def about(receiver: Receiver) -> list[str]:
    return [got.event["data"]["object"]["id"] for got in receiver.received]


def accepted(got: Received, secret: str, now: int = START) -> bool:
    """Whether the library takes the signature, which looks at today's clock: so the age is checked here."""
    try:
        library.Webhook.construct_event(got.body, got.signature, secret, tolerance=0)
    except library.SignatureVerificationError:
        return False
    return abs(int(got.signature.removeprefix("t=").partition(",")[0]) - now) <= 300


def test_events_go_signed_to_whom_they_concern(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    account = payee(standin, stripe)
    standin.control.fund(100)
    stripe.v1.transfers.create({"amount": 1, "currency": "usd", "destination": account}, key())
    standin.control.settle_webhooks()
    platform = [got for got in receiver.received if got.path == "/platform"]
    connect = [got for got in receiver.received if got.path == "/connect"]
    assert [got.event["type"] for got in platform] == ["transfer.created"]
    assert {got.event["account"] for got in connect} == {account}
    assert all(accepted(got, SECRET) for got in platform)
    assert all(accepted(got, CONNECT_SECRET) for got in connect)
    assert not any(accepted(got, SECRET) for got in connect)
    request = platform[0].event["request"]
    seen = standin.control.requests("transfers.create")[-1]
    assert request == {"id": seen["id"], "idempotency_key": seen["idempotency_key"]}


def test_a_refused_event_is_sent_again_for_three_days(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    receiver.statuses = [500, 302]
    customers(stripe)
    standin.control.settle_webhooks()
    assert len(receiver.received) == 1
    pending = stripe.v1.events.list({"delivery_success": False}).data
    assert [event.pending_webhooks for event in pending] == [1]
    standin.control.advance(59)
    assert len(receiver.received) == 1
    standin.control.advance(1)
    assert len(receiver.received) == 2
    standin.control.advance(120)
    assert [
        accepted(got, SECRET, START + after)
        for got, after in zip(receiver.received, (0, 60, 180), strict=True)
    ]
    assert stripe.v1.events.list({"delivery_success": False}).data == []


def test_an_event_is_given_up_and_left_to_the_list(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    receiver.statuses = [500] * 100
    made = customers(stripe, 3)
    for _ in range(96):
        standin.control.advance(3_600)
    tried = len(receiver.received)
    receiver.statuses = []
    standin.control.advance(10 * DAY)
    assert len(receiver.received) == tried
    missed = stripe.v1.events.list({"delivery_success": False, "types": ["customer.created"]}).data
    assert [event.data.object["id"] for event in missed] == made[::-1]
    newer: Any = {"ending_before": missed[-1].id}
    assert [event.id for event in stripe.v1.events.list(newer).auto_paging_iter()] == [
        missed[1].id,
        missed[0].id,
    ]
    standin.control.run("webhooks duplicate", event=missed[0].id)
    assert len(stripe.v1.events.list({"delivery_success": False}).data) == 2
    standin.control.advance(20 * DAY)
    assert stripe.v1.events.list().data == []


def test_events_can_gather_and_come_in_another_order(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    standin.control.run("webhooks pause")
    made = customers(stripe, 3)
    standin.control.settle_webhooks()
    standin.control.run("webhooks reorder", order="reverse")
    standin.control.run("webhooks resume")
    assert about(receiver)[-3:] == made[::-1]


def test_an_event_can_come_twice(standin: StripeStandIn, stripe: StripeClient, receiver: Receiver) -> None:
    standin.control.run("webhooks mishap", kind="duplicate")
    customers(stripe)
    standin.control.settle_webhooks()
    event = receiver.received[0].event["id"]
    standin.control.run("webhooks duplicate", event=event)
    assert [got.event["id"] for got in receiver.received] == [event] * 3


def test_a_change_can_make_two_events(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    standin.control.run("events double", type="customer.*")
    customers(stripe, 2)
    standin.control.settle_webhooks()
    first, second, third = receiver.received
    assert first.event["data"] == second.event["data"] != third.event["data"]
    assert first.event["id"] != second.event["id"]


def test_mishaps_and_doubles_to_come_can_be_forgotten(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    standin.control.run("events double", type="customer.*", count=20)
    standin.control.run("webhooks mishap", kind="no_signature", count=20)
    standin.control.run("webhooks clear")
    customers(stripe)
    standin.control.settle_webhooks()
    (got,) = receiver.received
    assert accepted(got, SECRET, START)


def test_deliveries_are_listed_by_type_the_newest_last(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    made = customers(stripe, 3)
    for each in made:
        stripe.v1.customers.delete(each, options=key())
    standin.control.settle_webhooks()
    of_all = standin.control.run("webhooks list")["done"]
    assert len(of_all) == 6
    created = standin.control.run("webhooks list", type="customer.created", limit=2)["done"]
    assert [one["event"] for one in created] == [
        one["event"] for one in of_all if one["type"] == "customer.created"
    ][1:]
    assert standin.control.run("webhooks list", limit=0)["done"] == []
    standin.control.run("webhooks pause")
    customers(stripe)
    assert standin.control.run("webhooks list", type="payout.*")["waiting"] == []
    assert len(standin.control.run("webhooks list", type="customer.*")["waiting"]) == 1


def test_an_event_can_be_late_or_held(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    standin.control.run("webhooks mishap", kind="delay", type="customer.*", seconds=100)
    standin.control.run("webhooks mishap", kind="drop", type="customer.*")
    late, held, prompt = customers(stripe, 3)
    standin.control.settle_webhooks()
    # The first event met both: it was late, and it was held.
    assert about(receiver) == [held, prompt]
    standin.control.advance(100)
    assert about(receiver) == [held, prompt]
    standin.control.deliver()
    assert about(receiver) == [held, prompt, late]


@pytest.mark.parametrize("kind", ["wrong_signature", "no_signature", "altered_body", "stale", "future"])
def test_a_delivery_can_be_forged(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver, kind: str
) -> None:
    receiver.statuses = [400]
    standin.control.run("webhooks mishap", kind=kind)
    customers(stripe)
    standin.control.settle_webhooks()
    assert not accepted(receiver.received[0], SECRET)
    standin.control.advance(60)
    assert accepted(receiver.received[1], SECRET, START + 60)


def test_a_test_event_can_come_to_a_live_endpoint(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    standin.control.run("webhooks mishap", kind="not_live")
    customers(stripe, 2)
    standin.control.settle_webhooks()
    assert [got.event["livemode"] for got in receiver.received] == [True, False]


def test_a_rolled_secret_signs_along_for_a_while(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    endpoint = standin.control.run("webhooks list")["endpoints"][0]
    rolled = standin.control.run("webhooks roll", endpoint=endpoint["id"], keep_seconds=3_600)["secret"]
    for _ in range(2):
        customers(stripe)
        standin.control.settle_webhooks()
        standin.control.advance(3_600)
    during, after = receiver.received
    assert accepted(during, SECRET)
    assert accepted(during, rolled)
    assert not accepted(after, SECRET, START + 3_600)
    assert accepted(after, rolled, START + 3_600)


def test_an_event_can_be_about_anything(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    payee(standin, stripe)
    found = {"object": "balance", "available": [], "pending": [], "livemode": False}
    standin.control.run("events send", type="balance.available", object=found, account="acct_unknown")
    standin.control.settle_webhooks()
    assert receiver.received[-1].path == "/connect"
    assert receiver.received[-1].event["account"] == "acct_unknown"


def test_endpoints_are_made_changed_and_removed(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    made = stripe.v1.webhook_endpoints.create(
        {
            "url": receiver.url + "/own",
            "enabled_events": ["customer.created"],
            "api_version": "2026-09-30.endive",
        },
        key(),
    )
    assert made.secret is not None
    assert getattr(stripe.v1.webhook_endpoints.retrieve(made.id), "secret", None) is None
    customers(stripe)
    standin.control.settle_webhooks()
    own = [got for got in receiver.received if got.path == "/own"]
    assert [got.event["api_version"] for got in own] == ["2026-09-30.endive"]
    assert accepted(own[0], made.secret)
    assert stripe.v1.webhook_endpoints.update(made.id, {"disabled": True}, key()).status == "disabled"
    customers(stripe)
    stripe.v1.webhook_endpoints.delete(made.id)
    standin.control.settle_webhooks()
    assert len([got for got in receiver.received if got.path == "/own"]) == 1
    assert len(stripe.v1.webhook_endpoints.list().data) == 2


def test_nothing_is_sent_off_this_machine(standin: StripeStandIn, stripe: StripeClient) -> None:
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.webhook_endpoints.create({"url": "https://example.com", "enabled_events": ["*"]}, key())
    with pytest.raises(SandboxError, match="on this machine only"):
        standin.control.run("webhooks add", url="http://192.0.2.1/")


def test_events_are_listed_by_type_and_time(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    standin.control.advance(10)
    customers(stripe)
    assert [event.type for event in stripe.v1.events.list().data] == ["customer.created"]
    assert stripe.v1.events.list({"created": {"lt": START + 10}}).data == []
    theirs = stripe.v1.events.list({"type": "account.updated"}, {"stripe_account": account}).data
    assert [event.account for event in theirs] == [account]
    assert stripe.v1.events.retrieve(theirs[0].id, options={"stripe_account": account}).id == theirs[0].id
