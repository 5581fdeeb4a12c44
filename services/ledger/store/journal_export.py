"""The journal for who writes it as text: its end, its transactions, and all accounts ever posted to.

Apart from the feed, which is made for speed and for machines.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row

from services.kit.db import single
from services.kit.feeds import check_log
from services.ledger.domain.journal_text import TextEntry, TextTransaction

_LOG: Final = "SELECT log_id, last_position FROM ledger.journal_log ORDER BY create_time DESC LIMIT 1"
_ENTRIES: Final = """
    SELECT p.position, t.transaction_id, t.type::text AS type, t.create_time, t.charge_id, t.correction_id,
           t.payout_id, t.external_id, t.reason, e.owner_id, e.kind::text AS kind, e.currency_code, e.amount,
           e.collected, e.earned_on, e.available_on
    FROM ledger.journal_position p
    JOIN ledger.transaction t USING (transaction_id, partition_id)
    -- A charge of nothing has none.
    LEFT JOIN ledger.entry e USING (transaction_id, partition_id)
    WHERE p.log_id = %(log_id)s AND p.position > %(after)s AND p.position <= %(until)s
    ORDER BY p.position, e.entry_number
"""
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
    ORDER BY owner_id, kind LIMIT %(limit)s
"""
_CURRENCIES: Final = """
    SELECT currency_code FROM ledger.account UNION SELECT currency_code FROM ledger.balance_delta ORDER BY 1
"""
# What else is known of a transaction, by its name in the text.
_FACTS: Final = {
    "charge-id": "charge_id",
    "correction-id": "correction_id",
    "payout-id": "payout_id",
    "external-id": "external_id",
    "reason": "reason",
}


async def find_end(connection: AsyncConnection[TupleRow], log_id: str) -> tuple[str, int]:
    """The current log and its last position. Raises InvalidArgument if another log was asked for."""
    current, last_position = await single(await connection.execute(_LOG))
    check_log(log_id, current)
    return current, last_position


async def read_transactions(
    connection: AsyncConnection[TupleRow], log_id: str, after: int, until: int
) -> list[TextTransaction]:
    """The transactions at the positions behind `after`, up to `until`, of a log."""
    cursor = connection.cursor(row_factory=namedtuple_row, binary=True)
    await cursor.execute(_ENTRIES, {"log_id": log_id, "after": after, "until": until})
    rows: list[Any] = await cursor.fetchall()
    return [_transaction(list(entries)) for _, entries in groupby(rows, key=lambda row: row.position)]


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


def _transaction(rows: Sequence[Any]) -> TextTransaction:
    first = rows[0]
    facts = ((name, getattr(first, column)) for name, column in _FACTS.items())
    return TextTransaction(
        position=first.position,
        transaction_id=first.transaction_id,
        type=first.type,
        create_time=first.create_time,
        facts=[(name, value) for name, value in facts if value],
        entries=[_entry(row) for row in rows if row.owner_id is not None],
    )


def _entry(row: Any) -> TextEntry:
    bucket = None if row.collected is None else (row.collected, row.earned_on, row.available_on)
    return TextEntry(row.owner_id, row.kind, row.currency_code, row.amount, bucket)
