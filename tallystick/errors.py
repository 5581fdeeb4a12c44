"""What can go wrong, as exceptions.

    TallystickError
    ├── InvalidArgument            a field is malformed: see `field_violations`; nothing was stored
    │   └── ReservationTokenInvalid   the token is damaged, or belongs to other work
    ├── NotFound                   no such thing, or another tenant's; `reason` says what
    │   ├── OutcomeNotFound        no event was reported as pending under this outcome id
    │   └── PaymentMethodNotFound  the customer has not saved this payment method, or none at all
    ├── AlreadyExists              the id is taken by something else
    │   └── IdempotencyKeyReused   this event was reported before, with other content
    ├── PermissionDenied           the key is good, its role may not
    ├── Unauthenticated            no API key, or not a valid one
    ├── FailedPrecondition         the present state forbids it
    │   ├── InsufficientCredits    the run was not authorized: the customer cannot pay it
    │   ├── BudgetExceeded         the run was not authorized: a budget has no room; says which
    │   ├── CustomerFrozen         the run was not authorized: the customer is frozen
    │   ├── ReservationEnded       too late to extend it, or to begin this attempt again
    │   ├── OutcomeAlreadyResolved   it was resolved before, otherwise
    │   └── OutcomeExpired         it was resolved too late
    ├── ResourceExhausted          too much at once; was retried
    ├── Aborted                    lost a conflict; was retried
    ├── Cancelled                  broken off, for example by a server that stops; was retried
    ├── DeadlineExceeded           not finished in time, outcome unknown; was retried
    ├── Unavailable                something needed is away; was retried
    │   └── ChargePending          the usage is recorded and will be charged: nothing is left to do
    ├── Internal                   a defect of a server, or an answer that makes no sense
    ├── BufferFull                 `record` found no room: the event was not taken
    └── BufferInUse                another process works with the same buffer

Branch on the class, or on `reason` where a class has several; messages are for people and change.
docs/errors.md lists every reason. "Was retried" means: by this library, until its time was up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from tallystick.money import Money


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One malformed field: its path in the request, and what is wrong with it."""

    field: str
    description: str


class TallystickError(Exception):
    """The root of all of them.

    `code` is the name of the gRPC status code, `reason` a value of `ErrorReason` without its prefix (empty
    if the error did not come from Tallystick's servers), and `metadata` names what the error is about.
    `retry_after` says how long a server asked to wait. `request_id` finds the call in the servers' logs.
    `retryable` says whether the same request may succeed later, unchanged.
    """

    code: ClassVar[str] = "UNKNOWN"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
        field_violations: Sequence[FieldViolation] = (),
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.field_violations = tuple(field_violations)
        self.request_id = request_id

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later, unchanged."""
        return self.default_retryable or self.retry_after is not None

    def __str__(self) -> str:
        """The message, and in brackets what a person needs to look further."""
        facts = [self.reason or self.code]
        if self.request_id:
            facts.append(f"request {self.request_id}")
        return f"{self.message} [{', '.join(facts)}]"


class InvalidArgument(TallystickError):
    """The request can never succeed as it is; `field_violations` says why. Nothing was stored."""

    code = "INVALID_ARGUMENT"


class ReservationTokenInvalid(InvalidArgument):
    """The reservation token is damaged, was not issued by these servers, or belongs to other work."""


class NotFound(TallystickError):
    """There is no such thing, or it belongs to another tenant. `reason` says what, `metadata` which."""

    code = "NOT_FOUND"


class OutcomeNotFound(NotFound):
    """No event was recorded with this outcome id, or its outcome was known at once."""


class PaymentMethodNotFound(NotFound):
    """The customer has no such saved payment method, or none at all."""


class AlreadyExists(TallystickError):
    """The id was used before with other content. Nothing was changed."""

    code = "ALREADY_EXISTS"


class IdempotencyKeyReused(AlreadyExists):
    """This customer, workflow and ordinal came before, with other content. The first event stands.

    Either two different pieces of work were given the same `workflow_id` and `ordinal`, or a retry changed
    a field.
    """


class PermissionDenied(TallystickError):
    """The API key is valid, but its role may not do this."""

    code = "PERMISSION_DENIED"


class Unauthenticated(TallystickError):
    """The API key is missing, malformed, unknown, revoked or expired."""

    code = "UNAUTHENTICATED"


class FailedPrecondition(TallystickError):
    """The request is well formed, but the present state forbids it."""

    code = "FAILED_PRECONDITION"


class InsufficientCredits(FailedPrecondition):
    """The run was not authorized: the customer's credits and credit limit do not cover it.

    No work was done. The refusal stands for its `idempotency_key`.
    """

    @property
    def requested(self) -> Money | None:
        """What was to be reserved."""
        return _money(self.metadata, "requested_micros")

    @property
    def available(self) -> Money | None:
        """What could have been. None for an organization's API key: it may not know."""
        return _money(self.metadata, "available_micros")


class BudgetExceeded(FailedPrecondition):
    """The run was not authorized: a budget with a hard limit has no room for it.

    No work was done. The refusal stands for its `idempotency_key`. Amounts are None if the server did not say
    them: not everybody may know what others spend.
    """

    @property
    def budget_id(self) -> str:
        """The budget that has no room."""
        return self.metadata.get("budget_id", "")

    @property
    def requested(self) -> Money | None:
        """What was to be reserved."""
        return _money(self.metadata, "requested_micros")

    @property
    def limit(self) -> Money | None:
        """What may be spent in a period of this budget."""
        return _money(self.metadata, "limit_micros")

    @property
    def spent(self) -> Money | None:
        """What was spent in this period."""
        return _money(self.metadata, "spent_micros")

    @property
    def reserved(self) -> Money | None:
        """What is reserved for runs under way."""
        return _money(self.metadata, "reserved_micros")

    @property
    def reset_time(self) -> datetime | None:
        """When the budget starts again. None for one that never does."""
        return _time(self.metadata, "reset_time")


