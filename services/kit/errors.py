"""Typed errors: what a handler raises, and what the caller is answered.

Pure Python, so that domain code may raise them; `services.kit.status` turns them into gRPC statuses and into
verdicts on single items of a batch.

    TallystickError
    ├── InvalidArgument      a field is malformed; nothing was stored
    ├── NotFound             no such thing, or another tenant's
    ├── AlreadyExists        same key, other content
    ├── PermissionDenied     the role may not
    ├── Unauthenticated      no key, or not a valid one
    ├── FailedPrecondition   the state forbids it
    ├── ResourceExhausted    too much at once; retry later
    ├── Aborted              lost a conflict; retry
    ├── DeadlineExceeded     not finished in time; outcome unknown
    ├── Unavailable          something needed is away; retry
    └── Internal             a defect
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import ClassVar, Self


class Code(Enum):
    """The gRPC status codes, by name and number, without importing grpc."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One malformed field: its path in the request, and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class PreconditionViolation:
    """One condition that does not hold: its kind, what it is about, and what would have to change."""

    type: str
    subject: str
    description: str


class TallystickError(Exception):
    """An error with a meaning to the caller.

    `reason` is a value of `tallystick.common.v1.ErrorReason` without its prefix, `metadata` holds the names
    it concerns, and `retry_after` is set where sending the same request again can help.
    """

    code: ClassVar[Code] = Code.UNKNOWN
    default_reason: ClassVar[str | None] = None
    default_retry_after: ClassVar[timedelta | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
        field_violations: Sequence[FieldViolation] = (),
        precondition_violations: Sequence[PreconditionViolation] = (),
    ) -> None:
        super().__init__(message)
        reason = reason or self.default_reason
        if reason is None:
            raise TypeError(f"{type(self).__name__} needs a reason")
        self.message = message
        self.reason: str = reason
        self.metadata = dict(metadata or {})
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.field_violations = list(field_violations)
        self.precondition_violations = list(precondition_violations)

    def fresh(self) -> Self:
        """An equal error with no traceback: one exception object must not be raised in several tasks."""
        return type(self)(
            self.message,
            reason=self.reason,
            metadata=self.metadata,
            retry_after=self.retry_after,
            field_violations=self.field_violations,
            precondition_violations=self.precondition_violations,
        )


class InvalidArgument(TallystickError):
    """The request can never succeed as it is. Nothing was stored."""

    code = Code.INVALID_ARGUMENT
    default_reason = "INVALID_FIELD"

    @classmethod
    def of(cls, field: str, description: str) -> Self:
        """The common case of one malformed field."""
        return cls(f"{field}: {description}", field_violations=[FieldViolation(field, description)])


class NotFound(TallystickError):
    """There is no such thing, or it belongs to another tenant.

    The reason is required: it says what is missing.
    """

    code = Code.NOT_FOUND


class AlreadyExists(TallystickError):
    """The key or id was used before with other content. Nothing was changed."""

    code = Code.ALREADY_EXISTS
    default_reason = "RESOURCE_ALREADY_EXISTS"


class PermissionDenied(TallystickError):
    """The caller is known, and may not do this."""

    code = Code.PERMISSION_DENIED
    default_reason = "ROLE_NOT_ALLOWED"


class Unauthenticated(TallystickError):
    """The caller is not known."""

    code = Code.UNAUTHENTICATED
    default_reason = "API_KEY_INVALID"


class FailedPrecondition(TallystickError):
    """The request is well formed, but the present state forbids it. The reason is required."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(TallystickError):
    """A bound was reached; nothing of the request was done."""

    code = Code.RESOURCE_EXHAUSTED
    default_reason = "TOO_MANY_IN_FLIGHT"
    default_retry_after = timedelta(milliseconds=500)


class Aborted(TallystickError):
    """The request lost a conflict with another one, repeatedly."""

    code = Code.ABORTED
    default_reason = "CONFLICT"
    default_retry_after = timedelta(milliseconds=100)


class DeadlineExceeded(TallystickError):
    """The deadline passed first; the outcome is unknown."""

    code = Code.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Unavailable(TallystickError):
    """Something this request needs could not be reached."""

    code = Code.UNAVAILABLE
    default_reason = "DEPENDENCY_UNAVAILABLE"
    default_retry_after = timedelta(seconds=1)


class Internal(TallystickError):
    """A defect. The message says nothing of what is inside; the log does."""

    code = Code.INTERNAL
    default_reason = "INTERNAL"


ERROR_BY_CODE: dict[Code, type[TallystickError]] = {
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
        DeadlineExceeded,
        Unavailable,
        Internal,
    )
}
