"""What a call answers becomes the right exception, whoever made the answer."""

import pickle
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.kit import errors as kit
from services.kit.status import to_item_error, to_status_proto
from tallystick import errors
from tallystick._status import DETAILS_KEY, from_item_error, from_rpc_error
from tallystick.common.v1.item_error_pb2 import ItemError


class Failed(grpc.RpcError, grpc.Call):
    """A failed call, as the synchronous grpc raises it."""

    def __init__(self, code: grpc.StatusCode, details: str | None, trailing: Any) -> None:
        self._answer = (code, details, trailing)

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> Any:
        return self._answer[1]

    def trailing_metadata(self) -> Any:
        return self._answer[2]

    def initial_metadata(self) -> Any:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: Any) -> bool:
        return False


def failed(error: kit.TallystickError) -> Failed:
    status = rpc_status.to_status(to_status_proto(error, request_id="req-1"))
    return Failed(status.code, status.details, status.trailing_metadata)


REASONS = {
    kit.NotFound: "CUSTOMER_NOT_FOUND",
    kit.FailedPrecondition: "INSUFFICIENT_BALANCE",
}


@pytest.mark.parametrize("kind", kit.ERROR_BY_CODE.values(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_servers_arrives_whole(kind: type[kit.TallystickError]) -> None:
    sent = kind(
        "what happened",
        reason=REASONS.get(kind),
        metadata={"customer_id": "cus_1"},
        field_violations=[kit.FieldViolation("usage.input_tokens", "must not be negative")],
    )
    got = from_rpc_error(failed(sent), request_id="req-ours")
    assert type(got) is getattr(errors, kind.__name__)
    assert (got.code, got.reason, got.message) == (kind.code.name, sent.reason, "what happened")
    assert got.metadata == {"customer_id": "cus_1"}
    assert got.request_id == "req-1"
    assert got.retry_after == sent.retry_after
    if kind is kit.InvalidArgument:
        assert got.field_violations == (errors.FieldViolation("usage.input_tokens", "must not be negative"),)
    item = from_item_error(to_item_error(sent))
    assert type(item) is type(got)
    assert (item.reason, item.metadata, item.retry_after) == (got.reason, got.metadata, got.retry_after)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (kit.AlreadyExists("x", reason="IDEMPOTENCY_KEY_REUSED"), errors.IdempotencyKeyReused),
        (kit.AlreadyExists("x"), errors.AlreadyExists),
        (kit.Unavailable("x", reason="CHARGE_PENDING"), errors.ChargePending),
    ],
)
def test_some_reasons_have_classes_of_their_own(
    sent: kit.TallystickError, expected: type[errors.TallystickError]
) -> None:
    assert type(from_rpc_error(failed(sent), request_id="")) is expected
    assert type(from_item_error(to_item_error(sent))) is expected


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_has_a_class_also_without_details(code: grpc.StatusCode) -> None:
    got = from_rpc_error(Failed(code, None, None), request_id="req-ours")
    named = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    assert got.code == (code.name if code.name in named - {"UNKNOWN"} else "INTERNAL")
    assert (got.reason, got.request_id) == ("", "req-ours")
    assert got.retryable == (
        code.name in {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED"}
    )


def test_an_answer_of_somebody_else_has_no_reason_of_ours() -> None:
    status = status_pb2.Status(code=14, message="no")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="CHARGE_PENDING", domain="example.org"))
    failure = Failed(grpc.StatusCode.UNAVAILABLE, "no", ((DETAILS_KEY, status.SerializeToString()),))
    got = from_rpc_error(failure, request_id="")
    assert type(got) is errors.Unavailable
    assert got.reason == ""


@pytest.mark.parametrize(
    "details",
    [
        b"\xff\xff\xff",
        status_pb2.Status(details=[any_pb2.Any(type_url="x/google.rpc.ErrorInfo", value=b"\xff")]),
        status_pb2.Status(details=[any_pb2.Any(type_url="", value=b"")]),
        "not bytes",
    ],
)
def test_damaged_details_leave_the_code(details: Any) -> None:
    value = details.SerializeToString() if isinstance(details, status_pb2.Status) else details
    got = from_rpc_error(Failed(grpc.StatusCode.NOT_FOUND, "gone", ((DETAILS_KEY, value),)), request_id="r")
    assert type(got) is errors.NotFound
    assert str(got) == "gone [NOT_FOUND, request r]"


def test_an_error_of_no_call_is_internal() -> None:
    assert type(from_rpc_error(grpc.RpcError("odd"), request_id="")) is errors.Internal


def test_a_reason_that_is_newer_than_we_are() -> None:
    got = from_item_error(ItemError(code=5, reason=9999, message="new"))  # type: ignore[arg-type]
    assert type(got) is errors.NotFound
    assert got.reason == ""


def test_errors_travel_between_processes() -> None:
    error = errors.NotFound(
        "gone", reason="CUSTOMER_NOT_FOUND", metadata={"a": "b"}, retry_after=timedelta(seconds=1)
    )
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is errors.NotFound
    assert vars(copy) == vars(error)


def test_the_tree_at_the_top_is_the_tree() -> None:
    kinds = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert errors.__doc__ is not None
    drawn = {line.split("─ ")[-1].split()[0] for line in errors.__doc__.splitlines() if "──" in line}
    assert drawn | {"TallystickError"} == kinds
