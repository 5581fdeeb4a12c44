"""Reading what LedgerService.ReadJournal sends, in whichever form.

Readers of everything ask for columns, `form=JOURNAL_FORM_COLUMNS`: they cost a fraction of messages. Whoever
wants to see one transaction after the other finds them here, at the price of making the messages after all;
whoever wants all amounts, or all of an account, takes the columns as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from typing import Any, Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.common.v1.money_pb2 import Money
from tallystick.ledger.v1.account_pb2 import AccountRef
from tallystick.ledger.v1.charge_pb2 import Charge
from tallystick.ledger.v1.journal_columns_pb2 import ChargeColumns, EntryColumns, JournalColumns
from tallystick.ledger.v1.ledger_service_pb2 import ReadJournalResponse, SequencedTransaction
from tallystick.ledger.v1.transaction_pb2 import Entry, Transaction

__all__ = ["filled", "transactions"]

T = TypeVar("T")

# Of a transaction: the field, and the column that may have been left out.
_TEXTS: Final = {
    "transaction_id": "transaction_ids",
    "partition_id": "partition_ids",
    "charge_id": "charge_ids",
    "correction_id": "correction_ids",
    "payout_id": "payout_ids",
    "external_id": "external_ids",
    "reason": "reasons",
    "actor_api_key_id": "actor_api_key_ids",
}


def transactions(batch: ReadJournalResponse) -> Iterator[SequencedTransaction]:
    """The transactions of a batch, in the order of their positions: the same ones in both forms."""
    yield from batch.transactions
    yield from _from_columns(batch.columns)


def filled(column: Sequence[T], size: int, empty: T) -> Sequence[T] | repeat[T]:
    """A column with an element for each of so many: one of nothing but empty elements has been left out."""
    return column or repeat(empty, size)


def _from_columns(columns: JournalColumns) -> Iterator[SequencedTransaction]:
    size = len(columns.positions)
    entries = _entries(columns.entries)
    charges = dict(zip(columns.charges.transaction_indexes, _charges(columns.charges), strict=True))
    corrections = {one.transaction_id: one for one in columns.corrections}
    texts = zip(*(filled(getattr(columns, column), size, "") for column in _TEXTS.values()), strict=True)
    for index, (position, type, occur_time, create_time, entry_count, values) in enumerate(
        zip(
            columns.positions,
            columns.types,
            columns.occur_times_micros,
            columns.create_times_micros,
            filled(columns.entry_counts, size, 0),
            texts,
            strict=True,
        )
    ):
        transaction = Transaction(
            type=type,
            occur_time=_timestamp(occur_time),
            create_time=_timestamp(create_time),
            entries=islice(entries, entry_count),
        )
        for field, value in zip(_TEXTS, values, strict=True):
            setattr(transaction, field, value)
        for number, entry in enumerate(transaction.entries, 1):
            entry.entry_number = number
        charge = charges.get(index)
        if charge is not None:
            # What a charge has in common with its transaction is said there.
            charge.charge_id = transaction.charge_id
            charge.transaction_id = transaction.transaction_id
            charge.occur_time.CopyFrom(transaction.occur_time)
            charge.create_time.CopyFrom(transaction.create_time)
        yield SequencedTransaction(
            position=position,
            transaction=transaction,
            charge=charge,
            correction=corrections.get(transaction.transaction_id),
        )


def _entries(columns: EntryColumns) -> Iterator[Entry]:
    """The entries of all transactions, without their numbers."""
    accounts = [
        AccountRef(owner_id=owner_id, kind=kind, currency_code=currency_code)
        for owner_id, kind, currency_code in zip(
            columns.owner_ids, columns.kinds, columns.currency_codes, strict=True
        )
    ]
    size = len(columns.account_indexes)
    for account_index, amount, bucket_number, account_version in zip(
        columns.account_indexes,
        columns.amounts_micros,
        filled(columns.bucket_numbers, size, 0),
        filled(columns.account_versions, size, 0),
        strict=True,
    ):
        account = accounts[account_index]
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
        filled(columns.ordinals, size, 0),
        columns.currency_codes,
        filled(columns.gross_micros, size, 0),
        columns.price_version_ids,
        filled(columns.evidence_hashes, size, b""),
        filled(columns.reservation_ids, size, ""),
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
        filled(columns.payee_gross_micros, size, 0),
        filled(columns.platform_fees_micros, size, 0),
        filled(columns.processing_fees_micros, size, 0),
        filled(columns.platform_fees_bps, size, 0),
        filled(columns.processing_fees_bps, size, 0),
        strict=True,
    )


def _timestamp(micros: int) -> Timestamp:
    seconds, rest = divmod(micros, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)
