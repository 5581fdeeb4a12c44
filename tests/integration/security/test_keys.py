"""API keys from their creation to their end, on both services, as production authenticates."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.client import connect
from services.kit.server import build_server
from services.metering.app import open_app
from services.metering.config import MeteringConfig
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import directory_service_pb2, ledger_service_pb2
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tallystick.metering.v1 import pricing_service_pb2
from tallystick.metering.v1.pricing_service_pb2_grpc import PricingServiceStub
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.metering_server import TOKEN_KEY
from tests.support.waiting import eventually

# "Every server forgets a key it has seen within two seconds": and some for a slow machine.
FELT_WITHIN_SECONDS = 4.0
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@dataclass
class Servers:
    ledger: LedgerServer
    metering_address: str

    async def codes(self, key: str) -> tuple[grpc.StatusCode, grpc.StatusCode]:
        """How the ledger and metering answer the bearer of an operator's key."""
        async with connect(self.ledger.address, key) as one, connect(self.metering_address, key) as other:
            return (
                await _code(
                    DirectoryServiceStub(one).ListCustomers(directory_service_pb2.ListCustomersRequest())
                ),
                await _code(
                    PricingServiceStub(other).ListPriceBooks(pricing_service_pb2.ListPriceBooksRequest())
                ),
            )


async def _code(call: Awaitable[object]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@asynccontextmanager
async def _running(database_url: str) -> AsyncIterator[Servers]:
    async with running_ledger(database_url) as ledger:
        config = MeteringConfig(
            database_url=database_url,
            ledger_address=ledger.address,
            ledger_api_key=ledger.service.key,
            token_keys=TOKEN_KEY,
        )
        async with open_app(config) as app:
            server = build_server(services=app.services, authenticator=app.authenticator)
            address = server.listen("127.0.0.1:0")
            await server.start()
            try:
                yield Servers(ledger, address)
            finally:
                await server.stop(timedelta(seconds=2))


@pytest.fixture
async def servers(database_url: str) -> AsyncIterator[Servers]:
    async with _running(database_url) as running:
        yield running


async def _create(
    servers: Servers, *, expires_in: float | None = None
) -> directory_service_pb2.CreateApiKeyResponse:
    expire_time = None
    if expires_in is not None:
        expire_time = Timestamp()
        expire_time.FromNanoseconds(time.time_ns() + int(expires_in * 1e9))
    return await servers.ledger.operator.directory.CreateApiKey(
        directory_service_pb2.CreateApiKeyRequest(
            role=access_pb2.ROLE_OPERATOR, idempotency_key="k", expire_time=expire_time
        )
    )


async def test_a_revocation_is_felt_within_seconds_everywhere(servers: Servers) -> None:
    created = await _create(servers)
    assert await servers.codes(created.secret) == (grpc.StatusCode.OK, grpc.StatusCode.OK)
    await servers.ledger.operator.directory.RevokeApiKey(
        directory_service_pb2.RevokeApiKeyRequest(api_key_id=created.api_key.api_key_id)
    )
    revoked = time.monotonic()

    async def is_felt() -> bool:
        return await servers.codes(created.secret) == (UNAUTHENTICATED, UNAUTHENTICATED)

    await eventually(is_felt)
    assert time.monotonic() - revoked < FELT_WITHIN_SECONDS


async def test_an_expiry_is_felt_at_once_everywhere(servers: Servers) -> None:
    created = await _create(servers, expires_in=1.5)
    ends = time.monotonic() + 1.5
    assert await servers.codes(created.secret) == (grpc.StatusCode.OK, grpc.StatusCode.OK)
    await asyncio.sleep(max(0.0, ends - time.monotonic()) + 0.05)
    assert await servers.codes(created.secret) == (UNAUTHENTICATED, UNAUTHENTICATED)


async def test_a_stream_tells_nothing_to_a_key_that_expired(servers: Servers) -> None:
    created = await _create(servers, expires_in=1.5)
    ends = time.monotonic() + 1.5
    await servers.ledger.create_customer("cus_a")

    async def grant(name: str) -> None:
        await servers.ledger.operator.ledger.GrantCredits(
            ledger_service_pb2.GrantCreditsRequest(
                customer_id="cus_a",
                amount=money_pb2.Money(currency_code="USD", amount_micros=1),
                source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
                idempotency_key=name,
            )
        )

    await grant("before")
    async with connect(servers.ledger.address, created.secret) as channel:
        stream = LedgerServiceStub(channel).ReadJournal(ledger_service_pb2.ReadJournalRequest(follow=True))
        assert await stream.read() is not grpc.aio.EOF
        await asyncio.sleep(max(0.0, ends - time.monotonic()) + 0.05)
        await grant("after")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async with asyncio.timeout(FELT_WITHIN_SECONDS):
                await stream.read()
        assert ended.value.code() is UNAUTHENTICATED


async def test_the_database_holds_no_secret(servers: Servers) -> None:
    created = await _create(servers)
    secret = created.secret.split("_", 2)[2]
    with psycopg.connect(servers.ledger.database_url) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname IN ('ledger', 'metering')"
        ).fetchall()
        for (table,) in tables:
            query = f"SELECT count(*) FROM {table} t WHERE position(%s in t::text) > 0".encode()
            assert connection.execute(query, (secret,)).fetchone() == (0,), table


def _header(name: bytes, value: bytes) -> bytes:
    """A literal header field without indexing (RFC 7541, 6.2.2); of up to 126 bytes each."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    """A frame of stream 1 (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", 1) + payload


def _call_raw(address: str, authorization: bytes) -> bytes:
    """What a server answers to bytes in its header that no gRPC library would send."""
    host, _, port = address.rpartition(":")
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/tallystick.ledger.v1.LedgerService/GetCharge",
        b":authority": b"test",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"authorization": authorization,
    }
    headers = b"".join(_header(name, value) for name, value in fields.items())
    settings = b"\0\0\0\x04\0\0\0\0\0"
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        connection.sendall(_frame(1, 4, headers) + _frame(0, 1, bytes(5)))
        answer = b""
        while b"grpc-status" not in answer and (received := connection.recv(65_536)):
            answer += received
    return answer


@pytest.mark.parametrize("stray", [b"\xff", b"\xc3\xa9", b"\0", b" x"])
async def test_stray_bytes_in_a_header_are_refused(servers: Servers, stray: bytes) -> None:
    authorization = b"Bearer " + servers.ledger.operator.key.encode() + stray
    answer = await asyncio.to_thread(_call_raw, servers.ledger.address, authorization)
    assert b"grpc-status\x0216" in answer


async def test_a_mistyped_header_is_not_logged(
    servers: Servers, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    key = servers.ledger.operator.key
    caplog.set_level(logging.DEBUG)
    await asyncio.to_thread(_call_raw, servers.ledger.address, b"Bearer " + key.encode() + b"\xff")
    written = capfd.readouterr()
    assert key.split("_", 2)[2] not in caplog.text + written.err + written.out
