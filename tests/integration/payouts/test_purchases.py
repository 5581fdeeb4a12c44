"""Credits that customers buy: paid once, granted once, whatever is lost on the way."""

import asyncio

import pytest

from tallystick.payouts.v1 import payment_service_pb2 as pb
from tests.integration.payouts.buyers import FAILED, SUCCEEDED, USD, Buyers
from tests.support.rpc_errors import refusal


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


async def test_a_declined_card_fails_in_words_and_costs_nothing(buyers: Buyers) -> None:
    card = await buyers.add_card("pm_card_chargeCustomerFail")
    failed = (await buyers.buy(20, method=card)).purchase
    assert failed.state == FAILED
    assert (failed.failure_code, failed.failure_reason) == ("generic_decline", "Your card was declined.")
    assert [payment["status"] for payment in buyers.payments()] == ["canceled"]
    await buyers.check()
