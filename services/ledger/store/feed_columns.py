"""The journal in the order of its positions, column by column.

PostgreSQL packs each column into one value. So nothing is made here for each row: a value is taken apart by C
into a list, which the contract takes as a whole.
"""

import struct
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from operator import itemgetter
from typing import Any, Final, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row

from services.kit.db import single
from services.kit.feeds import FeedSlice
from services.ledger.domain.accounts import TransactionType
from services.ledger.store.feed import FeedFilter, read_corrections, read_log

_READ: Final = "SELECT * FROM ledger.read_journal(%s, %s, %s, %s::text[], %s::text[], %s)"
# Micros from 1970 to 2000.
_EPOCH: Final = 946_684_800_000_000
# The days of no bucket.
NO_DAY: Final = -(2**31)
_NOTHING: Final = (0, 0)

# The columns of one kind of row, all as long as each other. Texts that are absent are empty.
Texts = Sequence[str]
Numbers = Sequence[int]
Pick = Callable[[Sequence[Any]], Sequence[Any]]


class EntryColumns(NamedTuple):
    """Entries. A bucket is whether it is collected, 0 or 1, and two days since 2000-01-01, NO_DAY if none."""

    owner_ids: Texts = ()
    kinds: Texts = ()
    currency_codes: Texts = ()
    amounts: Numbers = ()
    collected: Numbers = ()
    earned_on: Numbers = ()
    available_on: Numbers = ()
    account_versions: Numbers = ()


class ChargeColumns(NamedTuple):
    """Charges as they were posted; from `organization_ids` on, their payees. Places are of transactions."""

    transaction_places: Numbers
    customer_ids: Texts
    workflow_ids: Texts
    components: Numbers
    ordinals: Numbers
    currency_codes: Texts
    gross: Numbers
    price_version_ids: Texts
    evidence_hashes: Sequence[bytes]
    reservation_ids: Texts
    payee_counts: Numbers
    organization_ids: Texts
    agent_ids: Texts
    payee_gross: Numbers
    platform_fees: Numbers
    processing_fees: Numbers
    platform_fee_bps: Numbers
    processing_fee_bps: Numbers


class JournalColumns(NamedTuple):
    """Transactions in the order of their positions, and what belongs to them, in the same order.

    Times are micros since 1970. `corrections` are rows, by transaction id.
    """

    positions: Numbers = ()
    transaction_ids: Texts = ()
    types: Texts = ()
    partition_ids: Texts = ()
    charge_ids: Texts = ()
    correction_ids: Texts = ()
    payout_ids: Texts = ()
    external_ids: Texts = ()
    occur_times: Numbers = ()
    create_times: Numbers = ()
    reasons: Texts = ()
    actor_api_key_ids: Texts = ()
    entry_counts: Numbers = ()
    entries: EntryColumns = EntryColumns()
    charges: ChargeColumns | None = None
    corrections: Sequence[Any] = ()


class PackedColumns(NamedTuple):
    """What PostgreSQL sent, and rows of corrections.

    Taking it apart takes a while. It waits until the next slice has been asked for, so that PostgreSQL reads
    meanwhile.
    """

    row: Any = None
    corrections: Sequence[Any] = ()

    def unpack(self) -> JournalColumns:
        """In the order of positions."""
        if self.row is None:
            return JournalColumns()
        columns = _transactions(self.row)
        if self.row.sorted_charge_ids is None:
            return columns._replace(corrections=self.corrections)
        return columns._replace(charges=_charges(self.row, columns), corrections=self.corrections)


async def read_journal_columns(
    connection: AsyncConnection[TupleRow],
    log_id: str,
    after: int,
    size: int,
    filter: FeedFilter,
    *,
    include_charges: bool,
) -> FeedSlice[PackedColumns]:
    """As read_journal."""
    current, head = await read_log(connection, log_id)
    until = min(after + size, head)
    if until <= after:
        return FeedSlice(current, PackedColumns(), after, head)
    cursor = connection.cursor(binary=True, row_factory=namedtuple_row)
    await cursor.execute(
        _READ, (current, after, until, sorted(filter.types), sorted(filter.owner_ids), include_charges)
    )
    row: Any = await single(cursor)
    if row.positions is None:
        return FeedSlice(current, PackedColumns(), until, head)
    corrections: Sequence[Any] = ()
    if include_charges and TransactionType.CORRECTION in row.types:
        corrections = await read_corrections(connection, _corrected(row))
    return FeedSlice(current, PackedColumns(row, corrections), until, head)


def _corrected(row: Any) -> list[tuple[str, str]]:
    return [
        (charge_id, correction_id)
        for type, charge_id, correction_id in zip(
            _texts(row.types), _texts(row.charge_ids), row.correction_ids, strict=True
        )
        if type == TransactionType.CORRECTION
    ]


