"""What was recorded and posted never changes, whoever tries."""

import itertools
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import sql

from tests.integration.metering.world import World, run
from tests.support.waiting import eventually

TABLES = (
    ("ledger", "transaction"),
    ("ledger", "entry"),
    ("ledger", "charge"),
    ("ledger", "journal_position"),
    ("ledger", "idempotency"),
    ("ledger", "revenue_share_agreement"),
    ("metering", "usage_event"),
)
# None: a superuser, by accident.
ROLES = ("owner", "writer", "reader", None)
ATTEMPTS = ("UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {}")


@pytest.fixture
async def database(world: World) -> AsyncIterator[psycopg.AsyncConnection]:
    """The database of a platform that has metered and posted something."""
    await world.meter(run("run-1"))
    async with await psycopg.AsyncConnection.connect(
        world.server.ledger.database_url, autocommit=True
    ) as connection:

        async def sequenced() -> bool:
            return await _count(connection, "ledger", "journal_position") > 0

        await eventually(sequenced)
        yield connection


async def _count(connection: psycopg.AsyncConnection, schema: str, table: str) -> int:
    found = await connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, table)))
    row = await found.fetchone()
    assert row is not None
    return int(row[0])


async def test_nobody_changes_the_past(database: psycopg.AsyncConnection) -> None:
    for (schema, table), role, attempt in itertools.product(TABLES, ROLES, ATTEMPTS):
        before = await _count(database, schema, table)
        assert before > 0, f"nothing in {schema}.{table}: the test would prove nothing"
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.RestrictViolation)):
            await _change(database, schema, table, role, attempt)
        assert await _count(database, schema, table) == before


async def _change(
    database: psycopg.AsyncConnection, schema: str, table: str, role: str | None, attempt: str
) -> None:
    found = await database.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
        " ORDER BY ordinal_position LIMIT 1",
        (schema, table),
    )
    row = await found.fetchone()
    assert row is not None
    name, column = sql.Identifier(schema, table), sql.Identifier(row[0])
    async with database.transaction():
        if role is not None:
            await database.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(f"{schema}_{role}")))
        # As far as the tenants go, everything may be seen: it is not a policy that stops this.
        await database.execute("SELECT set_config('tallystick.platform', 'on', true)")
        await database.execute(sql.SQL(attempt).format(name, column, column))
