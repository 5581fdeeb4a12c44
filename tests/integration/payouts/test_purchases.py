"""Credits that customers buy: paid once, granted once, whatever is lost on the way."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from sandbox.stripe.server import StripeStandIn
from services.payouts.domain.event import EventState
from tallystick.payouts.v1 import payment_service_pb2 as pb
from tests.integration.payouts.buyers import (
    CANCELLED,
    FAILED,
    PROCESSING,
    REQUIRES_ACTION,
    SUCCEEDED,
    USD,
    Buyers,
    kill_at,
    usd,
)
from tests.support.ledger_server import LedgerServer
from tests.support.network import gate_to
from tests.support.payouts_server import MovedClock, running_payouts
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually

A_DAY_AND_MORE = timedelta(hours=25)


async def _cancel(buyers: Buyers, purchase_id: str) -> pb.CancelPurchaseResponse:
    return await buyers.caller().payments.CancelPurchase(pb.CancelPurchaseRequest(purchase_id=purchase_id))


async def test_a_purchase_becomes_credits(buyers: Buyers) -> None:
    bought = (await buyers.buy(20)).purchase
    assert bought.state == SUCCEEDED
    assert bought.payment_intent_id.startswith("pi_")
    assert bought.transaction_id.startswith("txn_")
    assert bought.processor_fee.amount_micros == 880_000
    assert await buyers.available() == 20
    await buyers.check()


async def test_a_repeated_purchase_is_the_same_one(buyers: Buyers) -> None:
    first, second = await asyncio.gather(buyers.buy(20, "once"), buyers.buy(20, "once"))
    third = await buyers.buy(20, "once")
    assert first.purchase.purchase_id == second.purchase.purchase_id == third.purchase.purchase_id
    assert third.purchase.state == SUCCEEDED
    assert (await refusal(buyers.buy(21, "once"))).reason == "IDEMPOTENCY_KEY_REUSED"
    assert await buyers.available() == 20
    await buyers.check()


async def test_a_declined_card_fails_in_words_and_can_never_be_charged_again(buyers: Buyers) -> None:
    card = await buyers.add_card("pm_card_chargeCustomerFail")
    failed = (await buyers.buy(20, method=card)).purchase
    assert failed.state == FAILED
    assert (failed.failure_code, failed.failure_reason) == ("generic_decline", "Your card was declined.")
    assert [payment["status"] for payment in buyers.payments()] == ["canceled"]
    await buyers.hear()
    await buyers.check()


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "lost_answer"},
        {"kind": "cut", "count": 2},
        # The key answers 500 for a day, although the payment was made.
        {"kind": "server_error", "effect": True},
        {"kind": "rate_limit", "count": 2},
        {"kind": "lock_timeout"},
        {"kind": "key_in_use", "count": 2},
    ],
    ids=lambda fault: str(fault["kind"]),
)
async def test_a_payment_in_doubt_is_made_once(
    buyers: Buyers, stripe: StripeStandIn, fault: dict[str, Any]
) -> None:
    stripe.control.fault(fault.pop("kind"), "payment_intents.create", **fault)
    begun = (await buyers.buy(20)).purchase
    assert begun.state == PROCESSING
    await buyers.until(begun.purchase_id, lambda found: found.state == SUCCEEDED)
    assert len(buyers.payments()) == 1
    await buyers.check()


async def test_a_refused_api_key_loses_nothing(buyers: Buyers, stripe: StripeStandIn) -> None:
    stripe.control.fault("unauthorized", "payment_intents.create")
    begun = (await buyers.buy(20)).purchase
    assert begun.state == PROCESSING
    assert buyers.payouts.query("SELECT hold FROM payouts.purchase") == [("key_refused",)]
    await buyers.payouts.advance(timedelta(minutes=6))
    await buyers.until(begun.purchase_id, lambda found: found.state == SUCCEEDED)
    await buyers.check()


@pytest.mark.parametrize(("fault", "state"), [("lost_answer", SUCCEEDED), ("cut", FAILED)])
async def test_after_a_day_a_payment_is_found_and_never_made_again(
    still_buyers: Buyers, stripe: StripeStandIn, fault: str, state: int
) -> None:
    buyers = still_buyers
    stripe.control.fault(fault, "payment_intents.create")
    begun = (await buyers.buy(20)).purchase
    # The key is forgotten at Stripe by then: the same call would pay once more.
    await buyers.payouts.advance(A_DAY_AND_MORE)
    async with running_payouts(
        buyers.payouts.database_url, buyers.payouts.ledger, stripe, clock=buyers.payouts.clock
    ) as again:
        buyers = buyers.reopened(again)
        ended = await buyers.until(begun.purchase_id, lambda found: found.state != PROCESSING)
        assert ended.state == state
        assert ended.failure_code == ("" if state == SUCCEEDED else "payment_not_made")
        # One that was cut never reached Stripe, which is why nothing of it is on record.
        assert len(buyers.payments()) == (1 if state == SUCCEEDED else 0)
        await buyers.check()


async def test_money_that_comes_after_a_purchase_was_given_up_becomes_credits(
    buyers: Buyers, stripe: StripeStandIn
) -> None:
    stripe.control.fault("refused", "payment_intents.create", code="processing_error")
    failed = (await buyers.buy(20)).purchase
    assert failed.state == FAILED
    card, customer = buyers.payouts.query(
        "SELECT payment_method_id, stripe_customer_id FROM"
        " payouts.payment_method JOIN payouts.stripe_customer USING (customer_id)"
    )[0]
    buyers.stripe(
        "POST",
        "/v1/payment_intents",
        amount=2000,
        currency="usd",
        customer=customer,
        payment_method=card,
        confirm="true",
        **{"metadata[purchase_id]": failed.purchase_id},
    )
    await buyers.hear()
    assert (await buyers.get(failed.purchase_id)).state == SUCCEEDED
    await buyers.check()


async def test_a_customer_confirms_a_payment(buyers: Buyers, stripe: StripeStandIn) -> None:
    card = await buyers.add_card("pm_card_authenticationRequired")
    asked = await buyers.buy(20, method=card)
    assert asked.purchase.state == REQUIRES_ACTION
    assert asked.client_secret.startswith(asked.purchase.payment_intent_id)
    assert asked.action_url.startswith("http")
    again = await buyers.buy(20, method=card)
    assert (again.client_secret, again.action_url) == (asked.client_secret, asked.action_url)
    # Kept nowhere.
    assert (
        buyers.payouts.query(
            f"SELECT FROM payouts.purchase AS p WHERE p::text LIKE '%{asked.client_secret}%'"
        )
        == []
    )
    stripe.control.run("payment authenticate", intent=asked.purchase.payment_intent_id)
    await buyers.hear()
    assert (await buyers.get(asked.purchase.purchase_id)).state == SUCCEEDED
    await buyers.check()


async def test_a_confirmation_that_nobody_told_of_is_found(buyers: Buyers, stripe: StripeStandIn) -> None:
    card = await buyers.add_card("pm_card_authenticationRequired")
    asked = (await buyers.buy(20, method=card)).purchase
    stripe.control.run("payment authenticate", intent=asked.payment_intent_id)
    await buyers.payouts.advance(timedelta(minutes=61))
    await buyers.until(asked.purchase_id, lambda found: found.state == SUCCEEDED)
    await buyers.check()


async def test_a_failed_confirmation_ends_it(buyers: Buyers, stripe: StripeStandIn) -> None:
    card = await buyers.add_card("pm_card_authenticationRequired")
    asked = (await buyers.buy(20, method=card)).purchase
    stripe.control.run("payment authenticate", intent=asked.payment_intent_id, fails=True)
    await buyers.hear()
    failed = await buyers.get(asked.purchase_id)
    assert (failed.state, failed.failure_code) == (FAILED, "payment_intent_authentication_failure")
    # Whoever has the client secret could have tried another card.
    assert [payment["status"] for payment in buyers.payments()] == ["canceled"]
    await buyers.check()


async def test_a_payment_that_nobody_confirms_ends_after_a_day(buyers: Buyers) -> None:
    card = await buyers.add_card("pm_card_authenticationRequired")
    asked = (await buyers.buy(20, method=card)).purchase
    await buyers.payouts.advance(A_DAY_AND_MORE)
    failed = await buyers.until(asked.purchase_id, lambda found: found.state == FAILED)
    assert failed.failure_code == "authentication_expired"
    assert [payment["status"] for payment in buyers.payments()] == ["canceled"]


async def test_a_cancelled_purchase_is_never_paid(buyers: Buyers) -> None:
    card = await buyers.add_card("pm_card_authenticationRequired")
    asked = (await buyers.buy(20, method=card)).purchase
    for _ in range(2):
        assert (await _cancel(buyers, asked.purchase_id)).purchase.state == CANCELLED
    assert [payment["status"] for payment in buyers.payments()] == ["canceled"]
    await buyers.hear()
    assert (await buyers.get(asked.purchase_id)).state == CANCELLED
    await buyers.check()


@pytest.mark.parametrize("effect", [True, False])
async def test_a_server_error_does_not_keep_a_purchase_from_being_cancelled(
    buyers: Buyers, stripe: StripeStandIn, effect: bool
) -> None:
    card = await buyers.add_card("pm_card_authenticationRequired")
    asked = (await buyers.buy(20, method=card)).purchase
    # Its key keeps the 500 for a day.
    stripe.control.fault("server_error", "payment_intents.cancel", effect=effect)
    await _cancel(buyers, asked.purchase_id)
    await buyers.until(asked.purchase_id, lambda found: found.state == CANCELLED)
    await buyers.check()


async def test_what_is_paid_cannot_be_cancelled(buyers: Buyers) -> None:
    paid = (await buyers.buy(20)).purchase
    refused = await refusal(_cancel(buyers, paid.purchase_id))
    assert (refused.reason, refused.metadata["state"]) == ("PURCHASE_STATE_CONFLICT", "succeeded")


@pytest.mark.parametrize(("fault", "state"), [("cut", CANCELLED), ("lost_answer", SUCCEEDED)])
async def test_a_purchase_cancelled_in_doubt_is_not_asked_for_again(
    still_buyers: Buyers, stripe: StripeStandIn, fault: str, state: int
) -> None:
    buyers = still_buyers
    stripe.control.fault(fault, "payment_intents.create")
    begun = (await buyers.buy(20)).purchase
    if state == SUCCEEDED:
        # Found, and paid already.
        assert (await refusal(_cancel(buyers, begun.purchase_id))).reason == "PURCHASE_STATE_CONFLICT"
    else:
        # The call that was lost may still be carried out.
        assert (await _cancel(buyers, begun.purchase_id)).purchase.state == PROCESSING
        await buyers.payouts.advance(timedelta(minutes=20))
        async with running_payouts(
            buyers.payouts.database_url, buyers.payouts.ledger, stripe, clock=buyers.payouts.clock
        ) as again:
            await buyers.reopened(again).until(begun.purchase_id, lambda found: found.state == CANCELLED)
        assert buyers.payments() == []
    assert (await buyers.get(begun.purchase_id)).state == state
    await buyers.check()


async def test_an_event_that_is_faster_than_the_answer(buyers: Buyers, stripe: StripeStandIn) -> None:
    stripe.control.fault("slow", "payment_intents.create", ms=5000, effect=True)
    buying = asyncio.create_task(buyers.buy(20))

    async def made() -> bool:
        return bool(buyers.payments())

    await eventually(made)
    await buyers.hear()
    (purchase_id,) = buyers.payouts.query("SELECT purchase_id FROM payouts.purchase")[0]
    assert (await buyers.get(str(purchase_id))).state == SUCCEEDED
    assert not buying.done()
    assert (await buying).purchase.state == SUCCEEDED
    await buyers.check()


async def test_events_in_any_order_and_number(buyers: Buyers) -> None:
    card = await buyers.add_card("pm_card_chargeCustomerFail")
    paid, failed = (await buyers.buy(20)).purchase, (await buyers.buy(5, "second", method=card)).purchase
    events = buyers.events()
    assert len(events) >= 3
    await asyncio.gather(*map(buyers.hear, [*events, *reversed(events)]))
    assert (await buyers.get(paid.purchase_id)).state == SUCCEEDED
    assert (await buyers.get(failed.purchase_id)).state == FAILED
    await buyers.check()


async def test_what_is_not_ours_is_set_aside(buyers: Buyers) -> None:
    buyers.stripe(
        "POST",
        "/v1/payment_intents",
        amount=700,
        currency="usd",
        payment_method="pm_card_visa",
        confirm="true",
    )
    ours = (await buyers.buy(20)).purchase
    # One that claims to be the payment of a purchase which has another.
    buyers.stripe(
        "POST",
        "/v1/payment_intents",
        amount=2000,
        currency="usd",
        payment_method="pm_card_visa",
        confirm="true",
        **{"metadata[purchase_id]": ours.purchase_id},
    )
    heard = await buyers.hear(*buyers.events("payment_intent.succeeded"))
    assert sorted(heard) == [EventState.DONE, EventState.QUARANTINED, EventState.QUARANTINED]
    assert await buyers.available() == 20


async def test_a_ledger_that_is_away_hears_of_it_later(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    async with (
        gate_to(ledger.address) as gate,
        running_payouts(database_url, ledger, stripe, webhooks=False, ledger_address=gate.address) as running,
    ):
        buyers = Buyers(running)
        await buyers.customer()
        await gate.cut()
        paid = (await buyers.buy(20)).purchase
        assert paid.state == PROCESSING
        assert [payment["status"] for payment in buyers.payments()] == ["succeeded"]
        assert await buyers.available() == 0
        await gate.open()

        async def heard() -> bool:
            buyers.payouts.clock.advance(timedelta(minutes=1))
            return (await buyers.get(paid.purchase_id)).state == SUCCEEDED

        await eventually(heard)
        await buyers.check()


@pytest.mark.parametrize("after_commit", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [1, 2, 3])
async def test_a_process_that_is_killed_at_any_step(
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
        with monkeypatch.context() as patch:
            kill_at(patch, step, after_commit=after_commit)
            await refusal(buyers.buy(20))
    # As long as the purchase is left to the one who began it.
    clock.advance(timedelta(minutes=2))
    async with running_payouts(database_url, ledger, stripe, webhooks=False, clock=clock) as running:
        buyers = buyers.reopened(running)
        (purchase_id,) = running.query("SELECT purchase_id FROM payouts.purchase")[0]
        await buyers.until(str(purchase_id), lambda found: found.state == SUCCEEDED)
        assert len(buyers.payments()) == 1
        await buyers.check()


async def test_many_purchases_at_once(buyers: Buyers) -> None:
    await buyers.customer("cus_bob", "pm_card_mastercard")
    bought = await asyncio.gather(
        *(buyers.buy(1, f"{number}", customer) for number in range(8) for customer in ("cus_ada", "cus_bob"))
    )
    for one in bought:
        await buyers.until(one.purchase.purchase_id, lambda found: found.state == SUCCEEDED)
    assert (await buyers.available(), await buyers.available("cus_bob")) == (8, 8)
    await buyers.check()


@pytest.mark.parametrize("micros", [0, 499_999, 490_000, 20_000_001, 1_000_000_000_000])
async def test_amounts_that_cannot_be_charged_are_refused(buyers: Buyers, micros: int) -> None:
    request = pb.PurchaseCreditsRequest(customer_id="cus_ada", amount=usd(0), idempotency_key="key")
    request.amount.amount_micros = micros
    refused = await refusal(buyers.caller().payments.PurchaseCredits(request))
    assert refused.fields == ["amount.amount_micros"]
    assert buyers.payouts.query("SELECT FROM payouts.purchase") == []


async def test_purchases_are_listed_by_customer_and_state(buyers: Buyers) -> None:
    bad = await buyers.add_card("pm_card_chargeCustomerFail")
    bought = [(await buyers.buy(1, f"{number}")).purchase for number in range(3)]
    await buyers.buy(1, "bad", method=bad)
    await buyers.customer("cus_bob")
    own = buyers.caller().payments
    listed = await own.ListPurchases(pb.ListPurchasesRequest(page_size=2, state=SUCCEEDED))
    rest = await own.ListPurchases(
        pb.ListPurchasesRequest(page_size=2, state=SUCCEEDED, page_token=listed.next_page_token)
    )
    assert [one.purchase_id for one in [*listed.purchases, *rest.purchases]] == [
        one.purchase_id for one in reversed(bought)
    ]
    assert rest.next_page_token == ""
    other = buyers.caller("cus_bob").payments
    assert list((await other.ListPurchases(pb.ListPurchasesRequest())).purchases) == []
    for call in (
        other.ListPurchases(pb.ListPurchasesRequest(customer_id="cus_ada")),
        other.GetPurchase(pb.GetPurchaseRequest(purchase_id=bought[0].purchase_id)),
        other.CancelPurchase(pb.CancelPurchaseRequest(purchase_id=bought[0].purchase_id)),
    ):
        assert (await refusal(call)).reason in ("CUSTOMER_NOT_FOUND", "CREDIT_PURCHASE_NOT_FOUND")
    refund = other.RefundPurchase(pb.RefundPurchaseRequest(purchase_id=bought[0].purchase_id))
    assert (await refusal(refund)).reason == "ROLE_NOT_ALLOWED"


async def test_a_customer_s_key_needs_no_customer(buyers: Buyers) -> None:
    bought = await buyers.caller().payments.PurchaseCredits(
        pb.PurchaseCreditsRequest(amount=usd(1), idempotency_key="own")
    )
    assert bought.purchase.customer_id == "cus_ada"
    assert bought.purchase.amount.amount_micros == USD
