"""Money of purchases that goes back, and comes again: posted once each, in whatever order it is heard of."""

import asyncio
import random
from datetime import timedelta

import pytest

from sandbox.stripe.server import StripeStandIn
from tallystick.payouts.v1 import purchase_pb2
from tests.integration.payouts.buyers import SUCCEEDED, USD, Buyers, kill_at
from tests.support.ledger_server import LedgerServer
from tests.support.payouts_server import MovedClock, running_payouts
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually


def _dispute(buyers: Buyers, purchase: purchase_pb2.Purchase) -> str:
    """The customer's bank takes the money back; the dispute's id."""
    made = buyers.payouts.stripe.control.run("charge dispute", charge=buyers.charge_of(purchase))
    return str(made["id"])


async def test_a_refund_takes_the_credits_back(buyers: Buyers) -> None:
    bought = (await buyers.buy(20)).purchase
    refunded = (await buyers.refund(bought.purchase_id, 5)).purchase
    assert refunded.refunded.amount_micros == 5 * USD
    assert await buyers.available() == 15
    await buyers.hear()
    await buyers.check()


async def test_a_repeated_refund_is_the_same_one_and_all_of_them_stay_below_the_purchase(
    buyers: Buyers,
) -> None:
    bought = (await buyers.buy(20)).purchase
    await asyncio.gather(*(buyers.refund(bought.purchase_id, 5, "once") for _ in range(3)))
    assert (await refusal(buyers.refund(bought.purchase_id, 6, "once"))).reason == "IDEMPOTENCY_KEY_REUSED"
    refunds = [buyers.refund(bought.purchase_id, 4, f"{number}") for number in range(6)]
    answers = await asyncio.gather(*refunds, return_exceptions=True)
    assert len([one for one in answers if not isinstance(one, BaseException)]) == 3
    too_much = await refusal(buyers.refund(bought.purchase_id, 4, "too-much"))
    assert too_much.reason == "REVERSAL_EXCEEDS_PURCHASE"
    found = await buyers.get(bought.purchase_id)
    assert found.refunded.amount_micros == 17 * USD
    assert await buyers.available() == 3
    await buyers.check()


@pytest.mark.parametrize("fault", ["lost_answer", "cut", "rate_limit"])
async def test_a_refund_in_doubt_is_made_once(buyers: Buyers, stripe: StripeStandIn, fault: str) -> None:
    bought = (await buyers.buy(20)).purchase
    stripe.control.fault(fault, "refunds.create")
    await buyers.refund(bought.purchase_id, 5)
    await buyers.until(bought.purchase_id, lambda found: found.refunded.amount_micros == 5 * USD)
    await buyers.check()


@pytest.mark.parametrize("effect", [True, False])
async def test_a_refund_in_doubt_does_not_hold_up_what_else_happened(
    buyers: Buyers, stripe: StripeStandIn, effect: bool
) -> None:
    bought = (await buyers.buy(20)).purchase
    # Its key keeps the 500 for a day.
    stripe.control.fault("server_error", "refunds.create", effect=effect)
    await buyers.refund(bought.purchase_id, 5)
    _dispute(buyers, bought)
    await buyers.hear()
    found = await buyers.until(bought.purchase_id, lambda found: found.disputed.amount_micros > 0)
    assert (found.refunded.amount_micros, found.disputed.amount_micros) == (
        (5 * USD, 15 * USD) if effect else (0, 20 * USD)
    )

    async def posted() -> bool:
        return await buyers.available() == 0

    await eventually(posted)
    assert (await buyers.balance()).frozen
    await buyers.check()


