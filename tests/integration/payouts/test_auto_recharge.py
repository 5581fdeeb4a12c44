"""Credits that are bought by themselves: when they run low, once, and within what was set."""

import asyncio
from datetime import timedelta

import pytest

from sandbox.stripe.server import StripeStandIn
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import credit_service_pb2
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tallystick.payouts.v1 import payment_service_pb2 as pb
from tallystick.payouts.v1 import purchase_pb2
from tests.integration.payouts.buyers import CANCELLED, FAILED, PROCESSING, SUCCEEDED, USD, Buyers, usd
from tests.support.metering_server import fee, price, running_metering
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually

AUTO = purchase_pb2.PURCHASE_ORIGIN_AUTO_RECHARGE


def _money(currency_code: str, micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code=currency_code, amount_micros=micros)


async def _set(buyers: Buyers, **changes: object) -> purchase_pb2.AutoRecharge:
    wanted = {
        "customer_id": "cus_ada",
        "enabled": True,
        "threshold": usd(5),
        "amount": usd(20),
        "monthly_ceiling": usd(60),
        **changes,
    }
    answer = await buyers.caller().payments.SetAutoRecharge(
        pb.SetAutoRechargeRequest(auto_recharge=purchase_pb2.AutoRecharge(**wanted))  # type: ignore[arg-type]
    )
    return answer.auto_recharge


async def _get(buyers: Buyers) -> purchase_pb2.AutoRecharge:
    answer = await buyers.caller().payments.GetAutoRecharge(pb.GetAutoRechargeRequest(customer_id="cus_ada"))
    return answer.auto_recharge


async def _recharge(buyers: Buyers, lease_free: money_pb2.Money | None = None) -> pb.RechargeCreditsResponse:
    service = buyers.payouts.caller(buyers.payouts.ledger.service.key)
    return await service.payments.RechargeCredits(
        pb.RechargeCreditsRequest(customer_id="cus_ada", currency_code="USD", lease_free=lease_free)
    )


async def test_low_credits_are_bought_once_however_often_it_is_asked(buyers: Buyers) -> None:
    await _set(buyers)
    answers = await asyncio.gather(*(_recharge(buyers) for _ in range(8)))
    bought = {one.purchase.purchase_id for one in answers if one.HasField("purchase")}
    assert len(bought) == 1
    assert all(one.enabled and one.threshold == usd(5) for one in answers)
    found = await buyers.until(bought.pop(), lambda one: one.state == SUCCEEDED)
    assert found.origin == AUTO
    assert await buyers.available() == 20
    assert not (await _recharge(buyers)).HasField("purchase")
    assert (await _get(buyers)).bought_this_month == usd(20)
    await buyers.check()


async def test_nothing_is_bought_while_there_is_enough(buyers: Buyers) -> None:
    unset = await _recharge(buyers)
    assert not unset.enabled
    assert not unset.HasField("threshold")
    await _set(buyers)
    await buyers.adjust(5)
    answer = await _recharge(buyers)
    assert answer.enabled
    assert not answer.HasField("purchase")
    assert buyers.payments() == []


async def test_what_a_lease_has_free_is_available_and_no_more_than_is_leased(buyers: Buyers) -> None:
    await _set(buyers)
    await buyers.adjust(6)
    leased = await buyers.payouts.ledger.service.credits.OpenLease(
        credit_service_pb2.OpenLeaseRequest(customer_id="cus_ada", currency_code="USD", wanted_micros=6 * USD)
    )
    assert leased.granted.lease.remaining == usd(6)
    assert await buyers.available() == 0
    assert not (await _recharge(buyers, usd(5))).HasField("purchase")
    # More than is leased cannot be free.
    assert not (await _recharge(buyers, usd(100))).HasField("purchase")
    assert (await _recharge(buyers, usd(4))).HasField("purchase")


async def test_what_is_claimed_to_be_free_in_no_lease_counts_for_nothing(buyers: Buyers) -> None:
    await _set(buyers)
    assert (await _recharge(buyers, usd(100))).HasField("purchase")


