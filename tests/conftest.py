"""What every test may ask for: a fresh database, an empty Valkey, and servers of its own to stop and kill.

Each pytest-xdist worker runs one PostgreSQL and one Valkey for the whole session. A test's database is as a
template that holds all migrations: that takes milliseconds, and no test sees the rows of another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode

import pytest
import redis
import structlog
from hypothesis import settings
from sqlalchemy import make_url

from sandbox.servers import Stores, stores
from tests.support import reach
from tests.support.databases import Databases, create_database, drop_database, fresh_name

# Examples stay random, so that every run tries new ones; a failing one prints how to repeat it. No deadline:
# how long an example takes says more about the machine than about the code.
settings.register_profile("ci", derandomize=False, print_blob=True, deadline=None)
settings.load_profile("ci")

# As by default, but for tracebacks that show every variable: rendering one takes longer than most tests.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.StackInfoRenderer(),
        structlog.dev.set_exc_info,
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ],
)

# Tests never talk to Stripe itself, whatever the shell that starts them is set up for.
for variable in ("STRIPE_API_KEY", "STRIPE_API_KEY_FILE"):
    os.environ.pop(variable, None)

FreshDatabase = Callable[[], AbstractContextManager[str]]


@pytest.fixture(scope="session")
def session_stores() -> Iterator[Stores]:
    """The stores of this worker. Shared by its tests: whoever stops a server takes `own_stores`."""
    with stores() as found:
        if found.valkey is None:
            found = replace(found, redis_url=_own_redis_database(found.redis_url))
        yield found


@pytest.fixture(scope="session")
def databases(session_stores: Stores) -> Iterator[Databases]:
    """Databases with every service's migrations applied."""
    # Imported here: the tests of the sandbox and of pure functions run without the services.
    from services.ledger.migrations import migrate as migrate_ledger
    from services.metering.migrations import migrate as migrate_metering
    from services.payouts.migrations import migrate as migrate_payouts
    from services.reporting.migrations import migrate as migrate_reporting

    template = fresh_name("template")
    create_database(session_stores.database_url, template)
    url = make_url(session_stores.database_url).set(database=template).render_as_string(hide_password=False)
    migrate_ledger(url)
    migrate_metering(url)
    migrate_payouts(url)
    migrate_reporting(url)
    found = Databases(session_stores.database_url, template)
    yield found
    found.close()
    drop_database(session_stores.database_url, template)


@pytest.fixture(scope="session")
def fresh_database(databases: Databases) -> FreshDatabase:
    """Gives migrated databases to fixtures of a wider scope: `with fresh_database() as url`."""
    return databases.fresh


@pytest.fixture
def database_url(fresh_database: FreshDatabase) -> Iterator[str]:
    """URL of a migrated database that this test has for itself."""
    with fresh_database() as url:
        yield url


@pytest.fixture
def empty_database_url(session_stores: Stores) -> Iterator[str]:
    """URL of a database without any migration, for the tests of migrations."""
    name = fresh_name("empty")
    create_database(session_stores.database_url, name)
    yield make_url(session_stores.database_url).set(database=name).render_as_string(hide_password=False)
    drop_database(session_stores.database_url, name)


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests of tenants counted, wherever they ran."""
    reports = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
    ]
    if found := reach.lines(reports):
        terminalreporter.section("what belongs to others")
        for line in found:
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Tell scripts/retest.py how the run ended."""
    cache: pytest.Cache | None = getattr(session.config, "cache", None)
    # Of several workers, the one that leads them.
    if cache is not None and not hasattr(session.config, "workerinput"):
        cache.set("tallystick/exit_status", int(exitstatus))
