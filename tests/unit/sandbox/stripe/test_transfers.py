"""Transfers and reversals: at once, from what is there, never more than was sent."""

from __future__ import annotations

from typing import Any

import pytest
import stripe as library
from stripe import StripeClient

from sandbox.stripe.server import StripeStandIn
from tests.unit.sandbox.stripe.driving import START, key, pay, payee


def test_a_transfer_moves_money_at_once(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    standin.control.fund(10_000)
    transfer = pay(stripe, account, 4_000, transfer_group="g1", metadata={"payout_id": "p1"})

    assert transfer.created == START
    assert transfer.metadata["payout_id"] == "p1"
    balance = stripe.v1.balance.retrieve()
    assert [(funds.amount, funds.currency) for funds in balance.available] == [(6_000, "usd")]
    theirs = stripe.v1.balance.retrieve(options={"stripe_account": account})
    assert theirs.available[0].amount == 4_000
    assert standin.control.state()["transfers"][account]["usd"] == {
        "count": 1,
        "amount": 4_000,
        "reversed": 0,
        "net": 4_000,
    }


def test_transfers_are_found_by_group_destination_and_time(
    standin: StripeStandIn, stripe: StripeClient
) -> None:
    first, second = payee(standin, stripe), payee(standin, stripe)
    standin.control.fund(10_000)
    one = pay(stripe, first, 1, transfer_group="a")
    standin.control.advance(100)
    two = pay(stripe, second, 2, transfer_group="b")

    listed = stripe.v1.transfers.list
    assert [item.id for item in listed({"transfer_group": "a"}).data] == [one.id]
    assert [item.id for item in listed({"destination": second}).data] == [two.id]
    assert [item.id for item in listed({"created": {"gt": START}}).data] == [two.id]
    assert [item.id for item in listed({"limit": 1}).auto_paging_iter()] == [two.id, one.id]


def test_more_than_is_available_is_refused(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    standin.control.fund(100)
    with pytest.raises(library.InvalidRequestError) as refused:
        pay(stripe, account, 101)
    assert refused.value.http_status == 400
    assert refused.value.code == "balance_insufficient"
    assert stripe.v1.transfers.list().data == []


@pytest.mark.parametrize("destination", ["acct_unknown", "gone"])
def test_an_account_that_is_unknown_or_gone_is_refused(
    standin: StripeStandIn, stripe: StripeClient, destination: str
) -> None:
    standin.control.fund(100)
    if destination == "gone":
        destination = payee(standin, stripe)
        standin.control.run("account deauthorize", account=destination)
    with pytest.raises(library.InvalidRequestError) as refused:
        pay(stripe, destination, 1)
    assert (refused.value.http_status, refused.value.code) == (400, "resource_missing")
    assert refused.value.param == "destination"


def test_without_the_capability_nothing_moves(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    standin.control.fund(100)
    standin.control.run("account capability", account=account, reason="rejected.other")
    with pytest.raises(library.InvalidRequestError) as refused:
        pay(stripe, account, 1)
    assert refused.value.code == "insufficient_capabilities_for_transfer"
    assert stripe.v1.balance.retrieve().available[0].amount == 100


def test_parts_are_reversed_up_to_the_whole(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    standin.control.fund(1_000)
    transfer = pay(stripe, account, 1_000)
    reverse = stripe.v1.transfers.reversals.create
    reverse(transfer.id, {"amount": 300, "metadata": {"why": "refund"}}, key())
    with pytest.raises(library.InvalidRequestError):
        reverse(transfer.id, {"amount": 701}, key())
    reverse(transfer.id, {}, key())
    with pytest.raises(library.InvalidRequestError):
        reverse(transfer.id, {}, key())

    found = stripe.v1.transfers.retrieve(transfer.id, {"expand": ["balance_transaction"]})
    assert (found.amount_reversed, found.reversed) == (1_000, True)
    assert [reversal.amount for reversal in found.reversals.data] == [700, 300]
    assert [item.amount for item in stripe.v1.transfers.reversals.list(transfer.id).data] == [700, 300]
    assert stripe.v1.balance.retrieve().available[0].amount == 1_000
    assert standin.control.state()["transfers"][account]["usd"]["net"] == 0


def test_a_reversal_needs_the_money_unless_reserves_are_on(
    standin: StripeStandIn, stripe: StripeClient
) -> None:
    account = payee(standin, stripe)
    standin.control.fund(1_000)
    transfer = pay(stripe, account, 1_000)
    standin.control.fund(-600, account=account)
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.transfers.reversals.create(transfer.id, {"amount": 500}, key())
    assert refused.value.code == "balance_insufficient"
    assert stripe.v1.transfers.retrieve(transfer.id).amount_reversed == 0

    standin.control.run("account reserves", account=account)
    standin.control.run("transfer reverse", transfer=transfer.id, amount=500)
    assert stripe.v1.transfers.retrieve(transfer.id).amount_reversed == 500


def test_what_an_account_owes_is_reserved_of_ours(standin: StripeStandIn, stripe: StripeClient) -> None:
    account, other = payee(standin, stripe), payee(standin, stripe)
    standin.control.fund(1_000)
    standin.control.fund(-400, account=account)
    balance = stripe.v1.balance.retrieve()
    assert balance.available[0].amount == 600
    assert balance.connect_reserved is not None
    assert balance.connect_reserved[0].amount == 400
    with pytest.raises(library.InvalidRequestError) as refused:
        pay(stripe, other, 601)
    assert refused.value.code == "balance_insufficient"
    standin.control.fund(400, account=account)
    pay(stripe, other, 1_000)


def test_currencies_are_apart(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    standin.control.fund(1_000, "jpy")
    with pytest.raises(library.InvalidRequestError):
        pay(stripe, account, 1)
    pay(stripe, account, 1_000, currency="jpy")
    theirs = stripe.v1.balance.retrieve(options={"stripe_account": account})
    assert [(funds.amount, funds.currency) for funds in theirs.available] == [(1_000, "jpy")]


def test_both_sides_have_balance_transactions(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    standin.control.fund(1_000)
    transfer = pay(stripe, account, 700)
    ours = stripe.v1.balance_transactions.list({"type": "transfer"}).data
    assert [(item.net, item.source) for item in ours] == [(-700, transfer.id)]
    theirs = stripe.v1.balance_transactions.list(options={"stripe_account": account}).data
    assert [(item.type, item.net, item.source) for item in theirs] == [
        ("payment", 700, transfer.destination_payment)
    ]


def test_balances_are_the_sums_of_their_transactions(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    standin.control.fund(10_000)
    first, second = pay(stripe, account, 4_000), pay(stripe, account, 1_000)
    stripe.v1.transfers.reversals.create(first.id, {"amount": 1_500}, key())
    standin.control.run("account reserves", account=account)
    made = stripe.v1.payouts.create({"amount": 3_500, "currency": "usd"}, key(account))
    standin.control.run("transfer reverse", transfer=second.id)
    stripe.v1.payment_intents.create(
        {"amount": 5_000, "currency": "usd", "payment_method": "pm_card_visa", "confirm": True}, key()
    )
    owed = stripe.v1.balance.retrieve().connect_reserved
    assert owed is not None
    assert owed[0].amount == 1_000
    standin.control.run("payout fail", payout=made.id)

    options: list[Any] = [{}, {"stripe_account": account}]
    for option in options:
        balance = stripe.v1.balance.retrieve(options=option)
        transactions = stripe.v1.balance_transactions.list({"limit": 100}, option).data
        assert (
            sum(item.net for item in transactions) == balance.available[0].amount + balance.pending[0].amount
        )
    assert standin.control.state()["transfers"][account]["usd"]["net"] == 2_500
