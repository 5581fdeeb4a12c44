"""Credit lots: the statements of the steps that allocate, expire and settle them, and what they tell.

Each step is one call of a database function, which says its locks and their order.
"""

from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection as Connection

from services.kit.db import single
from services.kit.pages import Page
from services.ledger.domain.lots import CreditLot, LotSource


@dataclass(frozen=True, slots=True)
class Expired:
    """How many lots of one customer expired, in whole or in part, and how much of them."""

    currency_code: str
    lots: int
    credits: int


async def allocate(connection: AsyncConnection[TupleRow], limit: int) -> int:
    """Allocate what has come to the log since the last time, up to `limit` positions; how many."""
    return await _count(connection, "SELECT ledger.allocate_lots(%s)", limit)


async def settle_promotions(connection: AsyncConnection[TupleRow], limit: int) -> int:
    """Settle up to `limit` debits that organizations' promotional credits paid; how many."""
    return await _count(connection, "SELECT ledger.settle_promotions(%s)", limit)


async def expire(connection: AsyncConnection[TupleRow], limit: int) -> list[Expired]:
    """Expire up to `limit` lots whose time has come."""
    cursor = await connection.execute(
        "SELECT currency_code, lots, credits FROM ledger.expire_lots(%s)", (limit,)
    )
    return [Expired(*row) for row in await cursor.fetchall()]


async def refresh(connection: AsyncConnection[TupleRow], customer_id: str, limit: int) -> None:
    """Allocate what has been posted for a customer, unless that is more than `limit` entries."""
    await connection.execute("SELECT ledger.refresh_lots(%s, %s)", (customer_id, limit))


async def _count(connection: AsyncConnection[TupleRow], statement: str, limit: int) -> int:
    count: int
    (count,) = await single(await connection.execute(statement, (limit,)))
    return count


_LOTS = text("""
    SELECT customer_id, currency_code, lot_id,
           CASE WHEN source <> 'promotion' THEN source::text
                WHEN funder_id = 'platform' THEN 'platform_promotion'
                ELSE 'organization_promotion' END AS source,
           CASE WHEN funder_id = 'platform' THEN '' ELSE funder_id END AS funder_organization_id,
           amount, remaining, expired, expire_time, priority, create_time
    FROM ledger.credit_lot
    WHERE (:customer_id = '' OR customer_id = :customer_id)
      AND (NOT :open_only OR is_open)
      AND (CAST(:after_customer AS text) IS NULL
           OR (customer_id, currency_code, lot_id) > (:after_customer, :after_currency, :after_lot))
    ORDER BY customer_id, currency_code, lot_id
    LIMIT :limit
""")


async def list_lots(connection: Connection, customer_id: str, open_only: bool, page: Page) -> list[CreditLot]:
    """Lots by (customer, currency, lot), up to `page.limit`; of all customers for ""."""
    customer, currency, lot = page.after or (None, None, None)
    rows = await connection.execute(
        _LOTS,
        {
            "customer_id": customer_id,
            "open_only": open_only,
            "after_customer": customer,
            "after_currency": currency,
            "after_lot": lot,
            "limit": page.limit,
        },
    )
    return [
        CreditLot(
            customer_id=row.customer_id,
            currency_code=row.currency_code,
            lot_id=row.lot_id,
            source=LotSource(row.source),
            funder_organization_id=row.funder_organization_id,
            amount=row.amount,
            remaining=row.remaining,
            expired=row.expired,
            expire_time=row.expire_time,
            priority=row.priority,
            create_time=row.create_time,
        )
        for row in rows
    ]
