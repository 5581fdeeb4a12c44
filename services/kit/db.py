"""Connections to PostgreSQL.

Every connection runs as one database role, sees one schema, and is bounded: a lock, a statement and a
forgotten transaction all come to an end. Both pools recover by themselves when PostgreSQL comes back.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
import psycopg_pool
import sqlalchemy.exc
from prometheus_client import Counter
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

T = TypeVar("T")

# A connection in a transaction, as `Database.begin` gives it.
Connection: TypeAlias = AsyncConnection
# A plain one, as `Database.hot` gives it.
HotConnection: TypeAlias = psycopg.AsyncConnection[TupleRow]

_ATTEMPTS: Final = 5
_RETRIES = Counter("tallystick_transaction_retries", "Transactions run again.", ["sqlstate"])
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")

# A server that vanishes without a word is noticed in half a minute; what the URL says wins.
_LIBPQ_DEFAULTS: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class Database:
    """The connections of one service to its schema. Open it in the event loop that uses it.

    `role` is what its transactions run as; `pool_size` and `hot_pool_size` bound the two pools; a caller
    waits for a connection at most `wait`, and then gets an error that translates to Unavailable.
    """

    def __init__(
        self,
        url: str,
        *,
        role: str,
        schema: str,
        pool_size: int = 5,
        hot_pool_size: int = 4,
        wait: timedelta = timedelta(seconds=5),
    ) -> None:
        self._parameters = connection_parameters(url, role=role, schema=schema)
        self.engine: AsyncEngine = create_async_engine(
            "postgresql+psycopg://",
            # Both pools connect by the same libpq parameters, so that every URL libpq knows works for both.
            async_creator=self._connect,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=wait.total_seconds(),
            pool_pre_ping=True,
            pool_recycle=1800,
            use_native_hstore=False,
            # Values stay out of error texts, which end up in the log.
            hide_parameters=True,
        )
        self._hot = psycopg_pool.AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]](
            # Prepared at first use: the hot path knows only a few statements and repeats them for ever.
            kwargs={**self._parameters, "prepare_threshold": 0, "autocommit": True},
            min_size=1,
            max_size=hot_pool_size,
            timeout=wait.total_seconds(),
            # Attempts to reconnect end soon, and the next caller starts new ones; left to itself the pool
            # would come to look for a PostgreSQL that is back only every few minutes.
            reconnect_timeout=wait.total_seconds(),
            max_lifetime=1800,
            # Nothing to reset, but with this a worker of the pool gives connections back: a caller that is
            # cancelled while it waits to do so itself would lose one for good.
            reset=_nothing,
            name=f"{schema}.hot",
            open=False,
        )

        self._checking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start connecting. Does not wait: PostgreSQL may still be away."""
        await self._hot.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._hot.close()
        await self.engine.dispose()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """One transaction for ordinary queries, committed at the end of the `async with`, rolled back on an
        error.
        """
        async with self.engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def hot(self) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        """One transaction on a plain psycopg connection, for prepared calls over arrays.

        It costs a sixth of the CPU of `begin`.
        """
        async with AsyncExitStack() as stack:
            try:
                connection = await self._begin_hot(stack)
            except psycopg.OperationalError as error:
                if not _is_lost_connection(error):
                    raise
                # Lost while nobody used it, as when PostgreSQL was restarted; then so were others.
                await self._discard_lost()
                connection = await self._begin_hot(stack)
            yield connection

    @asynccontextmanager
    async def call(self) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        """A connection for one statement that is a transaction by itself: one round trip instead of three.

        Only the statement finds out that its connection was lost while nobody used it, so it belongs into
        retry_transaction() as `idempotent`.
        """
        try:
            async with self._hot.connection() as connection:
                yield connection
        except psycopg.OperationalError as error:
            if _is_lost_connection(error):
                # So that the next attempt does not get another one of the same kind.
                await self._discard_lost()
            raise

    async def _discard_lost(self) -> None:
        """Look at the idle connections, once for all who ask for it at the same time."""
        if self._checking is None:
            self._checking = asyncio.create_task(self._hot.check())
            self._checking.add_done_callback(self._checked)
        # Shielded: a check that is cancelled takes sound connections for broken, and goes on.
        await asyncio.shield(self._checking)

    def _checked(self, _: asyncio.Task[None]) -> None:
        self._checking = None

    async def _begin_hot(self, stack: AsyncExitStack) -> psycopg.AsyncConnection[TupleRow]:
        """Begin a transaction, which `stack` ends. That is also the check of the connection."""
        async with AsyncExitStack() as attempt:
            connection = await attempt.enter_async_context(self._hot.connection())
            await attempt.enter_async_context(connection.transaction())
            stack.push_async_exit(attempt.pop_all())
        return connection

    async def _connect(self) -> psycopg.AsyncConnection[TupleRow]:
        return await psycopg.AsyncConnection.connect(**self._parameters)


