"""What the functions of the database refuse, as errors with a meaning."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg

from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PreconditionViolation,
)
from services.ledger.store.charges import unknown_charge, unknown_party

# SQLSTATEs of our own.
_KEY_REUSED = "TL001"
_UNKNOWN_PARTY = "TL002"
_INSUFFICIENT_BALANCE = "TL003"
_PAYOUT_STATE = "TL004"
_REVERSAL_TOO_LARGE = "TL005"
_UNKNOWN_PAYOUT = "TL006"
_UNKNOWN_PURCHASE = "TL007"
_REVERSAL_EXCEEDS_PURCHASE = "TL008"
_ALREADY_REINSTATED = "TL009"
_UNKNOWN_CHARGE = "TL020"
_CORRECTION_TOO_LARGE = "TL021"
_WRITE_OFF_TOO_LARGE = "TL030"
_UNKNOWN_ADJUSTMENT = "TL031"
_APPROVED_BY_PROPOSER = "TL032"
_ADJUSTMENT_STATE = "TL033"
_EXPIRED_GRANT = "TL065"
# How long metering needs to see that a lease is recalled, and to return it.
_RECALL_TIME = timedelta(seconds=5)


@contextmanager
def refusals(key: str = "") -> Iterator[None]:
    """Turn what a function refuses into a TallystickError; `key` is the idempotency key that it was given."""
    try:
        yield
    except psycopg.Error as error:
        detail = error.diag.message_detail or ""
        if error.sqlstate == _KEY_REUSED:
            raise AlreadyExists(
                "this idempotency key was used before with another request",
                reason="IDEMPOTENCY_KEY_REUSED",
                metadata={"key": key},
            ) from None
        if error.sqlstate == _UNKNOWN_PARTY:
            raise unknown_party(detail) from None
        if error.sqlstate == _INSUFFICIENT_BALANCE:
            raise _insufficient(json.loads(detail)) from None
        if error.sqlstate == _PAYOUT_STATE:
            raise FailedPrecondition(
                "the payout is in a state in which this cannot be done to it",
                reason="PAYOUT_STATE_CONFLICT",
                metadata=json.loads(detail),
            ) from None
        if error.sqlstate == _REVERSAL_TOO_LARGE:
            raise FailedPrecondition(
                "more would come back of the payout than it paid",
                reason="REVERSAL_EXCEEDS_PAYOUT",
                metadata=json.loads(detail),
            ) from None
        if error.sqlstate == _UNKNOWN_PAYOUT:
            raise unknown_payout(detail) from None
        if error.sqlstate == _UNKNOWN_PURCHASE:
            raise purchase_not_found(json.loads(detail)) from None
        if error.sqlstate == _REVERSAL_EXCEEDS_PURCHASE:
            raise FailedPrecondition(
                "more would come back of the purchase than was paid",
                reason="REVERSAL_EXCEEDS_PURCHASE",
                metadata=json.loads(detail),
            ) from None
        if error.sqlstate == _ALREADY_REINSTATED:
            raise FailedPrecondition(
                "what was reversed has been reinstated before",
                reason="PURCHASE_ALREADY_REINSTATED",
                metadata=json.loads(detail),
            ) from None
        if error.sqlstate == _UNKNOWN_CHARGE:
            raise unknown_charge(detail) from None
        if error.sqlstate == _CORRECTION_TOO_LARGE:
            raise FailedPrecondition(
                "more would be taken back of the charge than is left of it",
                reason="CORRECTION_EXCEEDS_CHARGE",
                metadata=json.loads(detail),
            ) from None
        if error.sqlstate == _WRITE_OFF_TOO_LARGE:
            raise FailedPrecondition(
                "more would be written off than is owed",
                reason="WRITE_OFF_EXCEEDS_DEBT",
                metadata=json.loads(detail),
            ) from None
        if error.sqlstate == _UNKNOWN_ADJUSTMENT:
            raise unknown_adjustment(detail) from None
        if error.sqlstate == _APPROVED_BY_PROPOSER:
            raise FailedPrecondition(
                "whoever proposed an adjustment cannot approve it",
                reason="ADJUSTMENT_NEEDS_ANOTHER_APPROVER",
                metadata={"adjustment_id": detail},
            ) from None
        if error.sqlstate == _ADJUSTMENT_STATE:
            raise FailedPrecondition(
                "the adjustment is not proposed any more",
                reason="ADJUSTMENT_STATE_CONFLICT",
                metadata=json.loads(detail),
            ) from None
        if error.sqlstate == _EXPIRED_GRANT:
            raise InvalidArgument.of("expire_time", "must be in the future") from None
        raise


def unknown_adjustment(adjustment_id: str) -> NotFound:
    """The error for an adjustment that is not there."""
    return NotFound(
        "no such adjustment", reason="ADJUSTMENT_NOT_FOUND", metadata={"adjustment_id": adjustment_id}
    )


def unknown_payout(payout_id: str) -> NotFound:
    """The error for a payout that is not there."""
    return NotFound("no such payout", reason="PAYOUT_NOT_FOUND", metadata={"payout_id": payout_id})


def purchase_not_found(metadata: dict[str, str]) -> NotFound:
    """The error for a purchase, or a reversal of one, that is not there; `metadata` names it."""
    return NotFound("no such purchase of this customer", reason="PURCHASE_NOT_FOUND", metadata=metadata)


def _insufficient(account: dict[str, str]) -> FailedPrecondition:
    """`recall` in the metadata: a lease keeps what is missing, so this may succeed once that is returned."""
    return FailedPrecondition(
        "the account does not hold that much",
        reason="INSUFFICIENT_BALANCE",
        metadata=account,
        retry_after=_RECALL_TIME if "recall" in account else None,
        precondition_violations=[
            PreconditionViolation(
                "BALANCE",
                f"{account['owner_id']}/{account['account']}/{account['currency_code']}",
                f"{account['available_micros']} micros are available,"
                f" {account['requested_micros']} were asked for",
            )
        ],
    )