@pytest.mark.parametrize(("fault", "units"), [("lost_answer", 5), ("cut", 0)])
async def test_after_a_day_a_refund_is_found_and_never_made_again(
    still_buyers: Buyers, stripe: StripeStandIn, fault: str, units: int
) -> None:
    buyers = still_buyers
    bought = (await buyers.buy(20)).purchase
    stripe.control.fault(fault, "refunds.create")
    await buyers.refund(bought.purchase_id, 5)
    await buyers.payouts.advance(timedelta(hours=25))
    async with running_payouts(
        buyers.payouts.database_url, buyers.payouts.ledger, stripe, clock=buyers.payouts.clock
    ) as again:
        buyers = buyers.reopened(again)

        async def over() -> bool:
            return buyers.payouts.query("SELECT FROM payouts.refund_request WHERE state = 'pending'") == []

        await eventually(over)
        if units:
            await buyers.until(bought.purchase_id, lambda found: found.refunded.amount_micros > 0)
        else:
            refused = await refusal(buyers.refund(bought.purchase_id, 5))
            assert (refused.reason, refused.metadata) == (
                "PROCESSOR_REFUSED",
                {**refused.metadata, "processor_code": "refund_not_made"},
            )
        await buyers.check()
        assert (await buyers.get(bought.purchase_id)).refunded.amount_micros == units * USD


async def test_a_refused_refund_changes_nothing(buyers: Buyers, stripe: StripeStandIn) -> None:
    bought = (await buyers.buy(20)).purchase
    stripe.control.fault("refused", "refunds.create", code="charge_not_refundable")
    for _ in range(2):
        refused = await refusal(buyers.refund(bought.purchase_id, 5))
        assert refused.reason == "PROCESSOR_REFUSED"
        assert refused.metadata["processor_code"] == "charge_not_refundable"
    assert (await buyers.refund(bought.purchase_id, 20, "again")).purchase.refunded.amount_micros == 20 * USD
    await buyers.check()


async def test_a_refund_from_the_dashboard_is_heard_of(buyers: Buyers, stripe: StripeStandIn) -> None:
    bought = (await buyers.buy(20)).purchase
    stripe.control.run("charge refund", charge=buyers.charge_of(bought), amount=700)
    await buyers.hear(*buyers.events("charge.refunded"))
    assert (await buyers.get(bought.purchase_id)).refunded.amount_micros == 7 * USD
    assert await buyers.available() == 13
    await buyers.check()


@pytest.mark.parametrize("heard_between", [True, False])
async def test_a_refund_that_fails_gives_the_credits_again(buyers: Buyers, heard_between: bool) -> None:
    card = await buyers.add_card("pm_card_refundFail")
    bought = (await buyers.buy(20, method=card)).purchase
    if heard_between:
        await buyers.refund(bought.purchase_id, 20)
        assert await buyers.available() == 0
    else:
        buyers.payouts.stripe.control.run("charge refund", charge=buyers.charge_of(bought))
    await buyers.payouts.advance(timedelta(hours=2))
    await buyers.hear(*buyers.events("refund.failed"))
    assert (await buyers.get(bought.purchase_id)).refunded.amount_micros == 0
    assert await buyers.available() == 20
    await buyers.check()
    # What is there again may go back again.
    await buyers.refund(bought.purchase_id, 20, "again")
    assert await buyers.available() == 0
    await buyers.check()


async def test_a_refund_that_takes_its_time_is_posted_once(buyers: Buyers) -> None:
    card = await buyers.add_card("pm_card_pendingRefund")
    bought = (await buyers.buy(20, method=card)).purchase
    await buyers.refund(bought.purchase_id, 5)
    await buyers.payouts.advance(timedelta(hours=2))
    await buyers.hear()
    assert (await buyers.get(bought.purchase_id)).refunded.amount_micros == 5 * USD
    assert await buyers.available() == 15
    await buyers.check()


async def test_refunding_what_was_spent_leaves_a_debt(buyers: Buyers) -> None:
    bought = (await buyers.buy(20)).purchase
    await buyers.adjust(-18)
    await buyers.refund(bought.purchase_id, 20)
    balance = await buyers.balance()
    assert (balance.available.amount_micros, balance.chargebacks.amount_micros) == (0, 18 * USD)
    await buyers.buy(25, "second")
    balance = await buyers.balance()
    assert (balance.available.amount_micros, balance.chargebacks.amount_micros) == (7 * USD, 0)


