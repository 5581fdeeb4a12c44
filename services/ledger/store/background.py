"""The statements of the background workers. Each call is a short transaction by itself."""

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection as Connection

from services.kit.db import single

# The answer of sequence() where the newest log may not go on.
OTHER_CLUSTER = -1


async def fold(connection: AsyncConnection[TupleRow], limit: int) -> int:
    """Move up to `limit` balance deltas into their accounts; how many."""
    return await _count(connection, "SELECT ledger.fold(%s)", limit)


async def sequence(connection: AsyncConnection[TupleRow], limit: int) -> int:
    """Give up to `limit` transactions their position in the log; how many, or OTHER_CLUSTER."""
    return await _count(connection, "SELECT ledger.sequence(%s)", limit)


async def _count(connection: AsyncConnection[TupleRow], statement: str, limit: int) -> int:
    count: int
    (count,) = await single(await connection.execute(statement, (limit,)))
    return count


_COLLECTABLE = text("""
    SELECT o.customer_id, o.currency_code
    FROM (
        SELECT customer_id, currency_code FROM ledger.open_charge
        UNION
        -- Only chargebacks have an upper bound, which has an index.
        SELECT owner_id, currency_code FROM ledger.account
        WHERE upper_bound IS NOT NULL AND kind = 'customer_chargebacks' AND debits > credits
    ) AS o
    JOIN ledger.account a
      ON a.owner_id = o.customer_id AND a.kind = 'customer_credits' AND a.currency_code = o.currency_code
    WHERE a.credits - a.debits - a.held > 0
    ORDER BY o.customer_id, o.currency_code
    LIMIT :limit
""")


async def collectable(connection: Connection, limit: int) -> list[tuple[str, str]]:
    """(customer, currency) of customers who owe something and have credits to pay it with."""
    rows = await connection.execute(_COLLECTABLE, {"limit": limit})
    return [(row.customer_id, row.currency_code) for row in rows]
