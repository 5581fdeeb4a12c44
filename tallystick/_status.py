"""From what a failed call answers to our exceptions.

The details of an answer are `google.rpc` messages. Their generated classes are in the distribution
googleapis-common-protos, of which we need four messages that never change; so they are declared here, in a
descriptor pool of their own, where they cannot collide with the generated ones in the same process.
"""

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tallystick.common.v1 import error_reason_pb2, item_error_pb2
from tallystick.errors import FieldViolation, TallystickError, error_class

DOMAIN: Final = "tallystick"
DETAILS_KEY: Final = "grpc-status-details-bin"
_REASON_PREFIX = "ERROR_REASON_"
_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}

# message -> (field, number, type), as google/rpc/status.proto and error_details.proto have them. "*" repeats.
_MESSAGES = {
    "Status": [("code", 1, "int32"), ("message", 2, "string"), ("details", 3, "*google.protobuf.Any")],
    "ErrorInfo": [
        ("reason", 1, "string"),
        ("domain", 2, "string"),
        # A map travels as its entries.
        ("metadata", 3, "*google.rpc.MetadataEntry"),
    ],
    "MetadataEntry": [("key", 1, "string"), ("value", 2, "string")],
    "BadRequest": [("field_violations", 1, "*google.rpc.FieldViolation")],
    "FieldViolation": [("field", 1, "string"), ("description", 2, "string")],
    "RetryInfo": [("retry_delay", 1, "google.protobuf.Duration")],
}


def _declare() -> dict[str, Any]:
    file = FileDescriptorProto(
        name="tallystick/rpc_details.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=[any_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, type_name in fields:
            added = message.field.add(
                name=field,
                number=number,
                label="LABEL_REPEATED" if type_name.startswith("*") else "LABEL_OPTIONAL",
            )
            if "." in type_name:
                added.type = FieldDescriptorProto.TYPE_MESSAGE
                added.type_name = f".{type_name.removeprefix('*')}"
            else:
                added.type = FieldDescriptorProto.Type.Value(f"TYPE_{type_name.upper()}")
    pool = DescriptorPool()
    for known in (any_pb2.DESCRIPTOR, duration_pb2.DESCRIPTOR):
        pool.AddSerializedFile(known.serialized_pb)
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}")) for name in _MESSAGES}


_CLASSES = _declare()


def from_rpc_error(error: grpc.RpcError, *, request_id: str) -> TallystickError:
    """The exception for a failed call. `request_id` is what was sent, for when the answer does not say."""
    code = error.code().name if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else "UNKNOWN"
    message, trailing = _text_and_trailers(error)
    details = _details(trailing)
    info, retry = details.get("ErrorInfo"), details.get("RetryInfo")
    reason, metadata = "", {}
    if info is not None and info.domain == DOMAIN:
        reason, metadata = info.reason, {entry.key: entry.value for entry in info.metadata}
    violations = details["BadRequest"].field_violations if "BadRequest" in details else ()
    return error_class(code, reason)(
        message or code,
        reason=reason,
        # The request id has an attribute of its own.
        request_id=metadata.pop("request_id", "") or request_id,
        metadata=metadata,
        retry_after=_delay(retry.retry_delay) if retry is not None else None,
        field_violations=[FieldViolation(one.field, one.description) for one in violations],
    )


def from_item_error(item: item_error_pb2.ItemError) -> TallystickError:
    """The exception for the verdict on one item of a batch."""
    code = _CODE_NAMES.get(item.code, "UNKNOWN")
    value = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(item.reason)
    # A server newer than we are may have reasons that we cannot name; its code says enough.
    reason = value.name.removeprefix(_REASON_PREFIX) if value is not None and value.number else ""
    metadata = dict(item.metadata)
    return error_class(code, reason)(
        item.message or code,
        reason=reason,
        request_id=metadata.pop("request_id", ""),
        metadata=metadata,
        retry_after=_delay(item.retry_delay) if item.HasField("retry_delay") else None,
        field_violations=[FieldViolation(one.field, one.description) for one in item.field_violations],
    )


def _text_and_trailers(error: Any) -> tuple[str, Iterable[tuple[str, str | bytes]]]:
    # A grpc.RpcError that is no grpc.Call (an interceptor's, say) says neither.
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return str(error), ()
    return error.details() or "", error.trailing_metadata() or ()


def _details(trailing: Iterable[tuple[str, str | bytes]]) -> dict[str, Any]:
    """The details of an answer that we know, by the name of their message. What is damaged is left out."""
    found: dict[str, Any] = {}
    for key, value in trailing:
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = _CLASSES["Status"].FromString(value)
            for detail in status.details:
                name = re.sub(r"^.*/google\.rpc\.", "", detail.type_url)
                if name in ("ErrorInfo", "BadRequest", "RetryInfo"):
                    found[name] = _CLASSES[name].FromString(detail.value)
        except DecodeError:
            continue
    return found


def _delay(duration: Any) -> timedelta:
    # Not ToTimedelta, which refuses what is out of range: the duration comes from outside.
    return timedelta(
        seconds=min(max(duration.seconds, 0), 86_400), microseconds=max(duration.nanos, 0) // 1000
    )
