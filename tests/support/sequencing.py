"""Several sequencers at once, beside those of the servers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from services.kit.db import Database

# Little at a time, so that they meet often.
_LIMIT = 7


@asynccontextmanager
async def sequencers(
    database_url: str,
    schema: str,
    sequence: Callable[[AsyncConnection[TupleRow], int], Awaitable[int]],
    *,
    count: int = 2,
) -> AsyncIterator[None]:
    """So many more sequencers of a schema, which never rest, until the end of the `async with`."""
    database = Database(database_url, role=f"{schema}_writer", schema=schema)
    await database.open()
    done = asyncio.Event()

    async def run() -> None:
        while not done.is_set():
            async with database.hot() as connection:
                await sequence(connection, _LIMIT)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(run())
            try:
                yield
            finally:
                done.set()
    finally:
        await database.close()
