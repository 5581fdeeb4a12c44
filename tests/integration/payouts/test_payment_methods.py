"""Payment methods: saved at Stripe, known here in a few words, one of them the default."""

import asyncio
from datetime import timedelta

import pytest

from sandbox.stripe.server import StripeStandIn
from tallystick.payouts.v1 import payment_service_pb2 as pb
from tallystick.payouts.v1 import purchase_pb2
from tests.integration.payouts.buyers import SUCCEEDED, Buyers
from tests.support.rpc_errors import refusal


async def _listed(buyers: Buyers) -> list[purchase_pb2.PaymentMethod]:
    answer = await buyers.caller().payments.ListPaymentMethods(
        pb.ListPaymentMethodsRequest(customer_id="cus_ada")
    )
    return list(answer.payment_methods)


async def _remove(buyers: Buyers, payment_method_id: str, customer_id: str = "cus_ada") -> None:
    await buyers.caller(customer_id).payments.RemovePaymentMethod(
        pb.RemovePaymentMethodRequest(customer_id=customer_id, payment_method_id=payment_method_id)
    )


async def test_the_first_is_the_default_until_another_is_made_it(buyers: Buyers) -> None:
    (first,) = await _listed(buyers)
    assert (first.type, first.brand, first.last4, first.is_default) == ("card", "visa", "4242", True)
    assert len(first.expire_month) == 7
    second = await buyers.add_card("pm_card_mastercard")
    third = await buyers.add_card("pm_card_amex", make_default=True)
    assert [(one.payment_method_id, one.is_default) for one in await _listed(buyers)] == [
        (third, True),
        (second, False),
        (first.payment_method_id, False),
    ]
    # Saving one again changes nothing of that.
    assert await buyers.add_card(second) == second
    assert (await _listed(buyers))[0].payment_method_id == third


async def test_a_removed_one_is_gone_here_and_there(buyers: Buyers) -> None:
    (first,) = await _listed(buyers)
    second = await buyers.add_card("pm_card_mastercard")
    for _ in range(2):
        await _remove(buyers, first.payment_method_id)
    assert [(one.payment_method_id, one.is_default) for one in await _listed(buyers)] == [(second, True)]
    assert buyers.stripe("GET", f"/v1/payment_methods/{first.payment_method_id}")["customer"] is None
    await _remove(buyers, second)
    assert (await refusal(buyers.buy(20))).reason == "PAYMENT_METHOD_NOT_FOUND"


async def test_another_s_payment_method_is_not_there(buyers: Buyers) -> None:
    (own,) = await _listed(buyers)
    await buyers.customer("cus_bob")
    bought = buyers.buy(20, "theirs", "cus_bob", method=own.payment_method_id)
    assert (await refusal(bought)).reason == "PAYMENT_METHOD_NOT_FOUND"
    assert (await refusal(buyers.add_card(own.payment_method_id, "cus_bob"))).reason == "PROCESSOR_REFUSED"
    await _remove(buyers, own.payment_method_id, "cus_bob")
    assert (await _listed(buyers)) == [own]


async def test_a_card_that_its_bank_declines_is_not_saved(buyers: Buyers) -> None:
    refused = await refusal(buyers.add_card("pm_card_chargeDeclinedLostCard"))
    assert refused.reason == "PROCESSOR_REFUSED"
    assert refused.metadata["processor_code"] == "card_declined"
    assert refused.metadata["decline_code"] == "lost_card"
    assert len(await _listed(buyers)) == 1


async def test_there_are_never_too_many(buyers: Buyers) -> None:
    for _ in range(18):
        await buyers.add_card("pm_card_visa")
    added = await asyncio.gather(*(buyers.add_card("pm_card_visa") for _ in range(4)), return_exceptions=True)
    assert len([one for one in added if isinstance(one, str)]) == 1
    listed = await _listed(buyers)
    assert len(listed) == 20
    assert [one.is_default for one in listed].count(True) == 1
    saved = buyers.stripe(
        "GET", "/v1/payment_methods", customer=_stripe_customer(buyers), type="card", limit=100
    )
    assert len(saved["data"]) == 20


def _stripe_customer(buyers: Buyers) -> object:
    return buyers.payouts.query("SELECT stripe_customer_id FROM payouts.stripe_customer")[0][0]


async def test_a_customer_is_made_once_whatever_is_lost(buyers: Buyers, stripe: StripeStandIn) -> None:
    await buyers.customer("cus_bob", card="")
    stripe.control.fault("lost_answer", "customers.create")
    assert (await refusal(buyers.add_card("pm_card_visa", "cus_bob"))).reason == "DEPENDENCY_UNAVAILABLE"
    # By now the key is forgotten: the customer is found by its metadata.
    await buyers.payouts.advance(timedelta(hours=25))
    await buyers.add_card("pm_card_visa", "cus_bob")
    made = buyers.stripe("GET", "/v1/customers", limit=100)["data"]
    assert len([one for one in made if one["metadata"] == {"customer_id": "cus_bob"}]) == 1
    assert (await buyers.buy(5, "bob", "cus_bob")).purchase.state == SUCCEEDED


async def test_a_customer_that_was_never_made_is_made_after_a_day(
    buyers: Buyers, stripe: StripeStandIn
) -> None:
    await buyers.customer("cus_bob", card="")
    stripe.control.fault("cut", "customers.create")
    await refusal(buyers.add_card("pm_card_visa", "cus_bob"))
    await buyers.payouts.advance(timedelta(hours=25))
    await buyers.add_card("pm_card_visa", "cus_bob")
    made = buyers.stripe("GET", "/v1/customers", limit=100)["data"]
    assert len([one for one in made if one["metadata"] == {"customer_id": "cus_bob"}]) == 1


@pytest.mark.parametrize("effect", [True, False])
async def test_a_server_error_that_its_key_keeps_does_not_block_a_customer_for_a_day(
    buyers: Buyers, stripe: StripeStandIn, effect: bool
) -> None:
    await buyers.customer("cus_bob", card="")
    stripe.control.fault("server_error", "customers.create", effect=effect)
    if not effect:
        assert (await refusal(buyers.add_card("pm_card_visa", "cus_bob"))).reason == "DEPENDENCY_UNAVAILABLE"
    await buyers.add_card("pm_card_visa", "cus_bob")
    made = buyers.stripe("GET", "/v1/customers", limit=100)["data"]
    assert len([one for one in made if one["metadata"] == {"customer_id": "cus_bob"}]) == 1


async def test_nobody_pays_whom_the_ledger_does_not_know(buyers: Buyers) -> None:
    unknown = buyers.payouts.operator.payments.AddPaymentMethod(
        pb.AddPaymentMethodRequest(customer_id="cus_nobody", payment_method_id="pm_card_visa")
    )
    assert (await refusal(unknown)).reason == "CUSTOMER_NOT_FOUND"
    assert buyers.payouts.query("SELECT FROM payouts.stripe_customer WHERE customer_id = 'cus_nobody'") == []
