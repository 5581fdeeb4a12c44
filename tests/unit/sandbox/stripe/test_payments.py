"""Payments by saved card: succeeded, declined, authenticated, refunded, disputed; and their fees."""

from __future__ import annotations

from typing import Any

import pytest
import stripe as library
from stripe import StripeClient

from sandbox.stripe.server import StripeStandIn
from tests.unit.sandbox.stripe.driving import Receiver, key, pay, payee

DAY = 86_400


def customer(stripe: StripeClient, card: str = "pm_card_visa") -> tuple[str, str]:
    """A customer and the payment method kept for them."""
    made = stripe.v1.customers.create(
        {"email": "buyer@example.com", "metadata": {"organization": "o1"}}, key()
    )
    method = stripe.v1.payment_methods.attach(card, {"customer": made.id}, key())
    return made.id, method.id


def intent(stripe: StripeClient, who: tuple[str, str], **more: Any) -> Any:
    params: Any = {
        "amount": 10_000,
        "currency": "usd",
        "customer": who[0],
        "payment_method": who[1],
        "confirm": True,
        "off_session": True,
        **more,
    }
    return stripe.v1.payment_intents.create(params, key())


def test_a_saved_card_is_charged(standin: StripeStandIn, stripe: StripeClient, receiver: Receiver) -> None:
    made = intent(stripe, customer(stripe), metadata={"purchase_id": "c1"})
    assert (made.status, made.amount_received) == ("succeeded", 10_000)
    charge = stripe.v1.charges.retrieve(made.latest_charge, {"expand": ["balance_transaction"]})
    assert charge.metadata["purchase_id"] == "c1"
    booked: Any = charge.balance_transaction
    assert (booked.amount, booked.fee, booked.net, booked.status) == (10_000, 320, 9_680, "pending")
    assert stripe.v1.balance.retrieve().pending[0].amount == 9_680

    standin.control.advance(2 * DAY)
    assert stripe.v1.balance.retrieve().available[0].amount == 9_680
    assert [item.id for item in stripe.v1.charges.list({"payment_intent": made.id}).data] == [charge.id]
    for kind in ("payment_intent.created", "charge.succeeded", "payment_intent.succeeded"):
        assert receiver.of(kind)


def test_pending_money_is_settled_on_demand(standin: StripeStandIn, stripe: StripeClient) -> None:
    who = customer(stripe)
    intent(stripe, who)
    standin.control.run("balance settle")
    assert stripe.v1.balance.retrieve().available[0].amount == 9_680
    intent(stripe, customer(stripe, "pm_card_bypassPending"))
    assert stripe.v1.balance.retrieve().available[0].amount == 2 * 9_680


@pytest.mark.parametrize(
    ("number", "code", "decline"),
    [
        ("4000000000009995", "card_declined", "insufficient_funds"),
        ("4000000000000002", "card_declined", "generic_decline"),
        ("4000000000000069", "expired_card", None),
    ],
)
def test_documented_numbers_are_declined(
    stripe: StripeClient,
    receiver: Receiver,
    standin: StripeStandIn,
    number: str,
    code: str,
    decline: str | None,
) -> None:
    method = stripe.v1.payment_methods.create(
        {"type": "card", "card": {"number": number, "exp_month": 1, "exp_year": 2040}}, key()
    )
    made = stripe.v1.payment_intents.create({"amount": 500, "currency": "usd"}, key())
    with pytest.raises(library.CardError) as declined:
        stripe.v1.payment_intents.confirm(made.id, {"payment_method": method.id}, key())
    assert (declined.value.http_status, declined.value.code) == (402, code)
    assert declined.value.error is not None
    assert declined.value.error.decline_code == decline
    found = stripe.v1.payment_intents.retrieve(made.id)
    assert found.status == "requires_payment_method"
    assert found.last_payment_error is not None
    assert found.last_payment_error.code == code
    assert stripe.v1.charges.list().data[0].status == "failed"
    standin.control.settle_webhooks()
    assert receiver.of("payment_intent.payment_failed")
    assert (
        stripe.v1.payment_intents.confirm(made.id, {"payment_method": "pm_card_visa"}, key()).status
        == "succeeded"
    )


def test_a_card_may_decline_only_when_charged(stripe: StripeClient) -> None:
    with pytest.raises(library.CardError):
        customer(stripe, "pm_card_chargeDeclined")
    who = customer(stripe, "pm_card_chargeCustomerFail")
    with pytest.raises(library.CardError):
        intent(stripe, who)


@pytest.mark.parametrize("fails", [False, True])
def test_a_holder_authenticates(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver, fails: bool
) -> None:
    who = customer(stripe, "pm_card_authenticationRequiredOnSetup")
    made = intent(stripe, who, off_session=False, setup_future_usage="off_session")
    assert made.status == "requires_action"
    assert made.next_action.type == "redirect_to_url"
    standin.control.run("payment authenticate", intent=made.id, fails=fails)
    found = stripe.v1.payment_intents.retrieve(made.id)
    assert found.status == ("requires_payment_method" if fails else "succeeded")
    standin.control.settle_webhooks()
    assert receiver.of("payment_intent.requires_action")
    if not fails:
        assert intent(stripe, who).status == "succeeded"


