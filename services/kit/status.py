"""Typed errors to and from what travels: gRPC statuses with details, verdicts on items of a batch."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import grpc
import psycopg
import redis.exceptions
import sqlalchemy.exc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.kit.errors import (
    ERROR_BY_CODE,
    Aborted,
    Code,
    FieldViolation,
    Internal,
    PreconditionViolation,
    TallystickError,
    Unavailable,
)
from tallystick.common.v1 import error_reason_pb2, item_error_pb2

DOMAIN: Final = "tallystick"
CODES: Final[Mapping[grpc.StatusCode, Code]] = {code: Code[code.name] for code in grpc.StatusCode}

_DETAILS_KEY = "grpc-status-details-bin"
_REASON_PREFIX = "ERROR_REASON_"

# A status travels in a header, and peers refuse headers of more than some 8 KiB: what is long is cut.
_MAX_TEXT = 500
_MAX_VIOLATIONS = 10
_MAX_VIOLATION_TEXT = 160
# So many may say it at length.
_FEW_VIOLATIONS = 2

# SQLSTATEs that pass by themselves. Of a class (first two characters): connection failure, insufficient
# resources, operator intervention (shutdown, timeout); and "read-only transaction", seen on a primary that
# became a replica.
_AWAY_CLASSES = ("08", "53", "57")
_AWAY = ("25006",)
# Serialization failure, deadlock, lock not available in time.
_CONFLICT = ("40001", "40P01", "55P03")


def to_status_proto(error: TallystickError, *, request_id: str = "") -> Any:
    """The google.rpc.Status of an error: ErrorInfo always, and the details that its code calls for."""
    metadata = {key: value[:_MAX_TEXT] for key, value in error.metadata.items()}
    if request_id:
        metadata["request_id"] = request_id
    status = status_pb2.Status(code=error.code.value, message=error.message[:_MAX_TEXT])
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    )
    if error.code is Code.INVALID_ARGUMENT:
        status.details.add().Pack(_bad_request(error))
    if error.code is Code.FAILED_PRECONDITION:
        status.details.add().Pack(_precondition_failure(error))
    if error.retry_after is not None:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after)))
    return status


def to_grpc_status(error: TallystickError, *, request_id: str = "") -> grpc.Status:
    """What `context.abort_with_status` takes."""
    status: grpc.Status = rpc_status.to_status(to_status_proto(error, request_id=request_id))
    return status


def to_item_error(error: TallystickError) -> item_error_pb2.ItemError:
    """The verdict on one item of a batch, which says what the status of the item alone would have said."""
    item = item_error_pb2.ItemError(
        code=error.code.value,
        reason=error_reason_pb2.ErrorReason.Value(_REASON_PREFIX + error.reason),
        message=error.message,
        metadata=error.metadata,
        field_violations=[
            item_error_pb2.FieldViolation(field=violation.field, description=violation.description)
            for violation in error.field_violations
        ],
    )
    if error.retry_after is not None:
        item.retry_delay.CopyFrom(_duration(error.retry_after))
    return item


def from_item_error(item: item_error_pb2.ItemError) -> TallystickError:
    """The error that another service's verdict on one item stands for."""
    return _rebuild(
        Code(item.code),
        item.message,
        reason=error_reason_pb2.ErrorReason.Name(item.reason).removeprefix(_REASON_PREFIX),
        metadata=dict(item.metadata),
        retry_after=item.retry_delay.ToTimedelta() if item.HasField("retry_delay") else None,
        field_violations=[FieldViolation(one.field, one.description) for one in item.field_violations],
    )


