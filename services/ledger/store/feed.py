"""The journal in the order of its positions.

Read models read all of it, so rows come as they are, on a plain connection: objects of the domain would take
as long again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row

from services.kit.db import single
from services.kit.feeds import FeedSlice, check_log
from services.ledger.domain.accounts import TransactionType

_LOG: Final = "SELECT log_id, last_position FROM ledger.journal_log ORDER BY create_time DESC LIMIT 1"

# What a slice has thousands of comes as columns, an array of each: rows would cost the driver several times
# as much, and PostgreSQL sends a large one at once, where it sends small ones by the eight kilobytes.
#
# The range of positions is bounded before the filter is applied, so a filter that lets little through neither
# scans the whole log in one statement nor hides how far it has read.
_TRANSACTIONS: Final = """
    SELECT array_agg(position), array_agg(transaction_id), array_agg(partition_id), array_agg(type),
           array_agg(charge_id), array_agg(payout_id), array_agg(external_id), array_agg(correction_id),
           array_agg(occur_time), array_agg(create_time), array_agg(reason), array_agg(actor_api_key_id)
    FROM (
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
    ) AS found
"""
# Here and below each is looked up by itself, in a subquery whose limit keeps it so: the planner expects far
# too many rows of so many ids, and would read all of a large table for each slice of the log.
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
# One row for each payee.
_CHARGES: Final = """
    SELECT array_agg(charge_id), array_agg(customer_id), array_agg(workflow_id), array_agg(component),
           array_agg(ordinal), array_agg(currency_code), array_agg(gross), array_agg(price_version_id),
           array_agg(evidence_hash), array_agg(transaction_id), array_agg(reservation_id),
           array_agg(organization_id), array_agg(agent_id), array_agg(payee_gross),
           array_agg(platform_fee), array_agg(processing_fee), array_agg(platform_fee_bps),
           array_agg(processing_fee_bps)
    FROM (
        SELECT c.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.currency_code, c.gross,
               c.price_version_id, c.evidence_hash, c.transaction_id, c.reservation_id,
               c.organization_ids[payee] AS organization_id, c.agent_ids[payee] AS agent_id,
               c.payee_gross[payee] AS payee_gross, c.platform_fees[payee] AS platform_fee,
               c.processing_fees[payee] AS processing_fee, c.platform_fee_bps[payee] AS platform_fee_bps,
               c.processing_fee_bps[payee] AS processing_fee_bps
        FROM unnest(%b::text[]) WITH ORDINALITY AS wanted (charge_id, number)
        CROSS JOIN LATERAL (
            SELECT * FROM ledger.charge WHERE charge_id = wanted.charge_id LIMIT 1
        ) AS c
        CROSS JOIN LATERAL generate_series(1, cardinality(c.organization_ids)) AS payee
        ORDER BY wanted.number, payee
    ) AS found
"""
_CORRECTIONS: Final = """
    SELECT r.*
    FROM unnest(%b::text[], %b::text[]) WITH ORDINALITY AS wanted (charge_id, correction_id, number)
    CROSS JOIN LATERAL (
        SELECT r.charge_id, r.correction_id, r.amount, r.unpaid, r.receivable, r.credits, r.legs,
               r.transaction_id, c.organization_ids, c.currency_code
        FROM ledger.correction r
        JOIN ledger.charge c USING (charge_id, customer_id)
        WHERE r.charge_id = wanted.charge_id AND r.correction_id = wanted.correction_id
        LIMIT 1
    ) AS r
    ORDER BY wanted.number
"""


@dataclass(frozen=True, slots=True)
class FeedFilter:
    """What a reader of the feed wants to see; an empty part lets everything through."""

    types: frozenset[TransactionType] = frozenset()
    owner_ids: frozenset[str] = frozenset()


class TransactionRow(NamedTuple):
    """A transaction, and its position. What it does not have is empty."""

    position: int
    transaction_id: str
    partition_id: str
    type: str
    charge_id: str
    payout_id: str
    external_id: str
    correction_id: str
    occur_time: datetime
    create_time: datetime
    reason: str
    actor_api_key_id: str


class PayeeRow(NamedTuple):
    """A charge as it was posted, and what one of its payees gets of it."""

    charge_id: str
    customer_id: str
    workflow_id: str
    component: int
    ordinal: int
    currency_code: str
    gross: int
    price_version_id: str
    evidence_hash: bytes
    transaction_id: str
    reservation_id: str
    organization_id: str
    agent_id: str
    payee_gross: int
    platform_fee: int
    processing_fee: int
    platform_fee_bps: int
    processing_fee_bps: int


class JournalRows(NamedTuple):
    """Transactions in the order of their positions, each one's entries beside it, the payees of charges by
    charge id, corrections by transaction id.

    Entries, of which there are several in each transaction, are plain tuples: number of the transaction in
    the slice, number, owner, kind, currency, amount, bucket (collected, earned on, available on), account
    version.
    """

    transactions: Sequence[TransactionRow]
    entries: Sequence[Sequence[TupleRow]]
    charges: Mapping[str, Sequence[PayeeRow]]
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
    current, head = await read_log(connection, log_id)
    until = min(after + size, head)
    if until <= after:
        return FeedSlice(current, JournalRows((), (), {}, {}), after, head)
    found = await _columns(
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
    transactions = [TransactionRow._make(one) for one in found]
    entries = await _entries(connection, [one.transaction_id for one in transactions])
    charge_ids = [one.charge_id for one in transactions if one.type == TransactionType.CHARGE]
    charges: dict[str, list[PayeeRow]] = {}
    if include_charges and charge_ids:
        for one in map(PayeeRow._make, await _columns(connection, _CHARGES, (charge_ids,))):
            charges.setdefault(one.charge_id, []).append(one)
    corrected = [one for one in transactions if one.type == TransactionType.CORRECTION]
    corrections = {}
    if include_charges and corrected:
        found_corrections = await read_corrections(
            connection, [(one.charge_id, one.correction_id) for one in corrected]
        )
        corrections = {row.transaction_id: row for row in found_corrections}
    return FeedSlice(current, JournalRows(transactions, entries, charges, corrections), until, head)


async def read_log(connection: AsyncConnection[TupleRow], log_id: str) -> tuple[str, int]:
    """The current log, and its last position. Raises InvalidArgument if another one was asked for."""
    current, head = await single(await connection.execute(_LOG))
    check_log(log_id, current)
    return current, head


async def read_corrections(
    connection: AsyncConnection[TupleRow], keys: Sequence[tuple[str, str]]
) -> list[Any]:
    """The corrections with these charge and correction ids, in this order."""
    cursor = connection.cursor(row_factory=namedtuple_row, binary=True)
    await cursor.execute(_CORRECTIONS, tuple(map(list, zip(*keys, strict=True))))
    return await cursor.fetchall()


async def _entries(
    connection: AsyncConnection[TupleRow], transaction_ids: Sequence[str]
) -> list[list[TupleRow]]:
    found: list[list[TupleRow]] = [[] for _ in transaction_ids]
    for entry in await _columns(connection, _ENTRIES, (transaction_ids,)):
        found[entry[0] - 1].append(entry)
    return found


async def _columns(
    connection: AsyncConnection[TupleRow], statement: LiteralString, parameters: Any
) -> Iterable[TupleRow]:
    """The rows of a statement that gives them as one array for each column."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(statement, parameters)
    columns = await single(cursor)
    return () if columns[0] is None else zip(*columns, strict=True)
