"""Migrations, against a real PostgreSQL."""

import asyncio
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from services.kit import migrations
from services.kit.migrations import migrate

FIRST = """
from alembic import op
revision, down_revision = "0001", None

def upgrade():
    op.execute("CREATE TABLE thing (id int PRIMARY KEY)")
"""

SECOND = """
from pathlib import Path
from alembic import op
from services.kit.migrations import execute_sql_file
revision, down_revision = "0002", "0001"

def upgrade():
    execute_sql_file(op, Path(__file__).parent.parent / "functions.sql")
"""

# Everything that a careless runner would take for a parameter or a separator.
FUNCTIONS = """
-- 100% of :names; %s and %(name)s
CREATE FUNCTION percent(x int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE found text := 'a:b; %';
BEGIN
    RETURN format('%s of %I', x % 7, 'q') || found || ' :x'::text;
END $$;
INSERT INTO thing VALUES (1);
INSERT INTO thing VALUES (2);
"""

BROKEN = """
from alembic import op
revision, down_revision = "0003", "0002"

def upgrade():
    op.execute("CREATE TABLE half (id int)")
    op.execute("SELECT 1 / 0")
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    # A percent sign in the path too: Alembic's configuration would take it for an interpolation.
    folder = tmp_path / "100% mine"
    (folder / "versions").mkdir(parents=True)
    (folder / "versions" / "0001_first.py").write_text(FIRST)
    (folder / "versions" / "0002_second.py").write_text(SECOND)
    (folder / "functions.sql").write_text(FUNCTIONS)
    return folder


@pytest.fixture
def schema(empty_database_url: str) -> Iterator[str]:
    """A name nobody has: roles belong to the whole cluster, which tests share."""
    name = f"kit_{secrets.token_hex(4)}"
    yield name
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        for kind in ("owner", "writer", "reader"):
            role = f"{name}_{kind}"
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                connection.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


def version(url: str, schema: str) -> object:
    return query(url, f"SELECT version_num FROM {schema}.alembic_version")


def test_from_nothing_to_the_newest(empty_database_url: str, schema: str, scripts: Path) -> None:
    migrate(empty_database_url, schema=schema, script_dir=scripts)
    assert version(empty_database_url, schema) == [("0002",)]
    assert query(empty_database_url, f"SELECT {schema}.percent(10)") == [("3 of qa:b; % :x",)]
    assert query(empty_database_url, f"SELECT id FROM {schema}.thing ORDER BY id") == [(1,), (2,)]


def test_roles_and_owners(empty_database_url: str, schema: str, scripts: Path) -> None:
    migrate(empty_database_url, schema=schema, script_dir=scripts)
    roles = query(
        empty_database_url,
        f"SELECT rolname, rolcanlogin, has_schema_privilege(rolname, '{schema}', 'USAGE'),"
        f" has_schema_privilege(rolname, '{schema}', 'CREATE')"
        f" FROM pg_roles WHERE rolname LIKE '{schema}\\_%' ORDER BY 1",
    )
    assert roles == [
        (f"{schema}_owner", False, True, True),
        (f"{schema}_reader", False, True, False),
        (f"{schema}_writer", False, True, False),
    ]
    owners = query(
        empty_database_url,
        f"SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = '{schema}'"
        f" UNION SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = '{schema}'"
        f" UNION SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = '{schema}'::regnamespace",
    )
    assert owners == [(f"{schema}_owner",)]
    assert query(empty_database_url, "SELECT FROM pg_tables WHERE schemaname = 'public'") == []


def test_a_second_run_changes_nothing(empty_database_url: str, schema: str, scripts: Path) -> None:
    migrate(empty_database_url, schema=schema, script_dir=scripts)
    migrate(empty_database_url, schema=schema, script_dir=scripts)
    assert query(empty_database_url, f"SELECT count(*) FROM {schema}.thing") == [(2,)]


async def test_replicas_that_start_at_once_migrate_once(
    empty_database_url: str, schema: str, scripts: Path
) -> None:
    await asyncio.gather(
        *(asyncio.to_thread(migrate, empty_database_url, schema=schema, script_dir=scripts) for _ in range(4))
    )
    assert version(empty_database_url, schema) == [("0002",)]
    assert query(empty_database_url, f"SELECT count(*) FROM {schema}.thing") == [(2,)]


def test_a_broken_migration_leaves_the_one_before_and_can_be_mended(
    empty_database_url: str, schema: str, scripts: Path
) -> None:
    broken = scripts / "versions" / "0003_broken.py"
    broken.write_text(BROKEN)
    with pytest.raises(Exception, match="division by zero"):
        migrate(empty_database_url, schema=schema, script_dir=scripts)
    assert version(empty_database_url, schema) == [("0002",)]
    assert query(empty_database_url, f"SELECT to_regclass('{schema}.half')") == [(None,)]
    # Of another length: Python tells by that, and by the second, that what it compiled before is out of date.
    broken.write_text(BROKEN.replace("1 / 0", "1"))
    migrate(empty_database_url, schema=schema, script_dir=scripts)
    assert version(empty_database_url, schema) == [("0003",)]


def test_waiting_for_another_replica_is_bounded(empty_database_url: str, schema: str, scripts: Path) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrations._LOCK])
        with pytest.raises(TimeoutError, match="migration lock"):
            migrate(empty_database_url, schema=schema, script_dir=scripts, lock_wait=timedelta(0))
    assert query(empty_database_url, f"SELECT to_regnamespace('{schema}')") == [(None,)]


def test_no_superuser_is_needed(empty_database_url: str, schema: str, scripts: Path) -> None:
    login = f"{schema}_login"
    parameters: dict[str, Any] = conninfo_to_dict(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {login} LOGIN CREATEROLE PASSWORD 'for-the-test'")
        connection.execute(f"GRANT CREATE ON DATABASE {parameters['dbname']} TO {login}")
    try:
        url = make_conninfo(**{**parameters, "user": login, "password": "for-the-test"})
        for _ in range(2):
            migrate(url, schema=schema, script_dir=scripts)
        assert version(empty_database_url, schema) == [("0002",)]
        # It may now be what the service is.
        with psycopg.connect(url, options=f"-c role={schema}_writer") as connection:
            assert connection.execute("SELECT current_user").fetchone() == (f"{schema}_writer",)
    finally:
        with psycopg.connect(empty_database_url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {schema}_owner, {schema}_writer, {schema}_reader CASCADE")
            connection.execute(f"DROP OWNED BY {login} CASCADE")
            connection.execute(f"DROP ROLE {schema}_owner, {schema}_writer, {schema}_reader, {login}")


@pytest.mark.parametrize("name", ["Ledger", "a-b", ""])
def test_odd_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a plain SQL identifier"):
        migrate("postgresql:///unused", schema=name, script_dir=tmp_path)