def from_rpc_error(error: grpc.aio.AioRpcError, *, callers_key: bool = False) -> TallystickError:
    """The error to answer our caller when a call to another service failed.

    What another service says about the request (INVALID_ARGUMENT, NOT_FOUND…) is passed on. What it says
    about us is not: a refused service key is our defect, not our caller's. Unless the call was made with
    `callers_key`: then it was about our caller.
    """
    code = CODES[error.code()]
    ours = () if callers_key else (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
    if code in (*ours, Code.INTERNAL):
        return Internal("internal error")
    status = _status_of(error)
    if status is None:
        # Made by gRPC itself on the way, not by the other service.
        away = code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.CANCELLED)
        return Unavailable("another service could not be reached") if away else Internal("internal error")
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    precondition, retry = error_details_pb2.PreconditionFailure(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, bad_request, precondition, retry):
            detail.Unpack(message)
    metadata = dict(info.metadata)
    # It names the other call; ours has its own.
    metadata.pop("request_id", None)
    return _rebuild(
        code,
        status.message,
        reason=info.reason,
        metadata=metadata,
        retry_after=retry.retry_delay.ToTimedelta() if retry.HasField("retry_delay") else None,
        field_violations=[FieldViolation(one.field, one.description) for one in bad_request.field_violations],
        precondition_violations=[
            PreconditionViolation(one.type, one.subject, one.description) for one in precondition.violations
        ],
    )


def translate(error: BaseException) -> TallystickError:
    """The error to answer with when `error` was raised. What a driver says stays here: the caller logs it."""
    if isinstance(error, TallystickError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig is not None:
        return translate(error.orig)
    if isinstance(error, psycopg.Error):
        return _from_sqlstate(error)
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return Unavailable("no database connection came free in time")
    if isinstance(error, redis.exceptions.RedisError):
        return _from_redis(error)
    if isinstance(error, ConnectionError | TimeoutError):
        return Unavailable("something this service depends on could not be reached")
    return Internal("internal error")


def _from_sqlstate(error: psycopg.Error) -> TallystickError:
    state = error.sqlstate
    if state in _CONFLICT:
        return Aborted("lost a conflict with concurrent requests; try again")
    # Without a SQLSTATE it was libpq or the pool that failed: no connection, or a broken one.
    lost = state is None and isinstance(error, psycopg.OperationalError)
    if lost or (state is not None and (state[:2] in _AWAY_CLASSES or state in _AWAY)):
        return Unavailable("the database could not be reached")
    return Internal("internal error")


def _from_redis(error: redis.exceptions.RedisError) -> TallystickError:
    away = (
        redis.exceptions.ConnectionError,
        redis.exceptions.TimeoutError,
        redis.exceptions.ReadOnlyError,
        redis.exceptions.TryAgainError,
        redis.exceptions.ClusterDownError,
        redis.exceptions.OutOfMemoryError,
    )
    return (
        Unavailable("the cache could not be reached")
        if isinstance(error, away)
        else Internal("internal error")
    )


def _rebuild(code: Code, message: str, *, reason: str, **details: Any) -> TallystickError:
    error = ERROR_BY_CODE.get(code, Internal)
    return error(message, reason=reason or "INTERNAL", **details)


def _status_of(error: grpc.aio.AioRpcError) -> Any:
    """The rich status that one of our services sent, None if the error came from elsewhere."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            status = status_pb2.Status.FromString(value)
            info = error_details_pb2.ErrorInfo()
            if any(detail.Unpack(info) for detail in status.details) and info.domain == DOMAIN:
                return status
    return None


def _bad_request(error: TallystickError) -> Any:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=violation.field[:_MAX_VIOLATION_TEXT],
                description=violation.description[: _max_description(error.field_violations)],
            )
            for violation in error.field_violations[:_MAX_VIOLATIONS]
        ]
    )


def _precondition_failure(error: TallystickError) -> Any:
    violations = error.precondition_violations[:_MAX_VIOLATIONS] or [
        PreconditionViolation(type=error.reason, subject="", description=error.message)
    ]
    return error_details_pb2.PreconditionFailure(
        violations=[
            error_details_pb2.PreconditionFailure.Violation(
                type=violation.type[:_MAX_VIOLATION_TEXT],
                subject=violation.subject[:_MAX_VIOLATION_TEXT],
                description=violation.description[: _max_description(violations)],
            )
            for violation in violations
        ]
    )


def _max_description(violations: Sequence[object]) -> int:
    return _MAX_TEXT if len(violations) <= _FEW_VIOLATIONS else _MAX_VIOLATION_TEXT


def _duration(delta: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(delta)
    return duration
