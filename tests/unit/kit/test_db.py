"""Connections, against a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import psycopg_pool
import pytest
import sqlalchemy.exc
from sqlalchemy import text

from sandbox.servers import Stores
from services.kit.db import Database, connection_parameters, retry_transaction
from services.kit.errors import Aborted, Internal, Unavailable
from services.kit.status import translate

ROLE = "kit_test_writer"
SCHEMA = "kit_test"


def prepare(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone()
        if found is None:
            try:
                connection.execute(f"CREATE ROLE {ROLE} NOLOGIN")
            except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                # Another test process made it in between.
                assert connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone()
        connection.execute(f"CREATE SCHEMA {SCHEMA}; GRANT USAGE ON SCHEMA {SCHEMA} TO {ROLE}")
        connection.execute(f"CREATE TABLE {SCHEMA}.account (id int PRIMARY KEY, balance bigint NOT NULL)")
        connection.execute(f"GRANT SELECT, INSERT, UPDATE ON {SCHEMA}.account TO {ROLE}")
        connection.execute(f"INSERT INTO {SCHEMA}.account VALUES (1, 100), (2, 100)")
    return url


@asynccontextmanager
async def opened(url: str, **sizes: Any) -> AsyncIterator[Database]:
    database = Database(url, role=ROLE, schema=SCHEMA, **sizes)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def balance(database: Database, account: int) -> int:
    async with database.begin() as connection:
        found = await connection.scalar(text("SELECT balance FROM account WHERE id = :id"), {"id": account})
    assert isinstance(found, int)
    return found


# Both ways to a transaction, so that one test covers both.
Way = Callable[[Database], AbstractAsyncContextManager[Any]]


async def run(connection: Any, statement: str) -> Any:
    """Execute on either kind of connection; the first column of the first row, if there is one."""
    if isinstance(connection, psycopg.AsyncConnection):
        cursor = await connection.execute(statement.encode())
        row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None
    result = await connection.exec_driver_sql(statement)
    return result.scalar() if result.returns_rows else None


both = pytest.mark.parametrize("way", [Database.begin, Database.hot], ids=["begin", "hot"])
every = pytest.mark.parametrize(
    "way", [Database.begin, Database.hot, Database.call], ids=["begin", "hot", "call"]
)


@every
async def test_every_connection_is_set_up(way: Way, empty_database_url: str) -> None:
    async with opened(prepare(empty_database_url)) as database, way(database) as connection:
        settings = {
            name: await run(connection, f"SELECT current_setting('{name}')")
            for name in (
                "search_path",
                "timezone",
                "lock_timeout",
                "statement_timeout",
                "idle_in_transaction_session_timeout",
                "transaction_isolation",
                "application_name",
            )
        }
        settings["user"] = await run(connection, "SELECT current_user")
        # A reset goes back to the role, not behind it.
        await run(connection, "RESET ROLE")
        assert await run(connection, "SELECT current_user") == ROLE
    assert settings == {
        "search_path": SCHEMA,
        "timezone": "UTC",
        "lock_timeout": "5s",
        "statement_timeout": "30s",
        "idle_in_transaction_session_timeout": "1min",
        "transaction_isolation": "read committed",
        "application_name": ROLE,
        "user": ROLE,
    }


@every
async def test_the_role_bounds_what_is_allowed(way: Way, empty_database_url: str) -> None:
    async with opened(prepare(empty_database_url)) as database:
        with pytest.raises((psycopg.errors.InsufficientPrivilege, sqlalchemy.exc.ProgrammingError)) as raised:
            async with way(database) as connection:
                await run(connection, "DELETE FROM account")
        assert type(translate(raised.value)) is Internal


async def test_values_stay_out_of_error_texts(empty_database_url: str) -> None:
    async with opened(prepare(empty_database_url)) as database, database.engine.connect() as connection:
        with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
            await connection.execute(text("SELECT 1 / (length(:value) - 6)"), {"value": "secret"})
    assert "secret" not in str(raised.value)


@both
async def test_a_transaction_commits_or_leaves_nothing(way: Way, empty_database_url: str) -> None:
    async with opened(prepare(empty_database_url)) as database:
        async with way(database) as connection:
            await run(connection, "UPDATE account SET balance = 90 WHERE id = 1")

        async def fail() -> None:
            async with way(database) as connection:
                await run(connection, "UPDATE account SET balance = 80 WHERE id = 1")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await balance(database, 1) == 90


@every
async def test_waiting_for_a_connection_is_bounded(way: Way, empty_database_url: str) -> None:
    sizes = {"pool_size": 1, "hot_pool_size": 1, "wait": timedelta(milliseconds=100)}
    async with opened(prepare(empty_database_url), **sizes) as database:

        async def read() -> None:
            async with way(database) as connection:
                await run(connection, "SELECT 1")

        # The first connection takes as long as it takes.
        async with asyncio.timeout(30):
            while await outcome(read) is not None:
                pass
        async with way(database):
            with pytest.raises((psycopg_pool.PoolTimeout, sqlalchemy.exc.TimeoutError)) as raised:
                await read()
        answer = translate(raised.value)
        assert type(answer) is Unavailable
        assert answer.retry_after is not None


async def outcome(attempt: Callable[[], Any]) -> Exception | None:
    try:
        await attempt()
    except (psycopg.Error, sqlalchemy.exc.SQLAlchemyError) as error:
        return error
    return None


@both
async def test_it_recovers_by_itself_when_postgresql_comes_back(way: Way, own_stores: Stores) -> None:
    assert own_stores.postgres is not None
    async with opened(prepare(own_stores.database_url), wait=timedelta(seconds=2)) as database:

        async def read() -> None:
            async with way(database) as connection:
                assert await run(connection, "SELECT balance FROM account WHERE id = 1") == 100

        assert await outcome(read) is None
        # Restarted between two calls: the second does not see it.
        await asyncio.to_thread(own_stores.postgres.stop)
        await asyncio.to_thread(own_stores.postgres.start)
        assert await outcome(read) is None
        # Away for some calls: they fail as Unavailable.
        await asyncio.to_thread(own_stores.postgres.stop)
        for _ in range(2):
            error = await outcome(read)
            assert error is not None
            assert type(translate(error)) is Unavailable
        await asyncio.to_thread(own_stores.postgres.start)
        async with asyncio.timeout(30):
            while await outcome(read) is not None:
                pass


async def test_a_service_may_start_before_postgresql(own_stores: Stores) -> None:
    assert own_stores.postgres is not None
    url = prepare(own_stores.database_url)
    await asyncio.to_thread(own_stores.postgres.stop)
    async with opened(url, wait=timedelta(seconds=1)) as database:

        async def read() -> None:
            async with database.hot() as connection:
                await run(connection, "SELECT 1")

        assert await outcome(read) is not None
        await asyncio.to_thread(own_stores.postgres.start)
        async with asyncio.timeout(30):
            while await outcome(read) is not None:
                pass


async def test_a_deadlock_is_undone_and_run_again(empty_database_url: str) -> None:
    async with opened(prepare(empty_database_url)) as database:
        both_hold_one = asyncio.Barrier(2)
        attempts = 0

        async def transfer(source: int, target: int) -> None:
            nonlocal attempts
            attempts += 1
            async with database.hot() as connection:
                await run(connection, f"UPDATE account SET balance = balance - 10 WHERE id = {source}")
                if attempts <= 2:
                    await both_hold_one.wait()
                await run(connection, f"UPDATE account SET balance = balance + 10 WHERE id = {target}")

        async with asyncio.timeout(30):
            await asyncio.gather(
                retry_transaction(lambda: transfer(1, 2)), retry_transaction(lambda: transfer(2, 1))
            )
        assert attempts == 3
        assert (await balance(database, 1), await balance(database, 2)) == (100, 100)


class Failing:
    """A transaction that fails with these errors, one after the other, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.attempts = 0

    async def __call__(self) -> str:
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def wrapped(error: Exception) -> sqlalchemy.exc.DBAPIError:
    return sqlalchemy.exc.DBAPIError("", {}, error)