async def test_the_cool_off_and_the_ceiling_hold(buyers: Buyers) -> None:
    await _set(buyers, threshold=usd(100), cool_off_seconds=600)
    bought = []
    for _ in range(5):
        answer = await _recharge(buyers)
        bought.append(answer.HasField("purchase"))
        # Within the cool-off nothing is bought.
        assert not (await _recharge(buyers)).HasField("purchase")
        await buyers.payouts.advance(timedelta(seconds=601))
    assert bought == [True, True, True, False, False]
    stopped = await _get(buyers)
    assert (stopped.bought_this_month, stopped.stopped_reason) == (usd(60), "the monthly ceiling is reached")
    await buyers.payouts.advance(timedelta(days=32))
    assert (await _get(buyers)).bought_this_month == usd(0)
    assert (await _recharge(buyers)).HasField("purchase")
    assert (await _get(buyers)).bought_this_month == usd(20)
    await buyers.check()


async def test_a_declined_payment_stops_it_until_it_is_set_again(buyers: Buyers) -> None:
    bad = await buyers.add_card("pm_card_chargeCustomerFail", make_default=True)
    await _set(buyers)
    answer = await _recharge(buyers)
    assert answer.purchase.state == FAILED
    stopped = await _get(buyers)
    assert stopped.enabled
    assert stopped.stopped_reason == "a payment failed: Your card was declined."
    assert stopped.bought_this_month == usd(0)
    await buyers.payouts.advance(timedelta(hours=1))
    refused = await _recharge(buyers)
    assert (refused.enabled, refused.HasField("purchase")) == (False, False)
    good = await buyers.add_card("pm_card_visa")
    again = await _set(buyers, payment_method_id=good)
    assert again.stopped_reason == ""
    assert (await _recharge(buyers)).purchase.state == SUCCEEDED
    assert bad != good
    await buyers.check()


async def test_a_card_that_wants_its_holder_stops_it(buyers: Buyers) -> None:
    await buyers.add_card("pm_card_authenticationRequired", make_default=True)
    await _set(buyers)
    answer = await _recharge(buyers)
    assert (answer.purchase.state, answer.purchase.failure_code) == (FAILED, "authentication_required")
    assert (await _get(buyers)).stopped_reason != ""
    await buyers.check()


async def test_a_recharge_in_doubt_is_not_bought_twice(buyers: Buyers, stripe: StripeStandIn) -> None:
    await _set(buyers, cool_off_seconds=10)
    stripe.control.fault("lost_answer", "payment_intents.create")
    # Nor is it known to be there for a while.
    stripe.control.fault("cut", "payment_intents.create", count=2)
    begun = (await _recharge(buyers)).purchase
    assert begun.state == PROCESSING
    buyers.payouts.clock.advance(timedelta(seconds=11))
    again = await _recharge(buyers)
    assert again.purchase.purchase_id in ("", begun.purchase_id)
    await buyers.until(begun.purchase_id, lambda found: found.state == SUCCEEDED)
    assert len(buyers.payments()) == 1
    await buyers.check()


async def test_without_a_payment_method_it_stops_and_says_so(buyers: Buyers) -> None:
    card = await buyers.add_card("pm_card_mastercard")
    await _set(buyers, payment_method_id=card)
    await buyers.caller().payments.RemovePaymentMethod(
        pb.RemovePaymentMethodRequest(customer_id="cus_ada", payment_method_id=card)
    )
    assert not (await _recharge(buyers)).HasField("purchase")
    assert (await _get(buyers)).stopped_reason == "there is no payment method"


async def test_a_customer_who_disputes_is_not_charged_again(buyers: Buyers, stripe: StripeStandIn) -> None:
    bought = (await buyers.buy(20)).purchase
    await _set(buyers)
    stripe.control.run("charge dispute", charge=buyers.charge_of(bought))
    await buyers.hear()
    assert not (await _recharge(buyers)).HasField("purchase")
    assert len(buyers.payments()) == 1


