"""The journal in the order of its positions.

Read models read all of it, so rows come as they are, on a plain connection: objects made of them first would
take as long again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row

from services.kit.db import single
from services.kit.feeds import FeedSlice, check_log
from services.ledger.domain.accounts import TransactionType

_LOG: Final = "SELECT log_id, last_position FROM ledger.journal_log ORDER BY create_time DESC LIMIT 1"

# The range of positions is bounded before the filter is applied, so a filter that lets little through neither
# scans the whole log in one statement nor hides how far it has read.
_TRANSACTIONS: Final = """
    SELECT p.position, t.transaction_id, t.partition_id, t.type::text AS type,
           coalesce(t.charge_id, '') AS charge_id, coalesce(t.payout_id, '') AS payout_id,
           coalesce(t.external_id, '') AS external_id, coalesce(t.correction_id, '') AS correction_id,
           t.occur_time, t.create_time, t.reason, t.actor_api_key_id
    FROM ledger.journal_position p
    JOIN ledger.transaction t USING (transaction_id, partition_id)
    WHERE p.log_id = %(log_id)s AND p.position > %(after)s AND p.position <= %(until)s
      AND (%(all_types)s OR t.type::text = ANY (%(types)s::text[]))
      AND (%(all_owners)s OR EXISTS (
          SELECT FROM ledger.entry e
          WHERE e.transaction_id = t.transaction_id AND e.owner_id = ANY (%(owner_ids)s::text[])))
    ORDER BY p.position
"""
# Here and below each is looked up by itself, in a subquery whose limit keeps it so: the planner expects far
# too many rows of so many ids, and would read all of a large table for each slice of the log.
#
# Entries come as columns: a slice has thousands, and rows would cost the driver several times as much.
_ENTRIES: Final = """
    SELECT array_agg(number), array_agg(entry_number), array_agg(owner_id), array_agg(kind),
           array_agg(currency_code), array_agg(amount), array_agg(collected), array_agg(earned_on),
           array_agg(available_on), array_agg(account_version)
    FROM (
        SELECT wanted.number::integer AS number, e.entry_number, e.owner_id, e.kind::text, e.currency_code,
               e.amount, e.collected, e.earned_on::text, e.available_on::text, e.account_version
        FROM unnest(%b::text[]) WITH ORDINALITY AS wanted (transaction_id, number)
        CROSS JOIN LATERAL (
            SELECT * FROM ledger.entry WHERE transaction_id = wanted.transaction_id LIMIT 1000000
        ) AS e
        ORDER BY number, entry_number
    ) AS found
"""
_CHARGES: Final = """
    SELECT c.*
    FROM unnest(%b::text[]) AS wanted (charge_id)
    CROSS JOIN LATERAL (
        SELECT charge_id, customer_id, workflow_id, component, ordinal, currency_code, gross,
               organization_ids, agent_ids, payee_gross, platform_fees, processing_fees, platform_fee_bps,
               processing_fee_bps, price_version_id, evidence_hash, transaction_id, reservation_id
        FROM ledger.charge
        WHERE charge_id = wanted.charge_id
        LIMIT 1
    ) AS c
"""
_CORRECTIONS: Final = """
    SELECT r.*
    FROM unnest(%b::text[], %b::text[]) AS wanted (charge_id, correction_id)
    CROSS JOIN LATERAL (
        SELECT r.charge_id, r.correction_id, r.amount, r.unpaid, r.receivable, r.credits, r.legs,
               r.transaction_id, c.organization_ids, c.currency_code
        FROM ledger.correction r
        JOIN ledger.charge c USING (charge_id, customer_id)
        WHERE r.charge_id = wanted.charge_id AND r.correction_id = wanted.correction_id
        LIMIT 1
    ) AS r
"""


@dataclass(frozen=True, slots=True)
class FeedFilter:
    """What a reader of the feed wants to see; an empty part lets everything through."""

    types: frozenset[TransactionType] = frozenset()
    owner_ids: frozenset[str] = frozenset()


class JournalRows(NamedTuple):
    """Transactions in the order of their positions, each one's entries beside it, charges by charge id,
    corrections by transaction id.

    Entries, of which there are several in each transaction, are plain tuples: number, owner, kind, currency,
    amount, bucket (collected, earned on, available on), account version.
    """

    transactions: Sequence[Any]
    entries: Sequence[Sequence[TupleRow]]
    charges: Mapping[str, Any]
    corrections: Mapping[str, Any]


async def read_journal(
    connection: AsyncConnection[TupleRow],
    log_id: str,
    after: int,
    size: int,
    filter: FeedFilter,
    *,
    include_charges: bool,
) -> FeedSlice[JournalRows]:
    """The transactions of the next `size` positions behind `after` that pass the filter.

    With charges as they were posted, and corrections, if they are included.
    """
    current, head = await single(await connection.execute(_LOG))
    check_log(log_id, current)
    until = min(after + size, head)
    if until <= after:
        return FeedSlice(current, JournalRows((), (), {}, {}), after, head)
    transactions = await _rows(
        connection,
        _TRANSACTIONS,
        {
            "log_id": current,
            "after": after,
            "until": until,
            "all_types": not filter.types,
            "types": sorted(filter.types),
            "all_owners": not filter.owner_ids,
            "owner_ids": sorted(filter.owner_ids),
        },
    )
    entries = await _entries(connection, [one.transaction_id for one in transactions])
    charge_ids = [one.charge_id for one in transactions if one.type == TransactionType.CHARGE]
    charges = (
        {row.charge_id: row for row in await _rows(connection, _CHARGES, (charge_ids,))}
        if include_charges and charge_ids
        else {}
    )
    corrected = [one for one in transactions if one.type == TransactionType.CORRECTION]
    corrections = {}
    if include_charges and corrected:
        keys = ([one.charge_id for one in corrected], [one.correction_id for one in corrected])
        corrections = {row.transaction_id: row for row in await _rows(connection, _CORRECTIONS, keys)}
    return FeedSlice(current, JournalRows(transactions, entries, charges, corrections), until, head)


async def _rows(
    connection: AsyncConnection[TupleRow], statement: LiteralString, parameters: Any
) -> list[Any]:
    cursor = connection.cursor(row_factory=namedtuple_row, binary=True)
    await cursor.execute(statement, parameters)
    return await cursor.fetchall()


async def _entries(
    connection: AsyncConnection[TupleRow], transaction_ids: Sequence[str]
) -> list[list[TupleRow]]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(_ENTRIES, (transaction_ids,))
    numbers, *columns = await single(cursor)
    found: list[list[TupleRow]] = [[] for _ in transaction_ids]
    if numbers is not None:
        for number, entry in zip(numbers, zip(*columns, strict=True), strict=True):
            found[number - 1].append(entry)
    return found
