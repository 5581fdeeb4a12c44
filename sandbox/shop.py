"""Customers who buy their credits: with a saved card, through PaymentService."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sandbox.calls import in_flight, until
from sandbox.register import CURRENCY
from sandbox.replay import ReplayError
from tallystick.common.v1.money_pb2 import Money
from tallystick.payouts.v1.payment_service_pb2 import (
    AddPaymentMethodRequest,
    GetPurchaseRequest,
    PurchaseCreditsRequest,
)
from tallystick.payouts.v1.payment_service_pb2_grpc import PaymentServiceStub
from tallystick.payouts.v1.purchase_pb2 import (
    PURCHASE_STATE_CANCELLED,
    PURCHASE_STATE_FAILED,
    PURCHASE_STATE_SUCCEEDED,
    Purchase,
)

if TYPE_CHECKING:
    import grpc

    from tallystick.payouts.v1.payment_service_pb2_grpc import PaymentServiceAsyncStub

MICROS_PER_CENT = 10_000
# What a card can be charged at once: Stripe's minimum, and eight digits of cents.
LEAST_MICROS = 50 * MICROS_PER_CENT
MOST_MICROS = 99_999_999 * MICROS_PER_CENT

# Stripe's name for a test card that pays.
_CARD = "pm_card_visa"
_CALLS_IN_FLIGHT = 8


class Shop:
    """Sells credits over the operator's channel to payouts, for customers who have a card here."""

    def __init__(self, payouts: grpc.aio.Channel) -> None:
        self._payments: PaymentServiceAsyncStub = PaymentServiceStub(payouts)
        # By what was asked: what was bought.
        self._purchases: dict[tuple[str, int, str], str] = {}

    async def open(self, amounts: Iterable[tuple[str, int]]) -> None:
        """Customers save a card each, and buy their first credits."""

        async def begin(first: tuple[str, int]) -> None:
            customer_id, micros = first
            await self._payments.AddPaymentMethod(
                AddPaymentMethodRequest(customer_id=customer_id, payment_method_id=_CARD)
            )
            await self.buy(customer_id, micros, "first")

        await in_flight(_CALLS_IN_FLIGHT, amounts, begin)

    async def buy(self, customer_id: str, micros: int, name: str) -> None:
        """Return when the credits are there. `name` tells a customer's purchases apart: one counts once.

        Raises:
            ReplayError: the card was not charged, or the credits did not come.
        """
        asked = await self._ask(customer_id, micros, name)
        self._purchases[customer_id, micros, name] = asked.purchase_id

        async def succeeded() -> bool:
            request = GetPurchaseRequest(purchase_id=asked.purchase_id)
            found = (await self._payments.GetPurchase(request)).purchase
            if found.state in (PURCHASE_STATE_FAILED, PURCHASE_STATE_CANCELLED):
                raise ReplayError(f"{customer_id} bought nothing: {found.failure_reason}")
            return found.state == PURCHASE_STATE_SUCCEEDED

        await until(f"{customer_id} has what it bought", succeeded)

    async def buy_again(self) -> bool:
        """Ask for every purchase again. Whether each was answered with what was bought then."""
        same = True
        for (customer_id, micros, name), purchase_id in self._purchases.items():
            purchase = await self._ask(customer_id, micros, name)
            same &= (purchase.purchase_id, purchase.state) == (purchase_id, PURCHASE_STATE_SUCCEEDED)
        return same

    async def _ask(self, customer_id: str, micros: int, name: str) -> Purchase:
        answer = await self._payments.PurchaseCredits(
            PurchaseCreditsRequest(
                customer_id=customer_id,
                amount=Money(currency_code=CURRENCY, amount_micros=micros),
                idempotency_key=f"replay/{name}",
            )
        )
        return answer.purchase


def chargeable(micros: int) -> int:
    """The smallest amount that a card can be charged and that is not less, or the largest there is."""
    cents = -(-micros // MICROS_PER_CENT)
    return min(max(cents * MICROS_PER_CENT, LEAST_MICROS), MOST_MICROS)
