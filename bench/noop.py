"""The floor of single calls: a bare grpc.aio server whose methods parse the request and answer what they were
given, in a process of its own.

`python -m bench.noop FOLDER` reads the answers, serialized, from FOLDER, and writes its address there once it
serves.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import Message

from tallystick.ledger.v1.ledger_service_pb2 import PostChargeRequest, PostChargeResponse
from tallystick.metering.v1.metering_service_pb2 import (
    AuthorizeRequest,
    AuthorizeResponse,
    MeterRequest,
    MeterResponse,
    SettleRequest,
    SettleResponse,
)

ADDRESS_FILE: Final = "address"
# Each method is answered what the file of its name holds.
LEDGER_METHODS: Final = {"PostCharge": (PostChargeRequest, PostChargeResponse)}
METERING_METHODS: Final = {
    "Meter": (MeterRequest, MeterResponse),
    "Authorize": (AuthorizeRequest, AuthorizeResponse),
    "Settle": (SettleRequest, SettleResponse),
}

# Strings, since only the type stubs make these generic.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


async def serve(folder: Path) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            _service(folder, "tallystick.ledger.v1.LedgerService", LEDGER_METHODS),
            _service(folder, "tallystick.metering.v1.MeteringService", METERING_METHODS),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    written = folder / f"{ADDRESS_FILE}.new"
    written.write_text(f"127.0.0.1:{port}")
    # Renamed, so that whoever waits for the file never reads half an address.
    written.rename(folder / ADDRESS_FILE)
    await server.wait_for_termination()


def _service(
    folder: Path, service: str, methods: Mapping[str, tuple[type[Message], type[Message]]]
) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        service,
        {
            name: _handler(request, response.FromString((folder / name).read_bytes()))
            for name, (request, response) in methods.items()
        },
    )


def _handler(request: type[Message], response: Message) -> Handler:
    """A method that parses the request, and serializes the response, each time."""

    async def answer(_request: Message, _context: Context) -> Message:
        return response

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request.FromString,
        response_serializer=type(response).SerializeToString,
    )


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
