"""The walls inside PostgreSQL, table by table and role by role. Nobody adds a table without them."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

SCHEMAS = ("ledger", "metering", "payouts", "reporting")
# Alembic's own, which says which version a schema is at: readers may know.
VERSION_TABLE = "alembic_version"


@pytest.fixture
def admin(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def _tables(admin: psycopg.Connection) -> list[tuple[str, str]]:
    rows = admin.execute(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ANY (%s) AND tablename <> %s"
        " ORDER BY schemaname, tablename",
        (list(SCHEMAS), VERSION_TABLE),
    ).fetchall()
    assert len(rows) > 15
    return rows


def test_every_table_forces_row_level_security(admin: psycopg.Connection) -> None:
    open_tables = admin.execute(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = ANY (%s) AND c.relkind IN ('r', 'p') AND c.relname <> %s"
        " AND NOT (c.relrowsecurity AND c.relforcerowsecurity)",
        (list(SCHEMAS), VERSION_TABLE),
    ).fetchall()
    assert open_tables == []


def test_no_policy_lets_a_service_role_see_everything(admin: psycopg.Connection) -> None:
    for schema, table in _tables(admin):
        policies = admin.execute(
            "SELECT policyname, roles::text[], qual, with_check FROM pg_policies"
            " WHERE schemaname = %s AND tablename = %s",
            (schema, table),
        ).fetchall()
        assert policies, f"{schema}.{table} has no policy"
        for name, roles, using, check in policies:
            if roles == [f"{schema}_owner"]:
                continue
            assert set(roles) <= {f"{schema}_reader", f"{schema}_writer"}, f"{schema}.{table} {name}: {roles}"
            for condition in (using, check):
                assert condition is None or "visible(" in condition, f"{schema}.{table} {name}: {condition}"


@pytest.mark.parametrize("role", ["reader", "writer"])
def test_unset_tenants_show_nothing(admin: psycopg.Connection, role: str) -> None:
    for schema, table in _tables(admin):
        name = sql.Identifier(schema, table)
        with admin.transaction():
            admin.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(f"{schema}_{role}")))
            try:
                with admin.transaction():
                    row = admin.execute(sql.SQL("SELECT count(*) FROM {}").format(name)).fetchone()
            except psycopg.errors.InsufficientPrivilege:
                continue
            assert row == (0,), f"{schema}_{role} sees rows of {schema}.{table}"


def test_the_reader_can_only_read(admin: psycopg.Connection) -> None:
    for schema, table in _tables(admin):
        for privilege in ("INSERT", "UPDATE", "DELETE", "TRUNCATE"):
            granted = admin.execute(
                "SELECT has_table_privilege(%s, %s, %s)", (f"{schema}_reader", f"{schema}.{table}", privilege)
            ).fetchone()
            assert granted == (False,), f"{schema}_reader may {privilege} {schema}.{table}"
