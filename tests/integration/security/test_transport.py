"""Where an API key travels in plaintext."""

import asyncio

import grpc
import pytest

from services.kit.client import connect
from tallystick.ledger.v1 import directory_service_pb2
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.1:50051",
        "0.0.0.0:50051",
        "[::]:50051",
        "ledger:50051",
        "localhost.example:50051",
        "127.0.0.1.example:50051",
        "127.0.0.1,10.0.0.1:50051",
        "dns:///ledger:50051",
        "dns:///127.0.0.1:50051",
        "ipv4:10.0.0.1:50051",
        "passthrough:///10.0.0.1:50051",
        "50051",
        "",
    ],
)
async def test_no_key_leaves_the_machine_in_plaintext(target: str) -> None:
    with pytest.raises(ValueError, match="not sent there in plaintext"):
        connect(target, "tsk_a_b")


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
async def test_a_proxy_in_the_environment_hears_nothing(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    heard: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
    try:
        # Nobody listens at port 1: the answer is UNAVAILABLE, whoever is asked.
        async with connect("127.0.0.1:1", "tsk_a_b") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await DirectoryServiceStub(channel).ListOrganizations(
                    directory_service_pb2.ListOrganizationsRequest(), timeout=5
                )
    finally:
        server.close()
    assert heard == []
