"""Bank payouts of connected accounts: on their way for days, paid, failed, and failed once paid."""

from __future__ import annotations

from typing import Any

import pytest
import stripe as library
from stripe import StripeClient

from sandbox.stripe.server import StripeStandIn
from tests.unit.sandbox.stripe.driving import Receiver, key, payee

DAY = 86_400


@pytest.fixture
def account(standin: StripeStandIn, stripe: StripeClient) -> str:
    account = payee(standin, stripe)
    standin.control.fund(1_000, account=account)
    return account


def bank(stripe: StripeClient, account: str, number: str, currency: str = "usd") -> None:
    """Pay out to this number from now on."""
    given: Any = {"object": "bank_account", "country": "US", "account_number": number, "currency": currency}
    stripe.v1.accounts.external_accounts.create(
        account, {"external_account": given, "default_for_currency": True}, key()
    )


def payout(stripe: StripeClient, account: str, amount: int = 600, **more: Any) -> Any:
    params: Any = {"amount": amount, "currency": "usd", **more}
    return stripe.v1.payouts.create(params, key(account))


def available(stripe: StripeClient, account: str) -> int:
    return stripe.v1.balance.retrieve(options={"stripe_account": account}).available[0].amount


def test_a_payout_arrives_in_two_days(
    standin: StripeStandIn, stripe: StripeClient, account: str, receiver: Receiver
) -> None:
    made = payout(stripe, account, metadata={"payout_id": "p1"})
    assert (made.status, available(stripe, account)) == ("pending", 400)
    statuses = []
    for _ in range(2):
        standin.control.advance(DAY)
        statuses.append(stripe.v1.payouts.retrieve(made.id, options={"stripe_account": account}).status)
    assert statuses == ["in_transit", "paid"]
    sent = [event for event in (got.event for got in receiver.received) if "payout" in event["type"]]
    assert [event["type"] for event in sent] == ["payout.created", "payout.updated", "payout.paid"]
    assert {event["account"] for event in sent} == {account}
    assert [event["created"] - sent[0]["created"] for event in sent] == [0, DAY, 2 * DAY]
    assert standin.control.state()["payouts"] == {"paid": 1}


def test_what_was_paid_may_still_fail(
    standin: StripeStandIn, stripe: StripeClient, account: str, receiver: Receiver
) -> None:
    made = payout(stripe, account)
    standin.control.advance(2 * DAY)
    standin.control.run("payout fail", payout=made.id, code="account_closed")
    found = stripe.v1.payouts.retrieve(
        made.id, {"expand": ["failure_balance_transaction"]}, {"stripe_account": account}
    )
    assert (found.status, found.failure_code) == ("failed", "account_closed")
    assert getattr(found.failure_balance_transaction, "net", None) == 600
    assert available(stripe, account) == 1_000
    assert stripe.v1.accounts.external_accounts.list(account).data[0]["status"] == "errored"
    standin.control.settle_webhooks()
    failed = receiver.of("payout.failed")[0]["data"]
    # What was before is shown by events named *.updated alone: a receiver must not rely on it here.
    assert (failed["object"]["status"], "previous_attributes" in failed) == ("failed", False)
    with pytest.raises(library.InvalidRequestError) as refused:
        payout(stripe, account)
    assert refused.value.code == "bank_account_unusable"
    bank(stripe, account, "000123456789")
    payout(stripe, account)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        ("000123456789", None),
        ("000111111116", "no_account"),
        ("000111111113", "account_closed"),
        ("000222222227", "insufficient_funds"),
        ("000333333335", "debit_not_authorized"),
        ("000444444440", "invalid_currency"),
    ],
)
def test_documented_numbers_succeed_and_fail(
    standin: StripeStandIn, stripe: StripeClient, account: str, number: str, code: str | None
) -> None:
    bank(stripe, account, number)
    made = payout(stripe, account)
    standin.control.advance(2 * DAY)
    found = stripe.v1.payouts.retrieve(made.id, options={"stripe_account": account})
    assert (found.status, found.failure_code) == ("failed" if code else "paid", code)
    assert available(stripe, account) == (1_000 if code else 400)


