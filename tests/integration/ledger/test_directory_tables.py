"""The tables as the queries know them are the tables as the migrations make them."""

import psycopg
import pytest
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from services.ledger.store import directory_tables

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
TABLES = list(directory_tables.metadata.tables.values())


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_queries_and_migrations_agree(database_url: str, table: Table) -> None:
    with psycopg.connect(database_url) as connection:
        columns = connection.execute(
            "SELECT a.attname, a.attnotnull, format_type(a.atttypid, NULL) FROM pg_attribute a"
            " WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped",
            (f"ledger.{table.name}",),
        ).fetchall()
        keys = connection.execute(
            "SELECT a.attname FROM pg_index i JOIN pg_attribute a"
            " ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)"
            " WHERE i.indrelid = %s::regclass AND i.indisprimary",
            (f"ledger.{table.name}",),
        ).fetchall()
    is_view = table.info.get("is_view", False)
    assert {name: kind for name, _, kind in columns} == {
        column.name: str(column.type.compile(_DIALECT)).lower() for column in table.columns
    }
    if not is_view:
        assert {name: required for name, required, _ in columns} == {
            column.name: not column.nullable for column in table.columns
        }
        assert {name for (name,) in keys} == {column.name for column in table.primary_key.columns}
