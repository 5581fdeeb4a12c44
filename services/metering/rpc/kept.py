"""What the two ways to reserve answer alike."""

from typing import NamedTuple

from services.kit.errors import AlreadyExists, FailedPrecondition, PreconditionViolation
from services.kit.money import Money
from services.metering.domain.reservation import Reservation
from services.metering.store.pool_types import LeaseState


class Kept(NamedTuple):
    """A reservation that stands, and what it left the customer to spend."""

    reservation: Reservation
    token: str
    # Whether it stood before, so that this call reserved nothing.
    duplicate: bool
    available_micros: int
    # The lease as it stands since, if a hold took the reservation over from it.
    lease: LeaseState | None = None


def insufficient_credits(
    customer_id: str, currency_code: str, requested_micros: int, available_micros: int | None
) -> FailedPrecondition:
    """The error for an amount that neither credits nor the credit limit cover.

    `available_micros` is None for who may not know it.
    """
    metadata = {
        "customer_id": customer_id,
        "currency_code": currency_code,
        "requested_micros": str(requested_micros),
    }
    if available_micros is not None:
        metadata["available_micros"] = str(max(available_micros, 0))
    message = f"the customer's credits do not cover {Money(currency_code, requested_micros)}"
    return FailedPrecondition(
        message,
        reason="INSUFFICIENT_CREDITS",
        metadata=metadata,
        precondition_violations=[PreconditionViolation("INSUFFICIENT_CREDITS", customer_id, message)],
    )


def customer_frozen(customer_id: str) -> FailedPrecondition:
    """The error for a customer that is frozen, so that it starts no run."""
    message = "the customer is frozen"
    return FailedPrecondition(
        message,
        reason="CUSTOMER_FROZEN",
        metadata={"customer_id": customer_id},
        precondition_violations=[PreconditionViolation("CUSTOMER_FROZEN", customer_id, message)],
    )


def reservation_ended(reservation_id: str, state: str) -> FailedPrecondition:
    """The error for a reservation that was settled, released or expired."""
    return FailedPrecondition(
        f"reservation {reservation_id} is {state}; a new attempt needs a new idempotency key",
        reason="RESERVATION_ENDED",
        metadata={"reservation_id": reservation_id, "state": state},
    )


def attempt_reused(reservation: Reservation) -> AlreadyExists:
    """The error for an attempt that came before with other content."""
    return AlreadyExists(
        "this attempt came before with other content; a new one needs a new idempotency key",
        reason="IDEMPOTENCY_KEY_REUSED",
        metadata={"key": reservation.reservation_id},
    )
