"""The tables of budgets: how they come about, and who may do what with them."""

import psycopg
import pytest
from alembic import command
from psycopg import sql
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from services.kit.db import Database
from services.metering import migrations
from services.metering.domain.budget import CounterKey
from services.metering.store import budget_tables, budgets
from services.metering.store.budgets import Spend
from tests.integration.metering.budget_world import a_budget, create

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
TABLES = [
    budget_tables.budget,
    budget_tables.budget_change,
    budget_tables.budget_counter,
    budget_tables.budget_alert,
    budget_tables.budget_reservation,
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_queries_and_migrations_agree(database_url: str, table: Table) -> None:
    with psycopg.connect(database_url) as connection:
        columns = connection.execute(
            "SELECT attname, attnotnull, format_type(atttypid, NULL) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            (f"metering.{table.name}",),
        ).fetchall()
        keys = connection.execute(
            "SELECT a.attname FROM pg_index i JOIN pg_attribute a"
            " ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)"
            " WHERE i.indrelid = %s::regclass AND i.indisprimary",
            (f"metering.{table.name}",),
        ).fetchall()
    assert {name: (kind, required) for name, required, kind in columns} == {
        column.name: (str(column.type.compile(_DIALECT)).lower(), not column.nullable)
        for column in table.columns
    }
    assert {name for (name,) in keys} == {column.name for column in table.primary_key.columns}


def test_a_database_without_budgets_is_brought_up_to_date(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, revision: upgrade(config, "0001"))
        migrations.migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as admin:
        assert admin.execute("SELECT to_regclass('metering.budget')").fetchone() == (None,)
        admin.execute("INSERT INTO metering.price_book VALUES ('pb_1', 'platform', 'USD', 'kept', 0, now())")

        migrations.migrate(empty_database_url)

        assert admin.execute("SELECT count(*) FROM metering.budget").fetchone() == (0,)
        assert admin.execute("SELECT display_name FROM metering.price_book").fetchall() == [("kept",)]
        # Nobody has functions of the owner but the writer, new ones or old.
        granted = admin.execute(
            "SELECT DISTINCT has_function_privilege('public', oid, 'EXECUTE'),"
            " has_function_privilege('metering_reader', oid, 'EXECUTE') FROM pg_proc"
            " WHERE pronamespace = 'metering'::regnamespace AND prosecdef"
        ).fetchall()
        assert granted == [(False, False)]


@pytest.fixture
async def populated(database_url: str) -> str:
    """A database with a budget of cus_1 and one of cus_2, each counted, alerted and reserved against."""
    writer = Database(database_url, role="metering_writer", schema="metering")
    await writer.open()
    try:
        for customer_id in ("cus_1", "cus_2"):
            budget = a_budget(
                f"bud_{customer_id}", customer_id=customer_id, owner_id=customer_id, alert_thresholds=(1,)
            )
            await create(writer, budget)
            key = CounterKey(budget.budget_id, None, "")
            async with writer.hot() as connection:
                await budgets.count_spend(connection, [Spend(key, 500)])
                cursor = await connection.execute("SELECT now() + interval '1 hour'")
                (expire_time,) = await cursor.fetchone() or ()
                await budgets.reserve_budgets(connection, f"rsv_{customer_id}", {key: 900}, 1, expire_time)
    finally:
        await writer.close()
    return database_url


OF_TENANTS = ("budget", "budget_counter", "budget_alert", "budget_reservation")


@pytest.mark.parametrize("role", ["metering_reader", "metering_writer"])
def test_tenants_see_their_own_rows_only(populated: str, role: str) -> None:
    with psycopg.connect(populated) as admin:
        admin.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        for tenants, platform, seen in (
            ("{cus_1}", "off", ["cus_1"]),
            ("{cus_2,org_a}", "off", ["cus_2"]),
            ("{cus_3}", "off", []),
            ("{}", "on", ["cus_1", "cus_2"]),
        ):
            admin.execute(
                "SELECT set_config('tallystick.tenants', %s, true),"
                " set_config('tallystick.platform', %s, true)",
                (tenants, platform),
            )
            for table in OF_TENANTS:
                rows = admin.execute(
                    sql.SQL("SELECT owner_id FROM {} ORDER BY 1").format(sql.Identifier("metering", table))
                ).fetchall()
                assert [owner_id for (owner_id,) in rows] == seen, table


@pytest.mark.parametrize(
    "statement",
    [
        # Given to another tenant.
        (
            "INSERT INTO metering.budget SELECT 'bud_new', 'cus_2', '', 'cus_2', '', '', false, 'day', 'UTC',"
            " 'USD', 1, true, '{}', now(), now(), NULL, 0"
        ),
        # What never changes, and what only functions of the owner write.
        "UPDATE metering.budget SET owner_id = 'cus_2'",
        "UPDATE metering.budget SET currency_code = 'EUR'",
        "UPDATE metering.budget SET change_number = 0",
        "UPDATE metering.budget_change SET change_number = 0",
        "DELETE FROM metering.budget",
        "UPDATE metering.budget_counter SET spent = 0",
        "INSERT INTO metering.budget_counter VALUES ('bud_x', now(), '', 'cus_1', 0)",
        "DELETE FROM metering.budget_counter",
        "DELETE FROM metering.budget_alert",
        "DELETE FROM metering.budget_reservation",
    ],
)
def test_the_writer_of_a_tenant_may_not(populated: str, statement: str) -> None:
    with psycopg.connect(populated) as admin:
        admin.execute("SET ROLE metering_writer")
        admin.execute("SELECT set_config('tallystick.tenants', '{cus_1}', true)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            admin.execute(statement.encode())


def test_the_writer_of_a_tenant_changes_its_own_budgets_only(populated: str) -> None:
    with psycopg.connect(populated) as admin:
        admin.execute("SET ROLE metering_writer")
        admin.execute("SELECT set_config('tallystick.tenants', '{cus_1}', true)")
        changed = admin.execute("UPDATE metering.budget SET hard = false RETURNING budget_id").fetchall()
    assert changed == [("bud_cus_1",)]


@pytest.mark.parametrize("table", ["budget", "budget_alert"])
@pytest.mark.parametrize("attempt", ["DELETE FROM {}", "TRUNCATE {}"])
def test_what_was_kept_stays(populated: str, table: str, attempt: str) -> None:
    with psycopg.connect(populated) as admin, pytest.raises(psycopg.errors.RestrictViolation):
        admin.execute(sql.SQL(attempt).format(sql.Identifier("metering", table)))
