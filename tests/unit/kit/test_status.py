from datetime import timedelta
from typing import Any

import grpc
import psycopg
import psycopg_pool
import pytest
import redis.exceptions
import sqlalchemy.exc
from google.rpc import code_pb2, error_details_pb2

from services.kit.errors import (
    ERROR_BY_CODE,
    Aborted,
    AlreadyExists,
    Code,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PreconditionViolation,
    ResourceExhausted,
    TallystickError,
    Unauthenticated,
    Unavailable,
)
from services.kit.status import (
    CODES,
    from_item_error,
    from_rpc_error,
    to_grpc_status,
    to_item_error,
    to_status_proto,
    translate,
)
from tallystick.common.v1 import error_reason_pb2

EXAMPLES: list[TallystickError] = [
    InvalidArgument.of("usage.input_tokens", "must not be negative"),
    NotFound("no customer cus_1", reason="CUSTOMER_NOT_FOUND", metadata={"customer_id": "cus_1"}),
    AlreadyExists("used before", reason="IDEMPOTENCY_KEY_REUSED", metadata={"key": "k"}),
    FailedPrecondition(
        "too little",
        reason="INSUFFICIENT_BALANCE",
        precondition_violations=[PreconditionViolation("INSUFFICIENT_BALANCE", "cus_1", "top up first")],
    ),
    ResourceExhausted("full"),
    Aborted("conflict", retry_after=timedelta(milliseconds=250)),
    DeadlineExceeded("late"),
    Unavailable("away"),
]


def details(status: Any) -> dict[str, Any]:
    """The details of a google.rpc.Status by message name."""
    found = {}
    for packed in status.details:
        message = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        assert packed.Unpack(message)
        found[type(message).__name__] = message
    return found


def test_codes_are_those_of_grpc() -> None:
    assert {code.name: code.value for code in Code} == dict(code_pb2.Code.items())
    assert set(CODES) == set(grpc.StatusCode)


@pytest.mark.parametrize("error", ERROR_BY_CODE.values())
def test_default_reasons_are_declared(error: type[TallystickError]) -> None:
    if error.default_reason is not None:
        assert f"ERROR_REASON_{error.default_reason}" in dict(error_reason_pb2.ErrorReason.items())


@pytest.mark.parametrize("error", [NotFound, FailedPrecondition])
def test_some_errors_must_say_what_they_are_about(error: type[TallystickError]) -> None:
    with pytest.raises(TypeError, match="needs a reason"):
        error("what?")


def test_error_info_is_always_there() -> None:
    status = to_status_proto(EXAMPLES[1], request_id="req-1")
    assert (status.code, status.message) == (5, "no customer cus_1")
    info = details(status)["ErrorInfo"]
    assert (info.domain, info.reason) == ("tallystick", "CUSTOMER_NOT_FOUND")
    assert dict(info.metadata) == {"customer_id": "cus_1", "request_id": "req-1"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EXAMPLES[0], {"ErrorInfo", "BadRequest"}),
        (EXAMPLES[1], {"ErrorInfo"}),
        (EXAMPLES[3], {"ErrorInfo", "PreconditionFailure"}),
        (ResourceExhausted("full"), {"ErrorInfo", "RetryInfo"}),
        (Aborted("conflict"), {"ErrorInfo", "RetryInfo"}),
        (Unavailable("away"), {"ErrorInfo", "RetryInfo"}),
        (Unauthenticated("who?"), {"ErrorInfo"}),
        (PermissionDenied("no"), {"ErrorInfo"}),
        (Internal("internal error"), {"ErrorInfo"}),
    ],
)
def test_each_code_has_its_details(error: TallystickError, expected: set[str]) -> None:
    assert set(details(to_status_proto(error))) == expected


def test_a_precondition_failure_names_at_least_the_reason() -> None:
    error = FailedPrecondition("published", reason="PRICE_VERSION_PUBLISHED")
    [violation] = details(to_status_proto(error))["PreconditionFailure"].violations
    assert (violation.type, violation.description) == ("PRICE_VERSION_PUBLISHED", "published")


def test_a_status_fits_into_a_header() -> None:
    error = InvalidArgument(
        "m" * 10_000,
        metadata={"key": "v" * 10_000},
        field_violations=[FieldViolation("f" * 10_000, "d" * 10_000)] * 1000,
    )
    assert len(to_status_proto(error).SerializeToString()) < 6000


def test_a_few_violations_may_be_described_at_length() -> None:
    text = f"{'d' * 440}; it starts again at 2026-11-22T23:00:00Z"

    def described(count: int) -> list[str]:
        violations = [
            PreconditionViolation("BUDGET_EXCEEDED", f"bud_{number}", text) for number in range(count)
        ]
        error = FailedPrecondition("no", reason="BUDGET_EXCEEDED", precondition_violations=violations)
        status = to_status_proto(error)
        assert len(status.SerializeToString()) < 6000
        return [one.description for one in details(status)["PreconditionFailure"].violations]

    assert described(2) == [text, text]
    assert described(3) == [text[:160]] * 3


