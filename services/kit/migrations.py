"""Brings a service's schema up to date, safely when several replicas start at once.

A service keeps its migrations in `<script_dir>/versions/*.py`, in Alembic's format; the environment they run
in is here, for all services (migration_env/env.py).
"""

import hashlib
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from sqlalchemy import Connection, StaticPool, create_engine

from services.kit import log
from services.kit.db import check_identifier

_LOCK: Final = int.from_bytes(hashlib.sha256(b"tallystick.migrations").digest()[:8], signed=True)
_LOCK_WAIT: Final = timedelta(minutes=5)
_LOCK_POLL_SECONDS: Final = 0.2
_ENVIRONMENT: Final = Path(__file__).parent / "migration_env"
_log = log.get_logger()


class BindSource(Protocol):
    """As much of `alembic.op` as is needed here."""

    def get_bind(self) -> Connection:
        """The connection that the migration runs on."""


def migrate(
    url: str,
    *,
    schema: str,
    script_dir: Path,
    owner_role: str | None = None,
    lock_wait: timedelta = _LOCK_WAIT,
) -> None:
    """Create the roles and the schema where they are missing, then run every migration that has not run yet.

    Blocking: call it before the event loop runs, or in a thread. The roles are `<schema>_owner` (or
    `owner_role`), which owns the schema and runs the migrations, `<schema>_writer` and `<schema>_reader`,
    which may use it; none can log in. The user of `url` becomes a member of all three. Raises TimeoutError if
    another replica migrates for longer than `lock_wait`.
    """
    check_identifier(schema)
    owner = check_identifier(owner_role or f"{schema}_owner")
    others = [check_identifier(f"{schema}_{kind}") for kind in ("writer", "reader")]
    parameters: dict[str, Any] = {
        "connect_timeout": 5,
        "application_name": f"{schema}_migrations",
        **conninfo_to_dict(url),
    }
    with psycopg.Connection[TupleRow].connect(**parameters, autocommit=True) as connection:
        _lock(connection, lock_wait)
        for role in (owner, *others):
            _ensure_role(connection, role)
        _ensure_schema(connection, schema, owner, others)
        _become(connection, owner, schema)
        _upgrade(connection, schema, script_dir)


def versions(script_dir: Path) -> list[str]:
    """The versions that these migrations can bring a schema to, the newest first."""
    scripts = ScriptDirectory.from_config(_config(script_dir))
    return [script.revision for script in scripts.walk_revisions()]


def execute_sql_file(op: BindSource, path: Path) -> None:
    """Run a .sql file of any number of statements, word for word: ':' and '%' mean nothing in it."""
    op.get_bind().exec_driver_sql(path.read_text(), execution_options={"no_parameters": True})


def _lock(connection: psycopg.Connection[TupleRow], wait: timedelta) -> None:
    """Take the migration lock for as long as the connection lives.

    It is tried, not waited for: a statement that waits holds a snapshot, on which a CREATE INDEX CONCURRENTLY
    of the replica that has the lock would wait for ever.
    """
    deadline = time.monotonic() + wait.total_seconds()
    while not _scalar(connection, sql.SQL("SELECT pg_try_advisory_lock({})").format(_LOCK)):
        if time.monotonic() >= deadline:
            raise TimeoutError("another process holds the migration lock")
        time.sleep(_LOCK_POLL_SECONDS)


def _ensure_role(connection: psycopg.Connection[TupleRow], role: str) -> None:
    name = sql.Identifier(role)
    exists = sql.SQL("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = {})").format(role)
    if not _scalar(connection, exists):
        # Roles belong to the whole cluster, the lock to one database: another database's migration may be
        # first.
        with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(name))
    # Since PostgreSQL 16 who creates a role may give it to others, and must give it to itself too.
    privilege = "SET" if connection.info.server_version >= 160000 else "MEMBER"
    held = sql.SQL("SELECT pg_has_role(current_user, {}, {})").format(role, privilege)
    if not _scalar(connection, held):
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(name))


def _ensure_schema(
    connection: psycopg.Connection[TupleRow], schema: str, owner: str, users: list[str]
) -> None:
    if _scalar(connection, sql.SQL("SELECT to_regnamespace({}) IS NOT NULL").format(schema)):
        return
    with connection.transaction():
        connection.execute(
            sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(sql.Identifier(schema), sql.Identifier(owner))
        )
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))
        connection.execute(
            sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(
                sql.Identifier(schema), sql.SQL(", ").join(map(sql.Identifier, users))
            )
        )


def _become(connection: psycopg.Connection[TupleRow], owner: str, schema: str) -> None:
    """From here on everything is done, and owned, by the owner role."""
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(owner)))
    connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
    # A migration that waits for a table lock makes everybody after it wait: better to fail, and be started
    # again.
    connection.execute("SET lock_timeout TO '10s'")
    connection.execute("SET statement_timeout TO 0")


def _upgrade(connection: psycopg.Connection[TupleRow], schema: str, script_dir: Path) -> None:
    # Alembic runs on the very connection that holds the lock: if it breaks, migration and lock end together.
    connection.autocommit = False
    engine = create_engine("postgresql+psycopg://", creator=lambda: connection, poolclass=StaticPool)
    config = _config(script_dir)
    with engine.connect() as bound:
        config.attributes.update(connection=bound, schema=schema)
        command.upgrade(config, "head")
    # So that a server can tell whether it runs on what it was made for (health.py).
    connection.execute(
        sql.SQL("GRANT SELECT ON {} TO {}").format(
            sql.Identifier(schema, "alembic_version"), sql.Identifier(f"{schema}_reader")
        )
    )
    connection.commit()
    _log.info("schema.migrated", schema=schema)


def _config(script_dir: Path) -> Config:
    config = Config()
    # ConfigParser's syntax: a percent sign in a path is doubled.
    config.set_main_option("script_location", str(_ENVIRONMENT).replace("%", "%%"))
    config.set_main_option("version_locations", str(script_dir / "versions").replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return config


def _scalar(connection: psycopg.Connection[TupleRow], query: sql.Composed) -> object:
    row = connection.execute(query).fetchone()
    return None if row is None else row[0]