@pytest.mark.parametrize(("token", "status"), [("Success", "paid"), ("Fail", "failed")])
def test_documented_debit_cards_succeed_and_fail(
    standin: StripeStandIn, stripe: StripeClient, account: str, token: str, status: str
) -> None:
    card = stripe.v1.accounts.external_accounts.create(
        account, {"external_account": f"tok_visa_debit_us_transfer{token}"}, key()
    )
    made = payout(stripe, account, destination=card.id)
    assert made.type == "card"
    standin.control.run("payout arrive", payout=made.id)
    found = stripe.v1.payouts.retrieve(made.id, options={"stripe_account": account})
    assert (found.status, found.failure_code) == (status, None if token == "Success" else "could_not_process")


def test_a_pending_payout_can_be_canceled(standin: StripeStandIn, stripe: StripeClient, account: str) -> None:
    options = {"stripe_account": account}
    made = payout(stripe, account)
    canceled_now = stripe.v1.payouts.cancel(
        made.id, {"expand": ["failure_balance_transaction"]}, key(account)
    )
    assert canceled_now.status == "canceled"
    assert getattr(canceled_now.failure_balance_transaction, "type", "") == "payout_cancel"
    assert available(stripe, account) == 1_000
    late = payout(stripe, account)
    standin.control.run("payout submit", payout=late.id)
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.payouts.cancel(late.id, options=key(account))
    canceled = stripe.v1.payouts.list({"status": "canceled"}, {"stripe_account": options["stripe_account"]})
    assert [item.id for item in canceled.data] == [made.id]
    standin.control.advance(3 * DAY)
    assert standin.control.state()["payouts"] == {"canceled": 1, "paid": 1}


def test_a_payout_needs_money_and_permission(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    with pytest.raises(library.InvalidRequestError) as refused:
        payout(stripe, account, 1_001)
    assert refused.value.code == "balance_insufficient"
    standin.control.run("account pause-payouts", account=account)
    with pytest.raises(library.InvalidRequestError) as refused:
        payout(stripe, account)
    assert refused.value.code == "payouts_not_allowed"
    standin.control.run("account pause-payouts", account=account, resume=True)
    payout(stripe, account)


@pytest.mark.parametrize(
    ("currency", "amount", "fits"), [("huf", 1_045, False), ("huf", 1_000, True), ("jpy", 7, True)]
)
def test_amounts_fit_the_currency(
    standin: StripeStandIn, stripe: StripeClient, account: str, currency: str, amount: int, fits: bool
) -> None:
    bank(stripe, account, "000123456789", currency)
    standin.control.fund(10_000, currency, account)
    if fits:
        payout(stripe, account, amount, currency=currency)
    else:
        with pytest.raises(library.InvalidRequestError):
            payout(stripe, account, amount, currency=currency)


def test_payouts_leave_balance_transactions(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    made = payout(stripe, account)
    standin.control.run("payout fail", payout=made.id)
    listed = stripe.v1.balance_transactions.list({"source": made.id}, {"stripe_account": account})
    assert [(item.type, item.net) for item in listed.data] == [("payout_failure", 600), ("payout", -600)]
    # Stripe knows what went into a payout only of those that it makes by itself.
    with pytest.raises(library.InvalidRequestError, match="automatic transfers, not manual") as refused:
        stripe.v1.balance_transactions.list({"payout": made.id}, {"stripe_account": account})
    assert refused.value.param == "payout"


def test_the_platform_is_paid_out_too(standin: StripeStandIn, stripe: StripeClient) -> None:
    standin.control.fund(500)
    made = stripe.v1.payouts.create({"amount": 500, "currency": "usd"}, key())
    standin.control.advance(2 * DAY)
    assert stripe.v1.payouts.retrieve(made.id).status == "paid"
    assert stripe.v1.balance.retrieve().available[0].amount == 0
