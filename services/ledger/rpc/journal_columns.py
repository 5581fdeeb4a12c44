"""ReadJournal in the form of columns: whole lists go into the message, and nothing is made for each row."""

import asyncio
from collections.abc import Sequence
from datetime import date, timedelta
from itertools import chain, count
from typing import Any, Final

from services.kit.times import set_micros
from services.ledger.rpc.journal_rows import COMPONENTS, KINDS, TYPES, fill_correction
from services.ledger.store.feed_columns import NO_DAY, ChargeColumns, EntryColumns, JournalColumns
from tallystick.ledger.v1 import correction_pb2, journal_columns_pb2

_FIRST_DAY: Final = date(2000, 1, 1)
_NO_BUCKET: Final = (0, NO_DAY, NO_DAY)


async def fill_columns(
    message: journal_columns_pb2.JournalColumns, columns: JournalColumns, *, show_actor: bool
) -> None:
    """Say what was read in a new message. Others get their turn between its parts, some milliseconds each."""
    message.positions.extend(columns.positions)
    message.transaction_ids.extend(columns.transaction_ids)
    message.types.extend(map(TYPES.__getitem__, columns.types))
    _extend(message.partition_ids, columns.partition_ids)
    _extend(message.charge_ids, columns.charge_ids)
    _extend(message.correction_ids, columns.correction_ids)
    _extend(message.payout_ids, columns.payout_ids)
    _extend(message.external_ids, columns.external_ids)
    message.occur_times_micros.extend(columns.occur_times)
    message.create_times_micros.extend(columns.create_times)
    _extend(message.reasons, columns.reasons)
    if show_actor:
        _extend(message.actor_api_key_ids, columns.actor_api_key_ids)
    _extend(message.entry_counts, columns.entry_counts)
    await asyncio.sleep(0)
    _fill_entries(message.entries, columns.entries)
    await asyncio.sleep(0)
    if columns.charges is not None:
        _fill_charges(message.charges, columns.charges)
    if columns.corrections:
        _fill_corrections(message.corrections, columns)


def _fill_entries(message: journal_columns_pb2.EntryColumns, entries: EntryColumns) -> None:
    accounts, account_indexes = _numbered(entries.owner_ids, entries.kinds, entries.currency_codes)
    message.owner_ids.extend([owner_id for owner_id, _, _ in accounts])
    message.kinds.extend([KINDS[kind] for _, kind, _ in accounts])
    message.currency_codes.extend([currency_code for _, _, currency_code in accounts])
    message.account_indexes.extend(account_indexes)
    message.amounts_micros.extend(entries.amounts)
    (_, *buckets), bucket_numbers = _numbered(
        entries.collected, entries.earned_on, entries.available_on, first=_NO_BUCKET
    )
    for collected, earned_on, available_on in buckets:
        message.buckets.add(
            collected=bool(collected), earned_on=_day(earned_on), available_on=_day(available_on)
        )
    _extend(message.bucket_numbers, bucket_numbers)
    _extend(message.account_versions, entries.account_versions)


def _fill_charges(message: journal_columns_pb2.ChargeColumns, charges: ChargeColumns) -> None:
    message.transaction_indexes.extend(charges.transaction_places)
    _extend(message.customer_ids, charges.customer_ids)
    _extend(message.workflow_ids, charges.workflow_ids)
    message.components.extend(map(COMPONENTS.__getitem__, charges.components))
    _extend(message.ordinals, charges.ordinals)
    _extend(message.currency_codes, charges.currency_codes)
    _extend(message.gross_micros, charges.gross)
    _extend(message.price_version_ids, charges.price_version_ids)
    _extend(message.evidence_hashes, charges.evidence_hashes)
    _extend(message.reservation_ids, charges.reservation_ids)
    _extend(message.payee_counts, charges.payee_counts)
    _extend(message.organization_ids, charges.organization_ids)
    _extend(message.agent_ids, charges.agent_ids)
    _extend(message.payee_gross_micros, charges.payee_gross)
    _extend(message.platform_fees_micros, charges.platform_fees)
    _extend(message.processing_fees_micros, charges.processing_fees)
    _extend(message.platform_fees_bps, charges.platform_fee_bps)
    _extend(message.processing_fees_bps, charges.processing_fee_bps)


def _fill_corrections(into: Any, columns: JournalColumns) -> None:
    places = {id: place for place, id in enumerate(columns.transaction_ids)}
    for row in columns.corrections:
        place = places[row.transaction_id]
        correction: correction_pb2.Correction = into.add()
        fill_correction(correction, row, columns.reasons[place])
        set_micros(correction.create_time, columns.create_times[place])


def _numbered(
    *columns: Sequence[Any], first: tuple[Any, ...] | None = None
) -> tuple[list[tuple[Any, ...]], list[int]]:
    """The rows that are in columns, once each, and the place of each row among those.

    `first` comes first there, whether it is in the columns or not.
    """
    # Rows are put together twice, because thousands of them that are kept are work for the garbage collector.
    once = dict.fromkeys(chain(() if first is None else (first,), zip(*columns, strict=True)))
    places = dict(zip(once, count()))
    return [*once], [*map(places.__getitem__, zip(*columns, strict=True))]


def _extend(into: Any, values: Sequence[Any]) -> None:
    """A list whose elements are all empty is left out."""
    if any(values):
        into.extend(values)


def _day(days: int) -> str:
    return (_FIRST_DAY + timedelta(days)).isoformat()