def _transactions(row: Any) -> JournalColumns:
    transaction_ids = _texts(row.transaction_ids)
    pick = _pick(_texts(row.sorted_transaction_ids), transaction_ids)
    counts, entries = _entries(row, transaction_ids)
    return JournalColumns(
        positions=_numbers("q", row.positions),
        transaction_ids=transaction_ids,
        types=pick(_texts(row.types)),
        partition_ids=pick(_texts(row.partition_ids)),
        charge_ids=pick(_texts(row.charge_ids)),
        correction_ids=pick(_nullable(row.correction_ids)),
        payout_ids=pick(_texts(row.payout_ids)),
        external_ids=pick(_nullable(row.external_ids)),
        occur_times=pick(_times(row.occur_times)),
        create_times=pick(_times(row.create_times)),
        reasons=pick(_nullable(row.reasons)),
        actor_api_key_ids=pick(_texts(row.actor_api_key_ids)),
        entry_counts=counts,
        entries=entries,
    )


def _entries(row: Any, transaction_ids: Texts) -> tuple[Numbers, EntryColumns]:
    """How many entries each transaction has, and the entries."""
    if row.entry_numbers is None:
        return [0] * len(transaction_ids), EntryColumns()
    numbers = _numbers("h", row.entry_numbers)
    starts = [place for place, number in enumerate(numbers) if number == 1]
    spans = zip(starts, [*starts[1:], len(numbers)], strict=True)
    counts, pick = _pick_spans(_texts(row.entered_transaction_ids), [*spans], transaction_ids)
    return counts, EntryColumns(
        owner_ids=pick(_texts(row.owner_ids)),
        kinds=pick(_texts(row.kinds)),
        currency_codes=pick(_texts(row.currency_codes)),
        amounts=pick(_numbers("q", row.amounts)),
        # A byte for each.
        collected=pick(row.collected),
        earned_on=pick(_numbers("i", row.earned_on)),
        available_on=pick(_numbers("i", row.available_on)),
        account_versions=pick(_numbers("q", row.account_versions)),
    )


def _charges(row: Any, columns: JournalColumns) -> ChargeColumns:
    """Those of the transactions that post one: a collection and a correction name a charge too."""
    found = _texts(row.sorted_charge_ids)
    known = frozenset(found)
    places = [
        place
        for place, (charge_id, type) in enumerate(zip(columns.charge_ids, columns.types, strict=True))
        if type == TransactionType.CHARGE and charge_id in known
    ]
    wanted = [columns.charge_ids[place] for place in places]
    pick = _pick(found, wanted)
    ends = [0]
    for count in _numbers("i", row.payee_counts):
        ends.append(ends[-1] + count)
    counts, pick_payees = _pick_spans(found, [*pairwise(ends)], wanted)
    return ChargeColumns(
        transaction_places=places,
        customer_ids=pick(_texts(row.customer_ids)),
        workflow_ids=pick(_texts(row.workflow_ids)),
        components=pick(_numbers("h", row.components)),
        ordinals=pick(_numbers("i", row.ordinals)),
        currency_codes=pick(_texts(row.charge_currency_codes)),
        gross=pick(_numbers("q", row.gross)),
        price_version_ids=pick(_texts(row.price_version_ids)),
        evidence_hashes=pick(row.evidence_hashes),
        reservation_ids=pick(_texts(row.reservation_ids)),
        payee_counts=counts,
        organization_ids=pick_payees(_texts(row.organization_ids)),
        agent_ids=pick_payees(_texts(row.agent_ids)),
        payee_gross=pick_payees(_written(row.payee_gross)),
        platform_fees=pick_payees(_written(row.platform_fees)),
        processing_fees=pick_payees(_written(row.processing_fees)),
        platform_fee_bps=pick_payees(_written(row.platform_fee_bps)),
        processing_fee_bps=pick_payees(_written(row.processing_fee_bps)),
    )


def _texts(packed: str) -> list[str]:
    return packed.split(",")


def _nullable(texts: Sequence[str | None]) -> list[str]:
    return [text or "" for text in texts]


def _numbers(form: str, packed: bytes) -> tuple[int, ...]:
    """`form` is that of one number, as the module struct names it."""
    return struct.unpack(f">{len(packed) // struct.calcsize(f'>{form}')}{form}", packed)


def _written(numbers: str) -> list[int]:
    return [*map(int, numbers.split(","))]


def _times(packed: bytes) -> list[int]:
    return [_EPOCH + time for time in _numbers("q", packed)]


def _pick(found: Texts, wanted: Texts) -> Pick:
    """What brings columns of what was found into the order that is wanted."""
    if found == wanted:
        # Mostly one writer was there at a time, and they are in order already.
        return _as_it_is
    places = {id: place for place, id in enumerate(found)}
    return itemgetter(*[places[id] for id in wanted])


def _pick_spans(found: Texts, spans: Sequence[tuple[int, int]], wanted: Texts) -> tuple[list[int], Pick]:
    """The same for the rows that belong to each of what was found, which stand from the first to before the
    second number of its span; and how many these are. What is wanted and was not found has none.
    """
    if found == wanted:
        return [end - start for start, end in spans], _as_it_is
    by_id = dict(zip(found, spans, strict=True))
    chosen = [by_id.get(id, _NOTHING) for id in wanted]
    places = [*chain.from_iterable([range(start, end) for start, end in chosen])]
    # (Of one place, itemgetter would answer no list.)
    pick = itemgetter(*places) if len(places) > 1 else _as_it_is
    return [end - start for start, end in chosen], pick


def _as_it_is(values: Sequence[Any]) -> Sequence[Any]:
    return values
