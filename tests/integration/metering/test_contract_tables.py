"""The tables of contracts: how they come about, and who may do what with them."""

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from services.metering.store import contract_tables
from tests.integration.metering.test_contracts import a_contract, create
from tests.integration.metering.world import World

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
TABLES = [contract_tables.contract, contract_tables.contract_version, contract_tables.contract_change]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_queries_and_migrations_agree(database_url: str, table: Table) -> None:
    with psycopg.connect(database_url) as connection:
        columns = connection.execute(
            "SELECT attname, attnotnull, format_type(atttypid, NULL) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            (f"metering.{table.name}",),
        ).fetchall()
    assert {name: (kind, required) for name, required, kind in columns} == {
        column.name: (
            str(column.type.compile(_DIALECT)).lower().replace("blob", "bytea"),
            not column.nullable,
        )
        for column in table.columns
    }


@pytest.fixture
async def populated(world: World) -> str:
    """A database with a contract of cus_1 with org_a, and one for all of cus_2."""
    await create(world.server.operator, a_contract())
    await create(world.server.operator, a_contract("con_2", customer_id="cus_2", organization_id=""))
    return world.server.database_url


@pytest.mark.parametrize("role", ["metering_reader", "metering_writer"])
def test_tenants_see_their_own_rows_only(populated: str, role: str) -> None:
    with psycopg.connect(populated) as admin:
        admin.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        for tenants, platform, seen in (
            ("{cus_1}", "off", ["con_1"]),
            ("{org_a}", "off", ["con_1"]),
            ("{cus_2,org_b}", "off", ["con_2"]),
            ("{cus_3}", "off", []),
            ("{}", "off", []),
            ("{}", "on", ["con_1", "con_2"]),
        ):
            admin.execute(
                "SELECT set_config('tallystick.tenants', %s, true),"
                " set_config('tallystick.platform', %s, true)",
                (tenants, platform),
            )
            for table in ("contract", "contract_version"):
                rows = admin.execute(
                    f"SELECT contract_id FROM metering.{table} ORDER BY 1".encode()
                ).fetchall()
                assert [id_ for (id_,) in rows] == seen


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE metering.contract SET customer_id = 'cus_2'",
        "UPDATE metering.contract SET start_time = now()",
        "DELETE FROM metering.contract",
        "TRUNCATE metering.contract CASCADE",
        "UPDATE metering.contract_change SET change_number = 0",
        "UPDATE metering.contract_version SET content = ''",
    ],
)
def test_the_writer_may_not(populated: str, statement: str) -> None:
    with psycopg.connect(populated) as admin:
        admin.execute("SET ROLE metering_writer")
        admin.execute("SELECT set_config('tallystick.platform', 'on', true)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            admin.execute(statement.encode())


def test_a_customer_writes_none_of_its_contracts(populated: str) -> None:
    """The second wall: the service refuses it before."""
    with psycopg.connect(populated) as admin:
        admin.execute("SET ROLE metering_writer")
        admin.execute("SELECT set_config('tallystick.tenants', '{cus_1}', true)")
        changed = admin.execute("UPDATE metering.contract SET end_time = now() RETURNING 1").fetchall()
        assert changed == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            admin.execute(
                "INSERT INTO metering.contract_version"
                " VALUES ('con_1', 2, 'cus_1', 'org_a', '', now(), now(), 'key_x', 0)"
            )


@pytest.mark.parametrize("table", ["contract", "contract_version"])
@pytest.mark.parametrize("statement", ["DELETE FROM metering.{}", "TRUNCATE metering.{} CASCADE"])
def test_nothing_goes_away_whoever_tries(populated: str, table: str, statement: str) -> None:
    with psycopg.connect(populated) as admin, pytest.raises(psycopg.errors.RestrictViolation):
        admin.execute(statement.format(table).encode())
