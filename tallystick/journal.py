"""Reading what LedgerService.ReadJournal sends, in whichever form.

Readers of everything ask for columns, `form=JOURNAL_FORM_COLUMNS`: they cost a fraction of messages. Whoever
wants to see one transaction after the other finds them here, at the price of making the messages after all;
whoever wants all amounts, or all of an account, takes the columns as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.common.v1.money_pb2 import Money
from tallystick.ledger.v1.charge_pb2 import Charge
from tallystick.ledger.v1.journal_columns_pb2 import ChargeColumns, EntryColumns, JournalColumns
from tallystick.ledger.v1.ledger_service_pb2 import ReadJournalResponse, SequencedTransaction
from tallystick.ledger.v1.transaction_pb2 import TRANSACTION_TYPE_CHARGE, Entry

__all__ = ["transactions"]

T = TypeVar("T")


def transactions(batch: ReadJournalResponse) -> Iterator[SequencedTransaction]:
    """The transactions of a batch, in the order of their positions: the same ones in both forms."""
    yield from batch.transactions
    yield from _from_columns(batch.columns)


def _from_columns(columns: JournalColumns) -> Iterator[SequencedTransaction]:
    size = len(columns.positions)
    entries = _entries(columns.entries)
    charges = _charges(columns.charges)
    corrections = {one.transaction_id: one for one in columns.corrections}
    for position, id, type, partition_id, charge_id, correction_id, payout_id, external_id, *rest in zip(
        columns.positions,
        columns.transaction_ids,
        columns.types,
        _all(columns.partition_ids, size, ""),
        _all(columns.charge_ids, size, ""),
        _all(columns.correction_ids, size, ""),
        _all(columns.payout_ids, size, ""),
        _all(columns.external_ids, size, ""),
        columns.occur_times_micros,
        columns.create_times_micros,
        _all(columns.reasons, size, ""),
        _all(columns.actor_api_key_ids, size, ""),
        _all(columns.entry_counts, size, 0),
        strict=True,
    ):
        occur_time, create_time, reason, actor_api_key_id, entry_count = rest
        sequenced = SequencedTransaction(position=position, correction=corrections.get(id))
        transaction = sequenced.transaction
        transaction.transaction_id = id
        transaction.type = type
        transaction.partition_id = partition_id
        transaction.charge_id = charge_id
        transaction.correction_id = correction_id
        transaction.payout_id = payout_id
        transaction.external_id = external_id
        _set_micros(transaction.occur_time, occur_time)
        _set_micros(transaction.create_time, create_time)
        transaction.reason = reason
        transaction.actor_api_key_id = actor_api_key_id
        for number in range(1, entry_count + 1):
            entry = next(entries)
            entry.entry_number = number
            transaction.entries.append(entry)
        if type == TRANSACTION_TYPE_CHARGE and columns.HasField("charges"):
            charge = next(charges)
            charge.charge_id = charge_id
            charge.transaction_id = id
            charge.occur_time.CopyFrom(transaction.occur_time)
            charge.create_time.CopyFrom(transaction.create_time)
            sequenced.charge.CopyFrom(charge)
        yield sequenced


def _entries(columns: EntryColumns) -> Iterator[Entry]:
    """The entries of all transactions, without their numbers."""
    size = len(columns.account_indexes)
    for account_index, amount, bucket_number, account_version in zip(
        columns.account_indexes,
        columns.amounts_micros,
        _all(columns.bucket_numbers, size, 0),
        _all(columns.account_versions, size, 0),
        strict=True,
    ):
        account = columns.accounts[account_index]
        yield Entry(
            account=account,
            amount=Money(currency_code=account.currency_code, amount_micros=amount),
            bucket=columns.buckets[bucket_number - 1] if bucket_number else None,
            account_version=account_version,
        )


def _charges(columns: ChargeColumns) -> Iterator[Charge]:
    """The charges of all transactions, without what they have in common with these."""
    size = len(columns.components)
    payees = _payees(columns)
    for customer_id, workflow_id, component, ordinal, currency_code, gross, *rest in zip(
        columns.customer_ids,
        columns.workflow_ids,
        columns.components,
        _all(columns.ordinals, size, 0),
        columns.currency_codes,
        _all(columns.gross_micros, size, 0),
        columns.price_version_ids,
        _all(columns.evidence_hashes, size, b""),
        _all(columns.reservation_ids, size, ""),
        columns.payee_counts,
        strict=True,
    ):
        price_version_id, evidence_hash, reservation_id, payee_count = rest

        def money(amount: int, currency_code: str = currency_code) -> Money:
            return Money(currency_code=currency_code, amount_micros=amount)

        charge = Charge(
            customer_id=customer_id,
            workflow_id=workflow_id,
            component=component,
            ordinal=ordinal,
            gross=money(gross),
            price_version_id=price_version_id,
            evidence_hash=evidence_hash,
            reservation_id=reservation_id,
        )
        for _ in range(payee_count):
            organization_id, agent_id, part, platform_fee, processing_fee, *bps = next(payees)
            charge.earnings.add(
                organization_id=organization_id,
                agent_id=agent_id,
                gross=money(part),
                platform_fee=money(platform_fee),
                processing_fee=money(processing_fee),
                net=money(part - platform_fee - processing_fee),
                platform_fee_bps=bps[0],
                processing_fee_bps=bps[1],
            )
        yield charge


def _payees(columns: ChargeColumns) -> Iterator[tuple[Any, ...]]:
    size = len(columns.organization_ids)
    return zip(
        columns.organization_ids,
        columns.agent_ids,
        _all(columns.payee_gross_micros, size, 0),
        _all(columns.platform_fees_micros, size, 0),
        _all(columns.processing_fees_micros, size, 0),
        _all(columns.platform_fees_bps, size, 0),
        _all(columns.processing_fees_bps, size, 0),
        strict=True,
    )


def _all(column: Sequence[T], size: int, empty: T) -> Sequence[T] | repeat[T]:
    """An element for each: a column of nothing but empty ones has been left out."""
    return column or repeat(empty, size)


def _set_micros(time: Timestamp, micros: int) -> None:
    time.seconds, rest = divmod(micros, 1_000_000)
    time.nanos = rest * 1_000
