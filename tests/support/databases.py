"""Databases for tests: copies of a template that are emptied between two tests, and not made anew.

A copy takes PostgreSQL 80 ms of CPU, emptying one a few, over a connection that stays open: a new one would
have to learn the whole schema first. A database whose schema a test has changed, or that cannot be emptied,
is dropped.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, LiteralString, TypeAlias

import psycopg
from psycopg import sql
from sqlalchemy import make_url

_Table: TypeAlias = tuple[str, str]

_numbers = itertools.count()
_GOODBYE_SECONDS: Final = 5.0
_OURS: Final = "nspname NOT IN ('pg_catalog', 'information_schema') AND nspname NOT LIKE 'pg\\_t%'"
# Whatever a test might change that is not a row.
_SCHEMA: Final = f"""
    WITH ours AS (SELECT oid, nspname, nspacl FROM pg_namespace WHERE {_OURS})
    SELECT md5(string_agg(thing, '|' ORDER BY thing)) FROM (
        SELECT concat_ws(' ', 'schema', nspname, nspacl) AS thing FROM ours
        UNION ALL
        SELECT concat_ws(' ', 'class', nspname, relname, relkind, relrowsecurity, relforcerowsecurity,
                         relacl, reloptions)
        FROM pg_class JOIN ours ON ours.oid = relnamespace
        UNION ALL
        SELECT concat_ws(' ', 'column', attrelid::regclass, attname, atttypid, attnotnull, attidentity,
                         atthasdef, attacl)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN ours ON ours.oid = relnamespace
        WHERE attnum > 0
        UNION ALL
        SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname,
                         pg_get_constraintdef(pg_constraint.oid))
        FROM pg_constraint JOIN ours ON ours.oid = connamespace
        UNION ALL
        SELECT concat_ws(' ', 'function', pg_proc.oid::regprocedure, md5(prosrc), proacl, proconfig,
                         prosecdef)
        FROM pg_proc JOIN ours ON ours.oid = pronamespace
        UNION ALL
        SELECT concat_ws(' ', 'trigger', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
        UNION ALL
        SELECT concat_ws(' ', 'policy', polrelid::regclass, polname, polcmd, polroles,
                         pg_get_expr(polqual, polrelid))
        FROM pg_policy
        UNION ALL
        SELECT concat_ws(' ', 'label', enumtypid::regtype, enumlabel) FROM pg_enum
        UNION ALL
        SELECT concat_ws(' ', 'setting', setrole, setconfig) FROM pg_db_role_setting
        JOIN pg_database ON pg_database.oid = setdatabase AND datname = current_database()
    ) AS everything
"""


@dataclass(frozen=True)
class _Content:
    """What the template holds: its schema in a word, its tables, and the rows of those that have some."""

    schema: str
    tables: tuple[_Table, ...]
    rows: Mapping[_Table, bytes]


class Databases:
    """Databases with the schema and the rows of a template, each for one test at a time."""

    def __init__(self, server_url: str, template: str) -> None:
        self._server_url = server_url
        self._template = template
        self._free: list[str] = []
        # Over these they are emptied.
        self._connections: dict[str, psycopg.Connection[tuple[object, ...]]] = {}
        with self._connect(template) as connection:
            self._content = _content(connection)

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a database that is as the template is."""
        name = self._free.pop() if self._free else self._copy()
        try:
            yield self.url(name)
        finally:
            if self._emptied(name):
                self._free.append(name)
            else:
                self._drop(name)

    def url(self, name: str) -> str:
        """The URL of a database of this server."""
        return make_url(self._server_url).set(database=name).render_as_string(hide_password=False)

    def close(self) -> None:
        """Drop those that nobody uses."""
        while self._free:
            self._drop(self._free.pop())

    def _drop(self, name: str) -> None:
        if connection := self._connections.pop(name, None):
            connection.close()
        drop_database(self._server_url, name)

    def _copy(self) -> str:
        name = fresh_name("test")
        create_database(self._server_url, name, template=self._template)
        return name

    def _connect(self, name: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.url(name), autocommit=True)

    def _emptied(self, name: str) -> bool:
        kept = self._connections.get(name)
        if kept is not None and not kept.closed:
            try:
                kept.execute("SELECT")
            except psycopg.Error:
                # A test has ended it, as when it restarts the server.
                kept.close()
        if kept is None or kept.closed:
            try:
                kept = self._connections[name] = self._connect(name)
            except psycopg.Error:
                return False
        try:
            return _all_gone(kept) and self._restored(kept)
        except psycopg.Error:
            return False

    def _restored(self, connection: psycopg.Connection[tuple[object, ...]]) -> bool:
        if _value(connection, _SCHEMA) != self._content.schema:
            return False
        # Past the triggers that keep the journal append-only, which only a superuser can.
        connection.execute("SET session_replication_role = replica")
        with connection.transaction():
            connection.execute(
                sql.SQL("; ").join(
                    sql.SQL("DELETE FROM {}").format(sql.Identifier(*table)) for table in self._content.tables
                )
            )
            for table, rows in self._content.rows.items():
                with connection.cursor().copy(_copying("FROM STDIN", table)) as copy:
                    copy.write(rows)
            connection.execute(
                "SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false)"
                " FROM pg_sequences WHERE last_value IS NOT NULL"
            )
        return True


def fresh_name(kind: str) -> str:
    """A name that no other database has."""
    # The process id, because workers share a server when DATABASE_URL names one.
    return f"tallystick_{kind}_{os.getpid()}_{next(_numbers)}"


def create_database(server_url: str, name: str, *, template: str = "template1") -> None:
    """Copy a database."""
    _execute(server_url, sql.SQL("CREATE DATABASE {} TEMPLATE {}"), name, template)


def drop_database(server_url: str, name: str) -> None:
    """Drop a database, whoever uses it."""
    # FORCE: a server under test may still be closing its pool.
    _execute(server_url, sql.SQL("DROP DATABASE {} WITH (FORCE)"), name)


def _execute(url: str, statement: sql.SQL, *names: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.format(*map(sql.Identifier, names)))


def _content(connection: psycopg.Connection[tuple[object, ...]]) -> _Content:
    found = connection.execute(
        f"SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        f" WHERE relkind = 'r' AND {_OURS} ORDER BY nspname, relname".encode()
    ).fetchall()
    tables = tuple((str(schema), str(table)) for schema, table in found)
    rows = {}
    for table in tables:
        with connection.cursor().copy(_copying("TO STDOUT", table)) as copy:
            if content := b"".join(bytes(part) for part in copy):
                rows[table] = content
    return _Content(str(_value(connection, _SCHEMA)), tables, rows)


def _copying(direction: LiteralString, table: _Table) -> sql.Composed:
    return sql.SQL("COPY {} " + direction).format(sql.Identifier(*table))


def _all_gone(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Whether nobody else is connected any more, after a push: a server under test may still be closing."""
    end = time.monotonic() + _GOODBYE_SECONDS
    while time.monotonic() < end:
        others = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        ).fetchall()
        if not others:
            return True
        time.sleep(0.005)
    return False


def _value(connection: psycopg.Connection[tuple[object, ...]], query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]
