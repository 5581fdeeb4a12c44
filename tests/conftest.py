"""What every test may ask for: a fresh database, an empty Valkey, and servers of its own to stop and kill.

Each pytest-xdist worker runs one PostgreSQL and one Valkey for the whole session. A test's database is a copy
of a template that holds all migrations: that takes milliseconds, and no test sees the rows of another.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode

import psycopg
import pytest
import redis
from hypothesis import settings
from psycopg import sql
from sqlalchemy import make_url

from sandbox.servers import Stores, stores

# Examples stay random, so that every run tries new ones; a failing one prints how to repeat it. No deadline:
# how long an example takes says more about the machine than about the code.
settings.register_profile("ci", derandomize=False, print_blob=True, deadline=None)
settings.load_profile("ci")

FreshDatabase = Callable[[], AbstractContextManager[str]]

_numbers = itertools.count()


@pytest.fixture(scope="session")
def session_stores() -> Iterator[Stores]:
    """The stores of this worker. Shared by its tests: whoever stops a server takes `own_stores`."""
    with stores() as found:
        if found.valkey is None:
            found = replace(found, redis_url=_own_redis_database(found.redis_url))
        yield found


@pytest.fixture(scope="session")
def template_database(session_stores: Stores) -> Iterator[str]:
    """Name of a database with every service's migrations applied, for CREATE DATABASE … TEMPLATE."""
    # Imported here: the tests of the sandbox and of pure functions run without the services.
    from services.ledger.migrations import migrate as migrate_ledger
    from services.metering.migrations import migrate as migrate_metering

    name = _fresh_name("template")
    _create_database(session_stores.database_url, name)
    url = _with_database(session_stores.database_url, name)
    migrate_ledger(url)
    migrate_metering(url)
    yield name
    _drop_database(session_stores.database_url, name)


@pytest.fixture(scope="session")
def fresh_database(session_stores: Stores, template_database: str) -> FreshDatabase:
    """Makes migrated databases for fixtures of a wider scope: `with fresh_database() as url`."""

    @contextmanager
    def fresh() -> Iterator[str]:
        name = _fresh_name("test")
        _create_database(session_stores.database_url, name, template=template_database)
        yield _with_database(session_stores.database_url, name)
        _drop_database(session_stores.database_url, name)

    return fresh


@pytest.fixture
def database_url(fresh_database: FreshDatabase) -> Iterator[str]:
    """URL of a migrated database that this test has for itself."""
    with fresh_database() as url:
        yield url


@pytest.fixture
def empty_database_url(session_stores: Stores) -> Iterator[str]:
    """URL of a database without any migration, for the tests of migrations."""
    name = _fresh_name("empty")
    _create_database(session_stores.database_url, name)
    yield _with_database(session_stores.database_url, name)
    _drop_database(session_stores.database_url, name)


@pytest.fixture
def redis_url(session_stores: Stores) -> str:
    """URL of this worker's Valkey, emptied."""
    with redis.Redis.from_url(session_stores.redis_url) as client:
        client.flushdb()
    return session_stores.redis_url


@pytest.fixture
def own_stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:
    """Embedded stores for one test alone, which may stop and kill them."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    with stores() as found:
        yield found


def _fresh_name(kind: str) -> str:
    # The process id, because workers share a server when DATABASE_URL names one.
    return f"tallystick_{kind}_{os.getpid()}_{next(_numbers)}"


def _with_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _create_database(url: str, name: str, *, template: str = "template1") -> None:
    _execute(url, sql.SQL("CREATE DATABASE {} TEMPLATE {}"), name, template)


def _drop_database(url: str, name: str) -> None:
    # FORCE: a server under test may still be closing its pool.
    _execute(url, sql.SQL("DROP DATABASE {} WITH (FORCE)"), name)


def _execute(url: str, statement: sql.SQL, *names: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.format(*map(sql.Identifier, names)))


def _own_redis_database(url: str) -> str:
    """A database of this worker's own on the server that REDIS_URL names, counted from the one it names."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    number = int(redis.Redis.from_url(url).connection_pool.connection_kwargs.get("db", 0)) + worker
    # In the query it wins over one in the path, and for a unix socket it is the only way.
    address, _, query = url.partition("?")
    own = f"{address}?{urlencode({**dict(parse_qsl(query)), 'db': number})}"
    with redis.Redis.from_url(own) as client:
        if client.dbsize():
            pytest.exit(f"database {number} of REDIS_URL holds keys, and the tests would delete them", 2)
    return own