def test_nobody_authenticates_off_session(stripe: StripeClient) -> None:
    with pytest.raises(library.CardError) as declined:
        intent(stripe, customer(stripe, "pm_card_threeDSecure2Required"))
    assert declined.value.code == "authentication_required"
    assert stripe.v1.payment_intents.list().data[0].status == "requires_payment_method"


def test_refunds_are_partial_and_never_above(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    made = intent(stripe, customer(stripe, "pm_card_bypassPending"))
    stripe.v1.refunds.create({"payment_intent": made.id, "amount": 4_000}, key())
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.refunds.create({"charge": made.latest_charge, "amount": 6_001}, key())
    standin.control.run("charge refund", charge=made.latest_charge)
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.refunds.create({"charge": made.latest_charge}, key())
    assert refused.value.code == "charge_already_refunded"
    charge = stripe.v1.charges.retrieve(made.latest_charge)
    assert (charge.amount_refunded, charge.refunded) == (10_000, True)
    assert [item.amount for item in stripe.v1.refunds.list({"charge": charge.id}).data] == [6_000, 4_000]
    assert stripe.v1.balance.retrieve().available[0].amount == -320
    standin.control.settle_webhooks()
    assert len(receiver.of("charge.refunded")) == 2


@pytest.mark.parametrize("won", [True, False])
def test_a_dispute_takes_the_money_until_it_is_won(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver, won: bool
) -> None:
    made = intent(stripe, customer(stripe, "pm_card_bypassPending"))
    dispute = standin.control.run("charge dispute", charge=made.latest_charge)
    assert stripe.v1.balance.retrieve().available[0].amount == 9_680 - 10_000 - 1_500
    assert stripe.v1.disputes.list({"charge": made.latest_charge}).data[0].status == "needs_response"
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.refunds.create({"charge": made.latest_charge}, key())
    assert refused.value.code == "charge_disputed"
    standin.control.run("dispute decide", dispute=dispute["id"], won=won)
    assert stripe.v1.disputes.retrieve(dispute["id"]).status == ("won" if won else "lost")
    assert stripe.v1.balance.retrieve().available[0].amount == (9_680 if won else -1_820)
    standin.control.settle_webhooks()
    assert receiver.of("charge.dispute.funds_withdrawn")
    assert len(receiver.of("charge.dispute.funds_reinstated")) == int(won)
    assert len(receiver.of("charge.dispute.closed")) == 1


def test_a_dispute_may_be_given_up(stripe: StripeClient) -> None:
    intent(stripe, customer(stripe, "pm_card_createDispute"))
    dispute = stripe.v1.disputes.list().data[0]
    assert dispute.reason == "fraudulent"
    assert stripe.v1.disputes.close(dispute.id, options=key()).status == "lost"


def test_money_of_a_charge_is_transferred_before_it_is_available(
    standin: StripeStandIn, stripe: StripeClient
) -> None:
    account = payee(standin, stripe)
    made = intent(stripe, customer(stripe))
    transfer = pay(stripe, account, 6_000, source_transaction=made.latest_charge)
    assert transfer.transfer_group == f"group_{made.id}"
    with pytest.raises(library.InvalidRequestError):
        pay(stripe, account, 4_001, source_transaction=made.latest_charge)
    with pytest.raises(library.InvalidRequestError):
        pay(stripe, account, 1, source_transaction=made.latest_charge, currency="eur")
    options: Any = {"stripe_account": account}
    assert stripe.v1.balance.retrieve(options=options).pending[0].amount == 6_000
    standin.control.advance(2 * DAY)
    assert stripe.v1.balance.retrieve(options=options).available[0].amount == 6_000
    assert stripe.v1.balance.retrieve().available[0].amount == 3_680


def test_customers_keep_payment_methods(stripe: StripeClient) -> None:
    who, method = customer(stripe)
    assert [item.id for item in stripe.v1.customers.payment_methods.list(who).data] == [method]
    assert [item.id for item in stripe.v1.payment_methods.list({"customer": who}).data] == [method]
    changed = stripe.v1.customers.update(
        who, {"name": "B", "invoice_settings": {"default_payment_method": method}}, key()
    )
    assert changed.name == "B"
    with pytest.raises(library.InvalidRequestError):
        intent(stripe, (customer(stripe)[0], method))
    assert stripe.v1.payment_methods.detach(method, options=key()).customer is None
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.payment_methods.attach(method, {"customer": who}, key())
    stripe.v1.customers.delete(who)
    assert getattr(stripe.v1.customers.retrieve(who), "deleted", False)


def test_an_intent_is_changed_and_canceled(stripe: StripeClient) -> None:
    made = stripe.v1.payment_intents.create({"amount": 500, "currency": "usd"}, key())
    assert stripe.v1.payment_intents.update(made.id, {"amount": 700}, key()).amount == 700
    assert stripe.v1.payment_intents.cancel(made.id, options=key()).status == "canceled"
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.payment_intents.confirm(made.id, {"payment_method": "pm_card_visa"}, key())
    assert refused.value.code == "payment_intent_unexpected_state"


@pytest.mark.parametrize(("currency", "amount"), [("usd", 49), ("kwd", 1_001)])
def test_what_cannot_be_charged_is_refused(stripe: StripeClient, currency: str, amount: int) -> None:
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.payment_intents.create({"amount": amount, "currency": currency}, key())
