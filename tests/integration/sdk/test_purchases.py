"""Customers buy credits with either client: once per key, whatever is lost."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sandbox.stripe.server import StripeStandIn
from tallystick import IdempotencyKeyReused, InvalidArgument, Money, PaymentMethodNotFound, PermissionDenied
from tallystick.common.v1 import access_pb2
from tallystick.payouts.v1 import payment_service_pb2
from tests.integration.sdk.either import Open
from tests.support.ledger_server import LedgerServer
from tests.support.payouts_server import PayoutsServer, running_payouts, running_stripe


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    with running_stripe() as standin:
        yield standin


@pytest.fixture
async def payouts(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> AsyncIterator[PayoutsServer]:
    async with running_payouts(database_url, ledger, stripe) as running:
        yield running


@pytest.fixture
async def buyer(payouts: PayoutsServer, ledger: LedgerServer) -> dict[str, Any]:
    """How a client of cus_2 reaches payouts, with a saved card."""
    created = await ledger.create_caller(access_pb2.ROLE_CUSTOMER, "buyer", customer_id="cus_2")
    await add_card(payouts, "pm_card_visa")
    return {"api_key": created.key, "payouts": payouts.address}


async def add_card(payouts: PayoutsServer, card: str) -> str:
    added = await payouts.operator.payments.AddPaymentMethod(
        payment_service_pb2.AddPaymentMethodRequest(customer_id="cus_2", payment_method_id=card)
    )
    return added.payment_method.payment_method_id


async def test_credits_are_bought_once_per_key(opened: Open, buyer: dict[str, Any]) -> None:
    async with opened(**buyer) as client:
        first = await client.purchase("20", idempotency_key="order")
        again = await client.purchase(Money.of("20"), idempotency_key="order")
        assert first == again
        assert (first.state, first.customer, str(first.amount)) == ("succeeded", "cus_2", "20.00 USD")
        assert first.transaction_id.startswith("txn_")
        other = await client.purchase("20")
        assert other.purchase_id != first.purchase_id
        balance = await client.balance()
        assert str(balance.available) == "40.00 USD"
        with pytest.raises(IdempotencyKeyReused):
            await client.purchase("21", idempotency_key="order")


@pytest.mark.parametrize("fault", ["lost_answer", "cut", "rate_limit"])
async def test_it_waits_until_it_is_known(
    opened: Open, buyer: dict[str, Any], stripe: StripeStandIn, fault: str
) -> None:
    stripe.control.fault(fault, "payment_intents.create")
    async with opened(**buyer) as client:
        assert (await client.purchase("20", idempotency_key="order")).state == "succeeded"
        assert str((await client.balance()).available) == "20.00 USD"


async def test_it_says_when_time_was_too_short(
    opened: Open, buyer: dict[str, Any], stripe: StripeStandIn
) -> None:
    stripe.control.fault("cut", "payment_intents.create", count=1000)
    async with opened(**buyer) as client:
        assert (await client.purchase("20", idempotency_key="order", timeout=3)).state == "processing"


async def test_what_is_not_paid_is_an_answer(
    opened: Open, buyer: dict[str, Any], payouts: PayoutsServer
) -> None:
    bad = await add_card(payouts, "pm_card_chargeCustomerFail")
    asks = await add_card(payouts, "pm_card_authenticationRequired")
    async with opened(**buyer) as client:
        failed = await client.purchase("20", payment_method=bad)
        assert (failed.state, failed.failure_code) == ("failed", "generic_decline")
        asked = await client.purchase("20", payment_method=asks)
        assert asked.state == "requires_action"
        assert asked.action_url.startswith("http")
        assert asked.client_secret not in repr(asked)


async def test_what_cannot_be_bought_raises(
    opened: Open, buyer: dict[str, Any], payouts: PayoutsServer
) -> None:
    async with opened(**buyer) as client:
        with pytest.raises(PaymentMethodNotFound):
            await client.purchase("20", payment_method="pm_nobody")
        with pytest.raises(InvalidArgument):
            await client.purchase("0.10")
        with pytest.raises(TypeError):
            await client.purchase(0.1)
    async with opened(payouts=payouts.address) as host:
        with pytest.raises(PermissionDenied):
            await host.purchase("20", customer="cus_2")
