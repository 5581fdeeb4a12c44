"""What a check of the audit is, and how one is run."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

# How many differences of one check are kept: a ledger that is damaged may have millions.
SHOWN: Final = 20

Differences = Callable[[AsyncConnection], AsyncIterator[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Check:
    """A promise, and what finds the differences that break it: a query, or code where a query cannot tell.

    `code` gets the connection with the snapshot, on which it only reads, and yields one mapping per
    difference. It must stream what it reads: no table fits into memory.
    """

    name: str
    promise: str
    query: str = ""
    code: Differences | None = None

    def __post_init__(self) -> None:
        if bool(self.query) == (self.code is not None):
            raise ValueError(f"check {self.name} needs a query or code, not both")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: nothing, if it holds. Of the differences the first few."""

    check: Check
    count: int
    differences: list[dict[str, Any]]
    duration: timedelta


async def run_check(connection: AsyncConnection, check: Check) -> Finding:
    """Run one check on the snapshot of the connection's transaction, which sees all tenants."""
    started = time.perf_counter()
    count, differences = await _found(connection, check)
    return Finding(check, count, differences, timedelta(seconds=time.perf_counter() - started))


async def _found(connection: AsyncConnection, check: Check) -> tuple[int, list[dict[str, Any]]]:
    try:
        # The snapshot outlives what is rolled back to here.
        async with connection.begin_nested():
            if check.code is not None:
                return await _of_code(connection, check.code)
            return await _of_query(connection, check.query)
    except DBAPIError as error:
        if not _is_of_data(error.orig):
            raise
        # What is stored cannot even be computed with. As an error it would hide what all others find.
        return 1, [{"check_failed": str(error.orig).partition("\n")[0]}]


def _is_of_data(error: BaseException | None) -> bool:
    """Whether the data are to blame: numbers out of range, texts that are none, damaged pages."""
    sqlstate = (error.sqlstate if isinstance(error, psycopg.Error) else None) or ""
    return sqlstate.startswith(("21", "22")) or sqlstate in ("XX001", "XX002")


async def _of_query(connection: AsyncConnection, query: str) -> tuple[int, list[dict[str, Any]]]:
    # Built from the constants of the checks alone. PostgreSQL counts, and sends no more than is shown.
    counted = text(f"SELECT count(*) OVER () AS found, d.* FROM ({query}) AS d LIMIT {SHOWN}")  # noqa: S608
    rows = [dict(row) for row in (await connection.execute(counted)).mappings()]
    count = rows[0]["found"] if rows else 0
    for row in rows:
        del row["found"]
    return count, rows


async def _of_code(connection: AsyncConnection, code: Differences) -> tuple[int, list[dict[str, Any]]]:
    count, shown = 0, []
    async for difference in code(connection):
        count += 1
        if count <= SHOWN:
            shown.append(dict(difference))
    return count, shown
