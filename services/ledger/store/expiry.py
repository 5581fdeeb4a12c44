"""What time ends: the statements of the reaper, and what it tells of leases and holds. Each call is short."""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection as Connection

from services.kit.db import single


@dataclass(frozen=True, slots=True)
class Reaped:
    """How many leases or holds ended by themselves in one currency, and what credits they gave back."""

    kind: str
    currency_code: str
    count: int
    credits: int


async def reap_leases(connection: AsyncConnection[TupleRow], limit: int) -> list[Reaped]:
    """Close up to `limit` leases whose time is over."""
    cursor = await connection.execute(
        "SELECT currency_code, reaped, credits FROM ledger.reap_leases(%s)", (limit,)
    )
    return [Reaped("lease", *row) for row in await cursor.fetchall()]


async def reap_holds(connection: AsyncConnection[TupleRow], limit: int) -> list[Reaped]:
    """End up to `limit` holds that nobody ended in time."""
    cursor = await connection.execute(
        "SELECT purpose::text, currency_code, reaped, credits FROM ledger.reap_holds(%s)", (limit,)
    )
    return [Reaped(*row) for row in await cursor.fetchall()]


async def forget_ended(connection: AsyncConnection[TupleRow], limit: int) -> int:
    """Delete up to `limit` holds, and as many released reservations, that ended long ago; how many."""
    count: int
    (count,) = await single(await connection.execute("SELECT ledger.forget_ended(%s)", (limit,)))
    return count


_HELD = text("""
    SELECT CASE WHEN draining THEN 'draining' ELSE 'lease' END AS kind, currency_code,
           sum(remaining)::bigint AS credits
    FROM ledger.credit_lease WHERE remaining > 0 GROUP BY draining, currency_code
    UNION ALL
    SELECT purpose::text, currency_code, sum(credits)::bigint
    FROM ledger.hold WHERE state = 'held' GROUP BY purpose, currency_code
""")


async def held_credits(connection: Connection) -> Sequence[tuple[str, str, int]]:
    """(lease, draining, run or outcome; currency; micros) of all credits that are held."""
    return [(row.kind, row.currency_code, row.credits) for row in await connection.execute(_HELD)]