@pytest.mark.parametrize("error", EXAMPLES)
def test_an_item_error_says_the_same_and_comes_back_whole(error: TallystickError) -> None:
    item = to_item_error(error)
    assert (item.code, item.message, dict(item.metadata)) == (error.code.value, error.message, error.metadata)
    assert error_reason_pb2.ErrorReason.Name(item.reason) == f"ERROR_REASON_{error.reason}"
    again = from_item_error(item)
    assert type(again) is type(error)
    for name in ("message", "reason", "metadata", "retry_after", "field_violations"):
        assert getattr(again, name) == getattr(error, name)


def test_a_reason_that_is_not_declared_is_a_defect() -> None:
    with pytest.raises(ValueError, match="NO_SUCH_REASON"):
        to_item_error(NotFound("x", reason="NO_SUCH_REASON"))


def rpc_error(code: grpc.StatusCode, error: TallystickError | None = None) -> grpc.aio.AioRpcError:
    """What a client sees of an answer: one of our services' if there is an error, else one that gRPC made."""
    if error is None:
        return grpc.aio.AioRpcError(code, details="secret address 10.0.0.1")
    status = to_grpc_status(error, request_id="theirs")
    trailers = grpc.aio.Metadata(*status.trailing_metadata)
    return grpc.aio.AioRpcError(code, trailing_metadata=trailers, details=status.details)


@pytest.mark.parametrize("error", EXAMPLES)
def test_what_another_service_says_of_the_request_is_passed_on(error: TallystickError) -> None:
    again = from_rpc_error(rpc_error(grpc.StatusCode[error.code.name], error))
    assert type(again) is type(error)
    for name in (
        "message",
        "reason",
        "metadata",
        "retry_after",
        "field_violations",
    ):
        assert getattr(again, name) == getattr(error, name)
    if error.precondition_violations:
        assert again.precondition_violations == error.precondition_violations


@pytest.mark.parametrize("error", [Unauthenticated("unknown key"), PermissionDenied("the role may not")])
def test_what_is_said_of_a_callers_own_key_is_passed_on(error: TallystickError) -> None:
    again = from_rpc_error(rpc_error(grpc.StatusCode[error.code.name], error), callers_key=True)
    assert (type(again), again.reason) == (type(error), error.reason)


@pytest.mark.parametrize(
    ("code", "error", "expected"),
    [
        # Our key is refused: not our caller's fault, nor business.
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated("key of metering is unknown"), Internal),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied("not for service"), Internal),
        (grpc.StatusCode.INTERNAL, Internal("secret"), Internal),
        # From gRPC itself.
        (grpc.StatusCode.UNAVAILABLE, None, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, None, Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, None, Unavailable),
        (grpc.StatusCode.UNIMPLEMENTED, None, Internal),
        (grpc.StatusCode.UNKNOWN, None, Internal),
    ],
)
def test_what_another_service_says_of_us_is_not(
    code: grpc.StatusCode, error: TallystickError | None, expected: type[TallystickError]
) -> None:
    answer = translate(rpc_error(code, error))
    assert type(answer) is expected
    assert "secret" not in answer.message
    assert "metering" not in answer.message


def wrapped(error: Exception) -> sqlalchemy.exc.DBAPIError:
    return sqlalchemy.exc.DBAPIError("SELECT secret", {}, error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.errors.SerializationFailure("secret"), Aborted),
        (psycopg.errors.DeadlockDetected("secret"), Aborted),
        (psycopg.errors.LockNotAvailable("secret"), Aborted),
        (wrapped(psycopg.errors.DeadlockDetected("secret")), Aborted),
        (psycopg.OperationalError("secret: server closed the connection unexpectedly"), Unavailable),
        (wrapped(psycopg.OperationalError("secret")), Unavailable),
        (psycopg.errors.AdminShutdown("secret"), Unavailable),
        (psycopg.errors.QueryCanceled("secret"), Unavailable),
        (psycopg.errors.TooManyConnections("secret"), Unavailable),
        (psycopg.errors.ReadOnlySqlTransaction("secret"), Unavailable),
        (psycopg_pool.PoolTimeout("secret"), Unavailable),
        (sqlalchemy.exc.TimeoutError("secret"), Unavailable),
        (redis.exceptions.ConnectionError("secret"), Unavailable),
        (redis.exceptions.TimeoutError("secret"), Unavailable),
        (redis.exceptions.BusyLoadingError("secret"), Unavailable),
        (ConnectionRefusedError("secret"), Unavailable),
        (TimeoutError("secret"), Unavailable),
        (psycopg.errors.UniqueViolation("secret"), Internal),
        (psycopg.errors.UndefinedTable("secret"), Internal),
        (wrapped(psycopg.errors.CheckViolation("secret")), Internal),
        (redis.exceptions.ResponseError("secret"), Internal),
        (ValueError("secret"), Internal),
        (KeyError("secret"), Internal),
    ],
)
def test_driver_text_never_leaves(error: Exception, expected: type[TallystickError]) -> None:
    answer = translate(error)
    assert type(answer) is expected
    assert "secret" not in str(to_status_proto(answer))
    assert (answer.retry_after is not None) == (expected is not Internal)


def test_our_own_errors_stay_as_they_are() -> None:
    assert all(translate(error) is error for error in EXAMPLES)


def test_a_fresh_error_is_equal_and_another() -> None:
    for error in EXAMPLES:
        fresh = error.fresh()
        assert fresh is not error
        assert fresh.__traceback__ is None
        assert vars(fresh) == vars(error)
