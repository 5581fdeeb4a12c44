"""Refunds that an operator asks for. What becomes of their money is read at the payment processor."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from services.kit.errors import FailedPrecondition
from services.kit.money import Money
from services.payouts.domain.payout import Call
from services.payouts.domain.purchase import Purchase, PurchaseState, state_conflict
from services.payouts.domain.units import to_minor


class RefundState(StrEnum):
    """What became of a refund that was asked for."""

    PENDING = "pending"
    MADE = "made"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """A row of payouts.refund_request."""

    refund_request_id: str
    purchase_id: str
    customer_id: str
    amount_micros: int
    reason: str
    requester: str
    refund: Call
    state: RefundState = RefundState.PENDING
    refund_id: str | None = None
    failure_code: str = ""
    failure_reason: str = ""


def refund_call(refund_request_id: str, purchase: Purchase, money: Money, now: datetime) -> Call:
    """The call that gives money back, frozen."""
    body: Mapping[str, Any] = {
        "payment_intent": purchase.payment_intent_id,
        "amount": to_minor(money),
        "metadata": {"purchase_id": purchase.purchase_id, "refund_request_id": refund_request_id},
    }
    return Call(body, f"tallystick-refund-{refund_request_id}", now)


def check_refundable(purchase: Purchase, amount_micros: int, asked_micros: int) -> None:
    """Raises FailedPrecondition unless so much may go back, beside `asked_micros` that are on their way."""
    if purchase.state is not PurchaseState.SUCCEEDED:
        raise state_conflict(purchase, "only what was paid can be given back")
    left = purchase.left_micros - asked_micros
    if amount_micros > left:
        raise FailedPrecondition(
            f"at most {left} micros of the purchase can be given back",
            reason="REVERSAL_EXCEEDS_PURCHASE",
            metadata={
                "purchase_key": purchase.purchase_id,
                "amount_micros": str(purchase.money.amount_micros),
                "reversed_micros": str(purchase.money.amount_micros - left),
                "requested_micros": str(amount_micros),
            },
        )
