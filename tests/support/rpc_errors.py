"""What a refused call was answered, taken apart."""

from collections.abc import Awaitable
from dataclasses import dataclass

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class Refusal:
    """Status code, and what the rich details say."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    fields: list[str]


async def refusal(call: Awaitable[object]) -> Refusal:
    """The refusal of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return taken_apart(caught.value)


def taken_apart(error: grpc.aio.AioRpcError) -> Refusal:
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            for detail in status_pb2.Status.FromString(value).details:
                detail.Unpack(info)
                detail.Unpack(bad_request)
    return Refusal(
        code=error.code(),
        reason=info.reason,
        metadata=dict(info.metadata),
        fields=[violation.field for violation in bad_request.field_violations],
    )
