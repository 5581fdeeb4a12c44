"""What anybody may ask a server: whether its schema was migrated, and what time it is there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.db import Database
from services.kit.health import SCHEMA_SERVICE, SchemaHealth
from services.kit.interceptors import SERVER_TIME
from services.kit.migrations import versions
from services.kit.server import build_server
from services.ledger.migrations import SCRIPTS
from tests.unit.kit.support import EchoServicer, KnownKeys, bind_echo, running

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.UNKNOWN


@asynccontextmanager
async def looking_at(url: str, ttl: timedelta = timedelta(0)) -> AsyncIterator[SchemaHealth]:
    reader = Database(url, role="ledger_reader", schema="ledger", wait=timedelta(seconds=2))
    try:
        yield SchemaHealth(reader, schema="ledger", script_dir=SCRIPTS, ttl=ttl)
    finally:
        await reader.close()


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


async def test_a_schema_is_as_the_code_wants_it_or_not(database_url: str) -> None:
    newest, *older = versions(SCRIPTS)
    async with looking_at(database_url) as schema:
        assert await schema.status() == SERVING
        for version, status in (
            (older[0], NOT_SERVING),
            (older[-1], NOT_SERVING),
            # A newer version has migrated: what was there keeps working.
            ("9999_of_tomorrow", SERVING),
            (newest, SERVING),
        ):
            execute(database_url, f"UPDATE ledger.alembic_version SET version_num = '{version}'")
            assert await schema.status() == status, version
        execute(database_url, "REVOKE SELECT ON ledger.alembic_version FROM ledger_reader")
        assert await schema.status() == NOT_SERVING


async def test_without_a_database_nothing_is_known(empty_database_url: str) -> None:
    async with looking_at("postgresql://nobody@127.0.0.1:1/nothing") as schema:
        assert await schema.status() == UNKNOWN
    # The roles are there, of other databases of this server; the schema is not.
    async with looking_at(empty_database_url) as schema:
        assert await schema.status() in (NOT_SERVING, UNKNOWN)


async def test_the_database_is_not_asked_by_every_stranger(database_url: str) -> None:
    async with looking_at(database_url, timedelta(hours=1)) as schema:
        assert await schema.status() == SERVING
        execute(database_url, "UPDATE ledger.alembic_version SET version_num = '0001'")
        assert await schema.status() == SERVING


async def test_health_tells_of_the_schema_without_a_key(database_url: str) -> None:
    async with looking_at(database_url) as schema:
        server = build_server(services=[bind_echo(EchoServicer())], authenticator=KnownKeys(), schema=schema)
        address = server.listen("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                asked = health_pb2.HealthCheckRequest(service=SCHEMA_SERVICE)
                assert (await check(asked)).status == SERVING
                execute(database_url, "UPDATE ledger.alembic_version SET version_num = '0001'")
                assert (await check(asked)).status == NOT_SERVING
                assert (await check(health_pb2.HealthCheckRequest())).status == SERVING
        finally:
            await server.stop(timedelta(seconds=2))


async def test_a_server_without_a_schema_does_not_know_of_one() -> None:
    async with running(EchoServicer()) as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(health_pb2.HealthCheckRequest(service=SCHEMA_SERVICE))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_tells_the_time() -> None:
    async with running(EchoServicer()) as server:
        call = health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest())
        await call
        told = datetime.fromisoformat(dict(await call.trailing_metadata())[SERVER_TIME])
        assert abs(told - datetime.now(UTC)) < timedelta(hours=1)