async def test_a_cancelled_recharge_counts_for_nothing(buyers: Buyers, stripe: StripeStandIn) -> None:
    await _set(buyers)
    stripe.control.fault("cut", "payment_intents.create", count=100)
    begun = (await _recharge(buyers)).purchase
    assert (await _get(buyers)).bought_this_month == usd(20)
    await buyers.caller().payments.CancelPurchase(pb.CancelPurchaseRequest(purchase_id=begun.purchase_id))
    await buyers.payouts.advance(timedelta(minutes=20))
    await buyers.until(begun.purchase_id, lambda found: found.state == CANCELLED)
    setting = await _get(buyers)
    assert (setting.bought_this_month, setting.stopped_reason) == (usd(0), "")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"threshold": usd(0)}, "auto_recharge.threshold.amount_micros"),
        (
            {"amount": money_pb2.Money(currency_code="USD", amount_micros=490_000)},
            "auto_recharge.amount.amount_micros",
        ),
        (
            {"amount": money_pb2.Money(currency_code="EUR", amount_micros=USD)},
            "auto_recharge.amount.currency_code",
        ),
        ({"monthly_ceiling": usd(19)}, "auto_recharge.monthly_ceiling.amount_micros"),
        ({"cool_off_seconds": 9}, "auto_recharge.cool_off_seconds"),
        ({"cool_off_seconds": -1}, "auto_recharge.cool_off_seconds"),
    ],
)
async def test_what_cannot_be_set(buyers: Buyers, changes: dict[str, object], field: str) -> None:
    assert (await refusal(_set(buyers, **changes))).fields == [field]
    assert not (await _get(buyers)).enabled


async def test_it_is_switched_off(buyers: Buyers) -> None:
    await _set(buyers)
    off = purchase_pb2.AutoRecharge(customer_id="cus_ada")
    await buyers.caller().payments.SetAutoRecharge(pb.SetAutoRechargeRequest(auto_recharge=off))
    assert not (await _recharge(buyers)).enabled
    unknown = _set(buyers, payment_method_id="pm_nobody")
    assert (await refusal(unknown)).reason == "PAYMENT_METHOD_NOT_FOUND"


async def test_metering_has_credits_bought_before_they_run_out(buyers: Buyers) -> None:
    ledger = buyers.payouts.ledger
    await ledger.create_organization("org_lark")
    await buyers.adjust(6)
    await _set(buyers)
    host = (await ledger.create_caller(access_pb2.ROLE_HOST, "host")).key
    async with running_metering(
        buyers.payouts.database_url, ledger, payouts_address=buyers.payouts.address
    ) as metering:
        await metering.publish(price(fee("2.00")))

        async def run(number: int, cost: int = 2) -> None:
            caller = metering.caller(host).metering
            authorized = await caller.Authorize(
                metering_service_pb2.AuthorizeRequest(
                    customer_id="cus_ada",
                    workflow_id=f"run-{number}",
                    agent_id="agt_lark",
                    action_type="run",
                    max_cost=usd(cost),
                )
            )
            await caller.Settle(
                metering_service_pb2.SettleRequest(
                    token=authorized.reservation.token,
                    event=usage_pb2.UsageEvent(outcome=usage_pb2.OUTCOME_SUCCESS),
                )
            )

        async def bought() -> bool:
            return await buyers.available() == 24

        await run(1)
        await eventually(bought)
        await buyers.check()


async def test_a_refused_run_has_credits_bought(buyers: Buyers) -> None:
    ledger = buyers.payouts.ledger
    await ledger.create_organization("org_lark")
    await _set(buyers)
    host = (await ledger.create_caller(access_pb2.ROLE_HOST, "host")).key
    async with running_metering(
        buyers.payouts.database_url, ledger, payouts_address=buyers.payouts.address
    ) as metering:
        await metering.publish(price(fee("2.00")))
        refused = metering.caller(host).metering.Authorize(
            metering_service_pb2.AuthorizeRequest(
                customer_id="cus_ada",
                workflow_id="run-1",
                agent_id="agt_lark",
                action_type="run",
                max_cost=usd(2),
            )
        )
        assert (await refusal(refused)).reason == "INSUFFICIENT_CREDITS"

        async def bought() -> bool:
            return await buyers.available() == 20

        await eventually(bought)
        await buyers.check()