CONFLICTS = [
    psycopg.errors.SerializationFailure(),
    psycopg.errors.DeadlockDetected(),
    wrapped(psycopg.errors.SerializationFailure()),
    wrapped(psycopg.errors.DeadlockDetected()),
]
LOST = [
    psycopg.OperationalError("the connection is closed"),
    psycopg.errors.AdminShutdown(),
    wrapped(psycopg.OperationalError("server closed the connection unexpectedly")),
]


@pytest.mark.parametrize("idempotent", [True, False])
async def test_conflicts_are_always_retried(idempotent: bool) -> None:
    failing = Failing(*CONFLICTS)
    assert await retry_transaction(failing, idempotent=idempotent) == "done"
    assert failing.attempts == 5


async def test_retries_come_to_an_end() -> None:
    failing = Failing(*(psycopg.errors.SerializationFailure() for _ in range(9)))
    with pytest.raises(psycopg.errors.SerializationFailure) as raised:
        await retry_transaction(failing)
    assert failing.attempts == 5
    assert type(translate(raised.value)) is Aborted


@pytest.mark.parametrize("error", LOST)
async def test_a_lost_connection_is_retried_only_if_that_is_harmless(error: Exception) -> None:
    harmless = Failing(error)
    assert await retry_transaction(harmless, idempotent=True) == "done"
    assert harmless.attempts == 2
    unknown = Failing(error)
    with pytest.raises(type(error)):
        await retry_transaction(unknown)
    assert unknown.attempts == 1


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.UniqueViolation(),
        psycopg.errors.QueryCanceled(),
        psycopg.errors.LockNotAvailable(),
        wrapped(psycopg.errors.CheckViolation()),
        ValueError(),
        asyncio.CancelledError(),
    ],
)
async def test_anything_else_is_not_retried(error: Exception) -> None:
    failing = Failing(error)
    with pytest.raises(type(error)):
        await retry_transaction(failing, idempotent=True)
    assert failing.attempts == 1


