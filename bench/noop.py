"""The floor of single calls: a bare grpc.aio server whose methods parse the request and answer what they were
given, in a process of its own.

`python -m bench.noop FOLDER` reads the answers, serialized, from FOLDER, and writes its address there once it
serves.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from tallystick.ledger.v1.ledger_service_pb2 import PostChargeRequest, PostChargeResponse
from tallystick.metering.v1.metering_service_pb2 import MeterRequest, MeterResponse

ADDRESS_FILE: Final = "address"
POST_CHARGE_FILE: Final = "post_charge"
METER_FILE: Final = "meter"

Context = grpc.aio.ServicerContext[Any, Any]


async def serve(folder: Path) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    posted = PostChargeResponse.FromString((folder / POST_CHARGE_FILE).read_bytes())
    metered = MeterResponse.FromString((folder / METER_FILE).read_bytes())
    server.add_generic_rpc_handlers(
        (
            _service("tallystick.ledger.v1.LedgerService", "PostCharge", PostChargeRequest, posted),
            _service("tallystick.metering.v1.MeteringService", "Meter", MeterRequest, metered),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    written = folder / f"{ADDRESS_FILE}.new"
    written.write_text(f"127.0.0.1:{port}")
    # Renamed, so that whoever waits for the file never reads half an address.
    written.rename(folder / ADDRESS_FILE)
    await server.wait_for_termination()


def _service(service: str, method: str, request: type[Message], response: Message) -> grpc.GenericRpcHandler:
    """A service of one method, which parses the request, and serializes the response, each time."""

    async def answer(_request: Message, _context: Context) -> Message:
        return response

    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request.FromString,
        response_serializer=type(response).SerializeToString,
    )
    return grpc.method_handlers_generic_handler(service, {method: handler})


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
