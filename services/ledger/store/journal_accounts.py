"""All accounts and currencies that were ever posted to, in pages, for who writes the journal as text."""

from collections.abc import Sequence
from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

# Folding moves rows from deltas into accounts in one transaction: an account that is in one of the two tables
# stays in one of them, and pages by name miss none.
_ACCOUNTS: Final = """
    SELECT owner_id, kind FROM (
        (SELECT DISTINCT owner_id, kind::text AS kind FROM ledger.account
         WHERE owner_id > %(owner)s OR (owner_id = %(owner)s AND kind::text > %(kind)s)
         ORDER BY owner_id, kind LIMIT %(limit)s)
        UNION
        (SELECT DISTINCT owner_id, kind::text FROM ledger.balance_delta
         WHERE owner_id > %(owner)s OR (owner_id = %(owner)s AND kind::text > %(kind)s)
         ORDER BY owner_id, kind LIMIT %(limit)s)
    ) AS named
    ORDER BY owner_id, kind COLLATE "C" LIMIT %(limit)s
"""
_CURRENCIES: Final = """
    SELECT currency_code FROM ledger.account UNION SELECT currency_code FROM ledger.balance_delta ORDER BY 1
"""


async def list_accounts(
    connection: AsyncConnection[TupleRow], after: tuple[str, str], limit: int
) -> Sequence[tuple[str, str]]:
    """Up to `limit` accounts behind this one, as (owner, kind), whatever their currencies."""
    owner, kind = after
    cursor = await connection.execute(_ACCOUNTS, {"owner": owner, "kind": kind, "limit": limit})
    return [(owner_id, kind) for owner_id, kind in await cursor.fetchall()]


async def list_currencies(connection: AsyncConnection[TupleRow]) -> Sequence[str]:
    """The currencies of all accounts."""
    cursor = await connection.execute(_CURRENCIES)
    return [currency for (currency,) in await cursor.fetchall()]