async def _nothing(_: psycopg.AsyncConnection[TupleRow]) -> None:
    pass


def connection_parameters(url: str, *, role: str, schema: str) -> dict[str, Any]:
    """The libpq parameters of a connection that runs as `role` and sees `schema`.

    Raises ValueError for odd names.
    """
    for name in (role, schema):
        check_identifier(name)
    given = conninfo_to_dict(url)
    settings = {
        "role": role,
        "search_path": schema,
        "timezone": "UTC",
        "default_transaction_isolation": r"read\ committed",
        "lock_timeout": "5s",
        "statement_timeout": "30s",
        "idle_in_transaction_session_timeout": "60s",
        # Requests are many and short: starting helpers for one of them costs the others more than it saves.
        "max_parallel_workers_per_gather": "0",
        # A plan for any values is wrong for the lists, whose filters and limits decide how much is read. The
        # functions of the hot path keep their plans by a setting of their own.
        "plan_cache_mode": "force_custom_plan",
    }
    options = [str(given.get("options") or ""), *(f"-c {name}={value}" for name, value in settings.items())]
    return {
        **_LIBPQ_DEFAULTS,
        "application_name": role,
        **given,
        "options": " ".join(options).strip(),
    }


async def single(cursor: psycopg.AsyncCursor[TupleRow]) -> TupleRow:
    """The row of a statement that gives one by its nature, such as a call of a function."""
    row = await cursor.fetchone()
    if row is None:
        raise LookupError("a statement that gives one row gave none")
    return row


def check_identifier(name: str) -> str:
    """`name`, if it is a plain lower-case SQL identifier. Raises ValueError otherwise."""
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"{name!r} is not a plain SQL identifier")
    return name


async def retry_transaction(attempt: Callable[[], Awaitable[T]], *, idempotent: bool = False) -> T:
    """Run `attempt`, which is one whole transaction, again if it lost a conflict, up to five times in all.

    A serialization failure and a deadlock undo everything, so they are always retried. After a lost
    connection nobody knows whether the commit took effect: only an `idempotent` attempt, whose second run
    would find the first, is retried then.
    """
    for number in range(1, _ATTEMPTS):
        try:
            return await attempt()
        except (psycopg.Error, sqlalchemy.exc.DBAPIError) as error:
            cause = _cause(error)
            if not (_is_conflict(cause) or (idempotent and _is_lost_connection(cause))):
                raise
            _RETRIES.labels(_sqlstate(cause) or "connection").inc()
        # Jitter, or those that collided would collide again.
        longest = 0.01 * 2**number
        await asyncio.sleep(random.uniform(longest / 2, longest))  # noqa: S311 - not a secret
    return await attempt()


def _cause(error: BaseException) -> BaseException:
    """What the driver raised, under whatever SQLAlchemy made of it."""
    return error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) and error.orig else error


def _sqlstate(error: BaseException) -> str | None:
    return error.sqlstate if isinstance(error, psycopg.Error) else None


def _is_conflict(error: BaseException) -> bool:
    return _sqlstate(error) in ("40001", "40P01")


def _is_lost_connection(error: BaseException) -> bool:
    # The pool's own errors say that waiting did not help; waiting again would not either.
    if not isinstance(error, psycopg.OperationalError) or isinstance(error, _POOL_ERRORS):
        return False
    state = error.sqlstate
    return state is None or state.startswith(("08", "57P"))


_POOL_ERRORS = (psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed, psycopg_pool.TooManyRequests)
