import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services.kit import log
from services.kit.client import authorization, connect
from tests.unit.kit.support import HOST_KEY, EchoClient, EchoServicer, running


class Telling(EchoServicer):
    """Answers with what came with the call."""

    async def Echo(self, request: StringValue, context: Any) -> StringValue:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        seconds = context.time_remaining()
        known = {name: metadata.get(name) for name in ("authorization", "x-request-id", "x-other")}
        return StringValue(
            value=json.dumps({**known, "minutes": None if seconds is None else round(seconds / 60)})
        )


async def test_every_shape_of_call_carries_the_key() -> None:
    async with running(EchoServicer()) as server, connect(server.address, HOST_KEY) as channel:
        client = EchoClient(channel, key=None)
        assert (await client.echo("a")).value == "a"
        assert [one.value async for one in client.repeat("b")] == ["b", "b", "b"]
        assert (await client.join("c", "d")).value == "cd"
        assert [one.value async for one in client.chat("e")] == ["E"]


async def test_a_call_carries_the_id_of_the_request_it_is_made_in() -> None:
    minutes = timedelta(minutes=3)
    async with running(Telling()) as server, connect(server.address, HOST_KEY, timeout=minutes) as channel:
        client = EchoClient(channel, key=None)
        client.metadata = (("x-other", "kept"),)
        outside = json.loads((await client.echo()).value)
        token = log.request_id.set("outer-request")
        try:
            inside = json.loads((await client.echo(timeout=60)).value)
        finally:
            log.request_id.reset(token)
    expected = {"authorization": f"Bearer {HOST_KEY}", "x-request-id": None, "x-other": "kept", "minutes": 3}
    assert outside == expected
    assert inside == {**expected, "x-request-id": "outer-request", "minutes": 1}


async def test_a_service_that_is_away_fails_at_once_and_is_found_when_it_comes_back() -> None:
    async with running(EchoServicer()) as server:
        address = server.address
    async with connect(address, HOST_KEY) as channel:
        client = EchoClient(channel, key=None)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.echo()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        async with running(EchoServicer(), listen=address):
            async with asyncio.timeout(30):
                await channel.channel_ready()
            assert (await client.echo("back")).value == "back"


@pytest.mark.parametrize("target", ["ledger:50051", "10.0.0.1:50051", "dns:///ledger:50051"])
async def test_a_key_does_not_leave_the_machine_in_plaintext(target: str) -> None:
    with pytest.raises(ValueError, match="plaintext"):
        connect(target, HOST_KEY)
    await connect(target, HOST_KEY, insecure=True).close()


async def test_missing_roots_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect("ledger:50051", HOST_KEY, tls_ca=tmp_path / "missing.pem")


async def test_without_a_key_of_its_own_a_channel_sends_what_a_call_brings() -> None:
    async with running(Telling()) as server, connect(server.address, None) as channel:
        client = EchoClient(channel, key=None)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.echo()
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        client.metadata = authorization(HOST_KEY)
        assert json.loads((await client.echo()).value)["authorization"] == f"Bearer {HOST_KEY}"
    with pytest.raises(ValueError, match="not on this machine"):
        connect("ledger.example:50051", None)