class CustomerFrozen(FailedPrecondition):
    """The run was not authorized: an operator, or a payment that was disputed, has frozen the customer.

    No work was done. The refusal stands for its `idempotency_key`, also when the customer is unfrozen.
    """


class ReservationEnded(FailedPrecondition):
    """The reservation has ended: it cannot be extended, and its attempt cannot begin again.

    A run under way is charged all the same when it ends. One that is to begin needs another
    `idempotency_key`, unless `state` says that it was settled before.
    """

    @property
    def reservation_id(self) -> str:
        """The reservation."""
        return self.metadata.get("reservation_id", "")

    @property
    def state(self) -> str:
        """How it ended: "settled", "released" or "expired"."""
        return self.metadata.get("state", "").lower().removeprefix("reservation_state_")


class OutcomeAlreadyResolved(FailedPrecondition):
    """The outcome was resolved before, otherwise. Nothing was changed."""

    @property
    def outcome_id(self) -> str:
        """The outcome."""
        return self.metadata.get("outcome_id", "")

    @property
    def outcome(self) -> str:
        """What it was resolved to: "success", "failure", "partial" or "unknown"."""
        return self.metadata.get("outcome", "").lower().removeprefix("outcome_")

    @property
    def resolve_time(self) -> datetime | None:
        """When that was."""
        return _time(self.metadata, "resolve_time")


class OutcomeExpired(FailedPrecondition):
    """The outcome was resolved too late: it had fallen to its default. Nothing was changed."""

    @property
    def outcome_id(self) -> str:
        """The outcome."""
        return self.metadata.get("outcome_id", "")

    @property
    def outcome(self) -> str:
        """What it fell to: "success", "failure", "partial" or "unknown"."""
        return self.metadata.get("outcome", "").lower().removeprefix("outcome_")

    @property
    def expire_time(self) -> datetime | None:
        """When that was."""
        return _time(self.metadata, "expire_time")


class ResourceExhausted(TallystickError):
    """The server had too much to do, for as long as the call was retried. Nothing was done."""

    code = "RESOURCE_EXHAUSTED"
    default_retryable = True


class Aborted(TallystickError):
    """The call lost a conflict with others, each time that it was tried."""

    code = "ABORTED"
    default_retryable = True


class Cancelled(TallystickError):
    """The call was broken off; the outcome is unknown."""

    code = "CANCELLED"
    default_retryable = True


class DeadlineExceeded(TallystickError):
    """The call was not answered in time; the outcome is unknown. Reporting the same event again is safe."""

    code = "DEADLINE_EXCEEDED"
    default_retryable = True


class Unavailable(TallystickError):
    """The service, or something that it needs, could not be reached for as long as the call was retried."""

    code = "UNAVAILABLE"
    default_retryable = True


class ChargePending(Unavailable):
    """The usage is recorded and will be charged: nothing is lost. Only what it cost is not known yet."""


class Internal(TallystickError):
    """A defect on the other side. Report it with `request_id`."""

    code = "INTERNAL"


class BufferFull(TallystickError):
    """`record` found no room: this event was not taken, those before it are safe."""

    code = "RESOURCE_EXHAUSTED"


class BufferInUse(TallystickError):
    """Another process, or another client of this one, has the buffer open."""

    code = "FAILED_PRECONDITION"


_BY_REASON: dict[str, type[TallystickError]] = {
    "IDEMPOTENCY_KEY_REUSED": IdempotencyKeyReused,
    "CHARGE_PENDING": ChargePending,
    "INSUFFICIENT_CREDITS": InsufficientCredits,
    "CUSTOMER_FROZEN": CustomerFrozen,
    "BUDGET_EXCEEDED": BudgetExceeded,
    "RESERVATION_TOKEN_INVALID": ReservationTokenInvalid,
    "RESERVATION_ENDED": ReservationEnded,
    "OUTCOME_NOT_FOUND": OutcomeNotFound,
    "PAYMENT_METHOD_NOT_FOUND": PaymentMethodNotFound,
    "OUTCOME_ALREADY_RESOLVED": OutcomeAlreadyResolved,
    "OUTCOME_EXPIRED": OutcomeExpired,
}
_BY_CODE: dict[str, type[TallystickError]] = {
    error.code: error
    for error in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        Unauthenticated,
        FailedPrecondition,
        ResourceExhausted,
        Aborted,
        Cancelled,
        DeadlineExceeded,
        Unavailable,
        Internal,
    )
}


def error_class(code: str, reason: str) -> type[TallystickError]:
    """The class for a reason, else for a status code, else Internal."""
    return _BY_REASON.get(reason) or _BY_CODE.get(code, Internal)


# What an error is about comes from outside, and saying it must not raise another error.
def _money(metadata: Mapping[str, str], key: str) -> Money | None:
    try:
        return Money(metadata["currency_code"], int(metadata[key]))
    except (KeyError, ValueError, OverflowError):
        return None


def _time(metadata: Mapping[str, str], key: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(metadata[key])
    except (KeyError, ValueError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