async def test_the_end_of_a_backend_is_retried_over_a_new_connection(empty_database_url: str) -> None:
    async with opened(prepare(empty_database_url), pool_size=1, hot_pool_size=1) as database:
        attempts = 0

        async def attempt() -> int:
            nonlocal attempts
            attempts += 1
            async with database.hot() as connection:
                if attempts == 1:
                    with psycopg.connect(empty_database_url, autocommit=True) as other:
                        other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
                found: int = await run(connection, "SELECT balance FROM account WHERE id = 1")
                return found

        async with asyncio.timeout(30):
            assert await retry_transaction(attempt, idempotent=True) == 100
        assert attempts == 2


async def test_a_statement_of_its_own_survives_a_restart_when_it_is_retried(own_stores: Stores) -> None:
    assert own_stores.postgres is not None
    async with opened(prepare(own_stores.database_url), hot_pool_size=4) as database:

        async def read() -> int:
            async with database.call() as connection:
                found: int = await run(connection, "SELECT balance FROM account WHERE id = 1")
                return found

        async def several() -> list[int]:
            return await asyncio.gather(*(retry_transaction(read, idempotent=True) for _ in range(8)))

        assert await several() == [100] * 8
        # Every connection of the pool is lost; no caller sees it.
        await asyncio.to_thread(own_stores.postgres.stop)
        await asyncio.to_thread(own_stores.postgres.start)
        async with asyncio.timeout(30):
            assert await several() == [100] * 8


async def test_a_statement_of_its_own_is_committed_when_it_ends(empty_database_url: str) -> None:
    async with opened(prepare(empty_database_url)) as database, database.call() as connection:
        await run(connection, "UPDATE account SET balance = 90 WHERE id = 1")
        assert await balance(database, 1) == 90


def test_what_the_url_says_is_kept() -> None:
    url = "postgresql://u@h:5433/d?connect_timeout=1&application_name=mine&options=-c%20work_mem%3D8MB"
    parameters = connection_parameters(url, role=ROLE, schema=SCHEMA)
    assert (parameters["host"], parameters["port"], parameters["connect_timeout"]) == ("h", "5433", "1")
    assert parameters["application_name"] == "mine"
    assert parameters["options"].startswith(f"-c work_mem=8MB -c role={ROLE} -c search_path={SCHEMA} ")


@pytest.mark.parametrize("name", ["", "Ledger", "a b", "a;b", "1a", "a" * 64, "a\n"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a plain SQL identifier"):
        connection_parameters("postgresql:///x", role=name, schema=SCHEMA)
    with pytest.raises(ValueError, match="not a plain SQL identifier"):
        connection_parameters("postgresql:///x", role=ROLE, schema=name)


@pytest.mark.parametrize("way", [Database.hot, Database.call], ids=["hot", "call"])
async def test_callers_that_are_cancelled_lose_no_connection(way: Way, empty_database_url: str) -> None:
    async with opened(prepare(empty_database_url), hot_pool_size=2) as database:

        async def write() -> None:
            async with way(database) as connection:
                await run(connection, "UPDATE account SET balance = balance + 0 WHERE id = 1")

        async def caller(number: int) -> None:
            for turn in range(60):
                task = asyncio.create_task(write())
                if (turn + number) % 3:
                    # At some step of it, another one each time.
                    for _ in range(turn):
                        await asyncio.sleep(0)
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        await asyncio.gather(*(caller(number) for number in range(8)))

        # Both are still there: each is waited for by the other.
        meeting = asyncio.Barrier(2)

        async def meet() -> None:
            async with way(database):
                await meeting.wait()

        async with asyncio.timeout(30):
            await asyncio.gather(meet(), meet())


@pytest.mark.parametrize("way", [Database.hot, Database.call], ids=["hot", "call"])
async def test_a_caller_is_cancelled_also_while_lost_connections_are_looked_for(
    way: Way, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(prepare(empty_database_url), hot_pool_size=2) as database:
        looking, wrote = asyncio.Event(), False

        async def look() -> None:
            looking.set()
            await asyncio.sleep(0.05)

        async def write() -> None:
            nonlocal wrote
            async with way(database) as connection:
                await run(connection, "UPDATE account SET balance = 0 WHERE id = 1")
            wrote = True

        async with asyncio.timeout(30):
            await database._hot.wait()
        for connection in database._hot._pool:
            await connection.close()
        monkeypatch.setattr(database._hot, "check", look)
        task = asyncio.create_task(write())
        async with asyncio.timeout(30):
            await looking.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not wrote
