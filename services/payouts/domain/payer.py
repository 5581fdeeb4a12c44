"""A customer at the payment processor, and its saved payment methods."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.kit.errors import FailedPrecondition, NotFound
from services.payouts.domain.payout import KEY_LIFE

MAX_METHODS: Final = 20


@dataclass(frozen=True, slots=True)
class Payer:
    """A row of payouts.stripe_customer."""

    customer_id: str
    call_number: int
    call_time: datetime
    create_time: datetime
    stripe_customer_id: str | None = None

    @property
    def key(self) -> str:
        """The idempotency key of the call that makes it."""
        return f"tallystick-customer-{self.customer_id}-{self.call_number}"

    def may_repeat_call(self, now: datetime) -> bool:
        """Whether the key still makes it harmless to ask again."""
        age: timedelta = now - self.call_time
        return age < KEY_LIFE


@dataclass(frozen=True, slots=True)
class PaymentMethod:
    """A row of payouts.payment_method."""

    payment_method_id: str
    customer_id: str
    type: str
    brand: str
    last4: str
    expire_month: str
    is_default: bool
    create_time: datetime


def method_not_found(customer_id: str, payment_method_id: str) -> NotFound:
    """What a caller is told of a payment method that is not saved, or of a customer who has none."""
    return NotFound(
        "the customer has no such payment method"
        if payment_method_id
        else "the customer has no payment method",
        reason="PAYMENT_METHOD_NOT_FOUND",
        metadata={"customer_id": customer_id, "payment_method_id": payment_method_id},
    )


def too_many_methods(customer_id: str) -> FailedPrecondition:
    """What a caller is told who saves one more than there may be."""
    return FailedPrecondition(
        f"the customer has {MAX_METHODS} payment methods: remove one first",
        reason="TOO_MANY_PAYMENT_METHODS",
        metadata={"customer_id": customer_id, "limit": str(MAX_METHODS)},
    )
