"""Where a stand-in more lenient than Stripe would hide lost money, or one with other events mislead."""

from __future__ import annotations

from typing import Any

import pytest
import stripe as library
from stripe import StripeClient

from sandbox.stripe.server import StripeStandIn
from tests.unit.sandbox.stripe.driving import START, Receiver, key, pay, payee

DAY = 86_400


@pytest.fixture
def account(standin: StripeStandIn, stripe: StripeClient) -> str:
    standin.control.fund(10_000)
    return payee(standin, stripe)


def paid(stripe: StripeClient, card: str = "pm_card_visa", amount: int = 5_000) -> Any:
    """A payment that succeeded."""
    params: Any = {"amount": amount, "currency": "usd", "payment_method": card, "confirm": True}
    return stripe.v1.payment_intents.create(params, key())


def test_what_cannot_be_expanded_is_refused_before_money_moves(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    for path in ("colour", "amount", "destination.colour", "a.b.c.d.e"):
        with pytest.raises(library.InvalidRequestError) as refused:
            pay(stripe, account, 1, expand=[path])
        assert refused.value.param == "expand"
    assert stripe.v1.transfers.list().data == []
    transfer = pay(stripe, account, 1, expand=["balance_transaction.source", "destination_payment"])
    assert transfer.balance_transaction.source.id == transfer.id
    assert transfer.destination_payment.amount == 1


def test_only_the_platform_makes_transfers(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    other = payee(standin, stripe)
    standin.control.fund(100, account=account)
    options = key(account)
    with pytest.raises(library.PermissionError):
        stripe.v1.transfers.create({"amount": 1, "currency": "usd", "destination": other}, options)
    with pytest.raises(library.PermissionError):
        stripe.v1.accounts.retrieve(other, options={"stripe_account": account})
    assert stripe.v1.accounts.retrieve(account, options={"stripe_account": account}).id == account
    assert {item["kind"] for item in standin.control.complaints} == {"on_behalf"}


@pytest.mark.parametrize(
    "more",
    [{"application_fee_amount": 1}, {"transfer_data": {"destination": "acct"}}, {"on_behalf_of": "acct"}],
)
def test_what_would_move_money_but_is_not_played_says_so(stripe: StripeClient, more: Any) -> None:
    with pytest.raises(library.APIError) as refused:
        stripe.v1.payment_intents.create(more | {"amount": 500, "currency": "usd"}, key())
    assert refused.value.http_status == 501
    made = paid(stripe)
    with pytest.raises(library.APIError, match="reverse_transfer"):
        stripe.v1.refunds.create({"payment_intent": made.id, "reverse_transfer": True}, key())
    assert stripe.v1.refunds.list().data == []


def test_objects_of_others_are_not_found(standin: StripeStandIn, stripe: StripeClient, account: str) -> None:
    other = payee(standin, stripe)
    standin.control.fund(1_000, account=account)
    payout = stripe.v1.payouts.create({"amount": 500, "currency": "usd"}, key(account))
    first, second = pay(stripe, account, 2), pay(stripe, other, 2)
    reversal = stripe.v1.transfers.reversals.create(first.id, {}, key())
    bank = stripe.v1.accounts.external_accounts.list(account).data[0]
    whose: Any = {"stripe_account": other}
    for look in (
        lambda: stripe.v1.payouts.retrieve(payout.id),
        lambda: stripe.v1.payouts.retrieve(payout.id, options=whose),
        lambda: stripe.v1.payouts.cancel(payout.id, options=key(other)),
        lambda: stripe.v1.balance_transactions.retrieve(payout.balance_transaction),  # type: ignore[arg-type]
        lambda: stripe.v1.charges.retrieve(first.destination_payment, options=whose),
        lambda: stripe.v1.transfers.reversals.retrieve(second.id, reversal.id),
        lambda: stripe.v1.transfers.reversals.update(second.id, reversal.id, {}, key()),
        lambda: stripe.v1.accounts.external_accounts.retrieve(other, bank.id),
    ):
        with pytest.raises(library.InvalidRequestError) as refused:
            look()
        assert (refused.value.http_status, refused.value.code) == (404, "resource_missing")


def test_a_cursor_may_name_what_the_filter_no_longer_finds(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    receiver.statuses = [500] * 3
    for n in range(3):
        stripe.v1.customers.create({"name": str(n)}, key())
    standin.control.settle_webhooks()
    missed = stripe.v1.events.list({"delivery_success": False}).data
    assert len(missed) == 3
    # The oldest is delivered while a reader stands at it.
    standin.control.deliver(missed[-1].id)
    newer: Any = {"delivery_success": False, "ending_before": missed[-1].id}
    assert [event.id for event in stripe.v1.events.list(newer).data] == [missed[0].id, missed[1].id]
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.events.list({"ending_before": "evt_none"})


def test_payouts_are_found_by_arrival_date(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    standin.control.fund(1_000, account=account)
    made = []
    for _ in range(2):
        made.append(stripe.v1.payouts.create({"amount": 1, "currency": "usd"}, key(account)))
        standin.control.advance(DAY)
    options: Any = {"stripe_account": account}
    listed = stripe.v1.payouts.list
    assert [item.id for item in listed({"arrival_date": START + 2 * DAY}, options).data] == [made[0].id]
    later: Any = {"arrival_date": {"gt": START + 2 * DAY}}
    assert [item.id for item in listed(later, options).data] == [made[1].id]


def test_balance_transactions_are_found_by_what_they_are_about(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    transfer = pay(stripe, account, 5)
    standin.control.advance(10)
    other = pay(stripe, account, 6)
    listed = stripe.v1.balance_transactions.list
    assert [item.net for item in listed({"source": transfer.id}).data] == [-5]
    assert [item.source for item in listed({"type": "transfer", "created": {"gt": START}}).data] == [other.id]
    assert listed({"currency": "eur"}).data == []
    assert listed({"type": "transfer", "source": "tr_none"}).data == []


def test_metadata_is_there_when_the_event_is_made(
    standin: StripeStandIn, stripe: StripeClient, account: str, receiver: Receiver
) -> None:
    transfer = pay(stripe, account, 100)
    stripe.v1.transfers.reversals.create(transfer.id, {"metadata": {"payout_id": "p1"}}, key())
    stripe.v1.refunds.create({"payment_intent": paid(stripe).id, "metadata": {"refund_id": "r1"}}, key())
    stripe.v1.accounts.external_accounts.create(
        account, {"external_account": "btok_us", "metadata": {"bank": "b1"}}, key()
    )
    standin.control.settle_webhooks()
    reversed_one = receiver.of("transfer.reversed")[0]["data"]["object"]
    assert reversed_one["reversals"]["data"][0]["metadata"] == {"payout_id": "p1"}
    assert receiver.of("refund.created")[0]["data"]["object"]["metadata"] == {"refund_id": "r1"}
    bank = receiver.of("account.external_account.created")[-1]["data"]["object"]
    assert bank["metadata"] == {"bank": "b1"}


def test_metadata_is_merged_and_has_limits(
    standin: StripeStandIn, stripe: StripeClient, account: str, receiver: Receiver
) -> None:
    transfer = pay(stripe, account, 1, metadata={"a": "1", "b": "2"})
    update = stripe.v1.transfers.update
    changed = update(transfer.id, {"metadata": {"b": "", "c": "3"}}, key())
    assert changed.metadata.to_dict() == {"a": "1", "c": "3"}
    standin.control.settle_webhooks()
    before = receiver.of("transfer.updated")[0]["data"]["previous_attributes"]
    assert before == {"metadata": {"b": "2", "c": None}}
    # The same again changes nothing, of which Stripe tells nobody.
    update(transfer.id, {"metadata": {"c": "3"}}, key())
    standin.control.settle_webhooks()
    assert len(receiver.of("transfer.updated")) == 1
    assert update(transfer.id, {"metadata": ""}, key()).metadata.to_dict() == {}
    for wrong in ({"k" * 41: "v"}, {"k": "v" * 501}, {f"k{n}": "v" for n in range(51)}):
        with pytest.raises(library.InvalidRequestError):
            pay(stripe, account, 1, metadata=wrong)
    assert len(stripe.v1.transfers.list().data) == 1


def test_an_update_shows_of_objects_only_what_changed(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    account = payee(standin, stripe)
    standin.control.run("account capability", account=account)
    standin.control.settle_webhooks()
    before = receiver.of("account.updated")[-1]["data"]["previous_attributes"]
    assert before == {"capabilities": {"transfers": "active"}}


def test_a_refused_account_does_not_exist(stripe: StripeClient) -> None:
    wrong: Any = {"object": "bank_account", "country": "US", "currency": "usd", "account_number": "1"}
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.accounts.create(
            {"type": "custom", "external_account": wrong | {"routing_number": "12"}}, key()
        )
    assert refused.value.code == "routing_number_invalid"
    assert stripe.v1.accounts.list().data == []
    made = stripe.v1.accounts.create({"type": "custom"}, key())
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.accounts.update(made.id, {"email": "a@b.c", "external_account": "tok_none"}, key())
    assert stripe.v1.accounts.retrieve(made.id).email is None


def test_a_transfer_that_is_pending_is_reversed_pending(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    charge = paid(stripe).latest_charge
    transfer = pay(stripe, account, 4_000, source_transaction=charge)
    stripe.v1.transfers.reversals.create(transfer.id, {}, key())
    theirs = stripe.v1.balance.retrieve(options={"stripe_account": account})
    assert (theirs.available[0].amount, theirs.pending[0].amount) == (0, 0)
    ours = stripe.v1.balance.retrieve()
    assert ours.connect_reserved is not None
    assert (ours.available[0].amount, ours.connect_reserved[0].amount) == (10_000, 0)


def test_pending_money_does_not_pay_back_a_settled_transfer(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    transfer = pay(stripe, account, 1_000)
    standin.control.fund(-1_000, account=account)
    pay(stripe, account, 4_000, source_transaction=paid(stripe).latest_charge)
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.transfers.reversals.create(transfer.id, {}, key())
    assert refused.value.code == "balance_insufficient"


def test_what_came_by_a_transfer_goes_back_by_its_reversal(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    transfer = pay(stripe, account, 1_000)
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.refunds.create({"charge": transfer.destination_payment}, key(account))
    assert stripe.v1.balance.retrieve(options={"stripe_account": account}).available[0].amount == 1_000


def test_a_transfer_shows_its_newest_reversals(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    transfer = pay(stripe, account, 1_000)
    for _ in range(12):
        stripe.v1.transfers.reversals.create(transfer.id, {"amount": 1}, key())
    shown = stripe.v1.transfers.retrieve(transfer.id).reversals
    assert (len(shown.data), shown.has_more) == (10, True)
    assert len(list(stripe.v1.transfers.reversals.list(transfer.id, {"limit": 5}).auto_paging_iter())) == 12


@pytest.mark.parametrize(
    ("card", "first", "last"),
    [("pm_card_refundFail", "succeeded", "failed"), ("pm_card_pendingRefund", "pending", "succeeded")],
)
def test_a_refund_may_end_later(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver, card: str, first: str, last: str
) -> None:
    made = paid(stripe, card)
    standin.control.run("balance settle")
    refund = stripe.v1.refunds.create({"payment_intent": made.id, "amount": 2_000}, key())
    assert refund.status == first
    standin.control.advance(3_600)
    found = stripe.v1.refunds.retrieve(refund.id, {"expand": ["failure_balance_transaction"]})
    assert found.status == last
    standin.control.settle_webhooks()
    assert receiver.of("refund.updated")[0]["data"]["previous_attributes"]["status"] == first
    failed = last == "failed"
    assert len(receiver.of("refund.failed")) == int(failed)
    assert stripe.v1.charges.retrieve(made.latest_charge).amount_refunded == (0 if failed else 2_000)
    assert stripe.v1.balance.retrieve().available[0].amount == 4_825 - (0 if failed else 2_000)
    if failed:
        assert getattr(found.failure_balance_transaction, "net", None) == 2_000
        assert found.failure_reason == "expired_or_canceled_card"


def test_a_refund_can_be_made_to_fail(standin: StripeStandIn, stripe: StripeClient) -> None:
    refund = stripe.v1.refunds.create({"payment_intent": paid(stripe).id}, key())
    standin.control.run("refund fail", refund=refund.id, reason="lost_or_stolen_card")
    assert stripe.v1.refunds.retrieve(refund.id).status == "failed"


def test_after_a_dispute_is_won_the_charge_can_be_refunded(
    standin: StripeStandIn, stripe: StripeClient
) -> None:
    made = paid(stripe, "pm_card_createDisputeProductNotReceived")
    dispute = stripe.v1.disputes.list().data[0]
    assert dispute.reason == "product_not_received"
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.refunds.create({"payment_intent": made.id}, key())
    assert refused.value.code == "charge_disputed"
    standin.control.run("dispute decide", dispute=dispute.id, won=True)
    assert stripe.v1.refunds.create({"payment_intent": made.id}, key()).status == "succeeded"


@pytest.mark.parametrize(
    ("card", "accepted"),
    [("authenticationRequired", False), ("authenticationRequiredSetupForOffSession", True)],
)
def test_cards_that_ask_their_holder_do_so_by_their_kind(
    stripe: StripeClient, card: str, accepted: bool
) -> None:
    params: Any = {"amount": 500, "currency": "usd", "payment_method": f"pm_card_{card}", "confirm": True}
    assert stripe.v1.payment_intents.create(params, key()).status == "requires_action"
    if accepted:
        assert stripe.v1.payment_intents.create(params | {"off_session": True}, key()).status == "succeeded"
        return
    with pytest.raises(library.CardError) as declined:
        stripe.v1.payment_intents.create(params | {"off_session": True}, key())
    assert declined.value.code == "authentication_required"
    error: Any = declined.value.error
    assert error.payment_intent.status == "requires_payment_method"
    assert error.payment_intent.last_payment_error.payment_method.id == error.payment_method.id


def test_a_paid_intent_keeps_its_method(stripe: StripeClient) -> None:
    made = paid(stripe)
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.payment_intents.update(made.id, {"payment_method": "pm_card_amex"}, key())
    assert refused.value.code == "payment_intent_unexpected_state"


def test_a_forgotten_key_leaves_nothing_behind(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    for _ in range(5):
        pay(stripe, account, 1)
    standin.control.advance(DAY)
    pay(stripe, account, 1)
    assert standin.control.state()["idempotency_keys"] == 1


def test_a_removed_or_disabled_endpoint_is_sent_nothing_more(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    standin.control.run("webhooks pause")
    stripe.v1.customers.create({}, key())
    endpoints = stripe.v1.webhook_endpoints.list().data
    platform = next(item for item in endpoints if item.url.endswith("/platform"))
    stripe.v1.webhook_endpoints.update(platform.id, {"disabled": True}, key())
    standin.control.run("webhooks resume")
    assert receiver.received == []
    # Enabled again, what was tried in vain is tried again.
    stripe.v1.webhook_endpoints.update(platform.id, {"disabled": False}, key())
    standin.control.advance(60)
    assert receiver.types() == ["customer.created"]
    standin.control.run("webhooks pause")
    stripe.v1.customers.create({}, key())
    stripe.v1.webhook_endpoints.delete(platform.id)
    standin.control.run("webhooks resume")
    assert len(receiver.received) == 1


def test_events_are_asked_for_by_up_to_twenty_types(stripe: StripeClient) -> None:
    assert stripe.v1.events.list({"types": ["customer.created"] * 20}).data == []
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.events.list({"types": ["customer.created"] * 21})
    assert refused.value.param == "types"