async def test_a_lost_dispute_takes_credits_and_a_fee(buyers: Buyers, stripe: StripeStandIn) -> None:
    bought = (await buyers.buy(20)).purchase
    await buyers.adjust(-15)
    dispute = _dispute(buyers, bought)
    await buyers.hear()
    balance = await buyers.balance()
    assert (balance.available.amount_micros, balance.chargebacks.amount_micros) == (0, 15 * USD)
    assert balance.frozen
    stripe.control.run("dispute decide", dispute=dispute)
    await buyers.hear()
    found = await buyers.get(bought.purchase_id)
    assert (found.state, found.disputed.amount_micros) == (SUCCEEDED, 20 * USD)
    assert found.processor_fee.amount_micros == 880_000 + 15 * USD
    refused = await refusal(buyers.refund(bought.purchase_id, 1))
    assert refused.reason == "REVERSAL_EXCEEDS_PURCHASE"


async def test_a_won_dispute_gives_all_of_it_back(buyers: Buyers, stripe: StripeStandIn) -> None:
    bought = (await buyers.buy(20)).purchase
    dispute = _dispute(buyers, bought)
    await buyers.hear()
    await buyers.check()
    stripe.control.run("dispute decide", dispute=dispute, won=True)
    await buyers.hear(*buyers.events("charge.dispute.closed", "charge.dispute.funds_reinstated"))
    found = await buyers.get(bought.purchase_id)
    assert found.disputed.amount_micros == 0
    assert found.processor_fee.amount_micros == 880_000
    assert await buyers.available() == 20
    await buyers.check()


async def test_a_card_whose_payments_are_disputed_at_once(buyers: Buyers) -> None:
    card = await buyers.add_card("pm_card_createDispute")
    await buyers.buy(20, method=card)
    await buyers.hear()
    assert await buyers.available() == 0
    await buyers.check()


@pytest.mark.parametrize("only", ["charge.dispute.created", "charge.dispute.funds_withdrawn"])
async def test_a_dispute_that_is_heard_of_before_the_payment(
    buyers: Buyers, stripe: StripeStandIn, only: str
) -> None:
    card = await buyers.add_card("pm_card_createDispute")
    stripe.control.fault("server_error", "payment_intents.create", effect=True)
    begun = (await buyers.buy(20, method=card)).purchase
    await buyers.hear(*buyers.events(only))
    disputed = await buyers.until(begun.purchase_id, lambda found: found.disputed.amount_micros > 0)
    assert disputed.state == SUCCEEDED
    assert await buyers.available() == 0
    await buyers.check()


@pytest.mark.parametrize("seed", range(3))
async def test_refunds_and_disputes_heard_of_in_any_order(
    buyers: Buyers, stripe: StripeStandIn, seed: int
) -> None:
    bought = [(await buyers.buy(20, f"{number}")).purchase for number in range(2)]
    stripe.control.run("charge refund", charge=buyers.charge_of(bought[0]), amount=300)
    stripe.control.run("charge refund", charge=buyers.charge_of(bought[0]), amount=400)
    won = _dispute(buyers, bought[0])
    stripe.control.run("dispute decide", dispute=won, won=True)
    _dispute(buyers, bought[1])
    events = buyers.events() * 2
    random.Random(seed).shuffle(events)
    await asyncio.gather(*(buyers.hear(*events[start::3]) for start in range(3)))
    first, second = [await buyers.get(one.purchase_id) for one in bought]
    assert (first.refunded.amount_micros, first.disputed.amount_micros) == (7 * USD, 0)
    assert (second.refunded.amount_micros, second.disputed.amount_micros) == (0, 20 * USD)
    assert await buyers.available() == 13
    await buyers.check()


@pytest.mark.parametrize("after_commit", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [1, 2, 3])
async def test_a_process_that_is_killed_while_it_refunds(
    database_url: str,
    ledger: LedgerServer,
    stripe: StripeStandIn,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    after_commit: bool,
) -> None:
    clock = MovedClock()
    async with running_payouts(
        database_url, ledger, stripe, webhooks=False, clock=clock, workers=False
    ) as running:
        buyers = Buyers(running)
        await buyers.customer()
        bought = (await buyers.buy(20)).purchase
        with monkeypatch.context() as patch:
            kill_at(patch, step, after_commit=after_commit)
            await refusal(buyers.refund(bought.purchase_id, 5))
    clock.advance(timedelta(minutes=2))
    async with running_payouts(database_url, ledger, stripe, webhooks=False, clock=clock) as running:
        buyers = buyers.reopened(running)
        await buyers.until(bought.purchase_id, lambda found: found.refunded.amount_micros == 5 * USD)
        await buyers.check()
