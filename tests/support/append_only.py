"""Tables whose rows never change, whoever tries."""

import itertools
from collections.abc import Sequence

import psycopg
import pytest
from psycopg import sql

# None: a superuser, by accident.
ROLES = ("owner", "writer", "reader", None)
ATTEMPTS = ("UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {}")


async def count_rows(connection: psycopg.AsyncConnection, schema: str, table: str) -> int:
    """How many rows a table has."""
    found = await connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, table)))
    row = await found.fetchone()
    assert row is not None
    return int(row[0])


async def nobody_changes(database: psycopg.AsyncConnection, tables: Sequence[tuple[str, str]]) -> None:
    """Whoever tries to change or remove rows of these tables, which have some, is refused."""
    for (schema, table), role, attempt in itertools.product(tables, ROLES, ATTEMPTS):
        before = await count_rows(database, schema, table)
        assert before > 0, f"nothing in {schema}.{table}: the test would prove nothing"
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.RestrictViolation)):
            await _change(database, schema, table, role, attempt)
        assert await count_rows(database, schema, table) == before


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
