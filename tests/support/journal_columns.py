"""Transactions as columns, made one value after the other: obviously right, and slow."""

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.ledger.v1 import charge_pb2, journal_columns_pb2, ledger_service_pb2, transaction_pb2

# Lists that have an element for each, and whose name says the field.
_OF_TRANSACTIONS = {
    "transaction_ids": "transaction_id",
    "types": "type",
    "partition_ids": "partition_id",
    "charge_ids": "charge_id",
    "correction_ids": "correction_id",
    "payout_ids": "payout_id",
    "external_ids": "external_id",
    "reasons": "reason",
    "actor_api_key_ids": "actor_api_key_id",
}
_OF_CHARGES = {
    "customer_ids": "customer_id",
    "workflow_ids": "workflow_id",
    "components": "component",
    "ordinals": "ordinal",
    "price_version_ids": "price_version_id",
    "evidence_hashes": "evidence_hash",
    "reservation_ids": "reservation_id",
}


def fill_columns(
    columns: journal_columns_pb2.JournalColumns, records: Sequence[ledger_service_pb2.SequencedTransaction]
) -> None:
    """Say what transactions say, and their charges and corrections, in a new message."""
    found = [one.transaction for one in records]
    columns.positions.extend([one.position for one in records])
    _fill(columns, _OF_TRANSACTIONS, found)
    columns.occur_times_micros.extend([_micros(one.occur_time) for one in found])
    columns.create_times_micros.extend([_micros(one.create_time) for one in found])
    columns.entry_counts.extend([len(one.entries) for one in found])
    _fill_entries(columns.entries, [entry for one in found for entry in one.entries])
    _fill_charges(columns.charges, [one.charge for one in records if one.HasField("charge")])
    columns.charges.transaction_indexes.extend(
        [index for index, one in enumerate(records) if one.HasField("charge")]
    )
    columns.corrections.extend([one.correction for one in records if one.HasField("correction")])


def _fill_entries(
    columns: journal_columns_pb2.EntryColumns, entries: Sequence[transaction_pb2.Entry]
) -> None:
    accounts: list[tuple[Any, ...]] = []
    for entry in entries:
        account = (entry.account.owner_id, entry.account.kind, entry.account.currency_code)
        if account not in accounts:
            accounts.append(account)
        columns.account_indexes.append(accounts.index(account))
        columns.amounts_micros.append(entry.amount.amount_micros)
        columns.account_versions.append(entry.account_version)
        if entry.HasField("bucket") and entry.bucket not in columns.buckets:
            columns.buckets.append(entry.bucket)
        columns.bucket_numbers.append(
            [*columns.buckets].index(entry.bucket) + 1 if entry.HasField("bucket") else 0
        )
    for owner_id, kind, currency_code in accounts:
        columns.owner_ids.append(owner_id)
        columns.kinds.append(kind)
        columns.currency_codes.append(currency_code)


def _fill_charges(columns: journal_columns_pb2.ChargeColumns, charges: Sequence[charge_pb2.Charge]) -> None:
    _fill(columns, _OF_CHARGES, charges)
    columns.currency_codes.extend([one.gross.currency_code for one in charges])
    columns.gross_micros.extend([one.gross.amount_micros for one in charges])
    columns.payee_counts.extend([len(one.earnings) for one in charges])
    for payee in [earning for one in charges for earning in one.earnings]:
        columns.organization_ids.append(payee.organization_id)
        columns.agent_ids.append(payee.agent_id)
        columns.payee_gross_micros.append(payee.gross.amount_micros)
        columns.platform_fees_micros.append(payee.platform_fee.amount_micros)
        columns.processing_fees_micros.append(payee.processing_fee.amount_micros)
        columns.platform_fees_bps.append(payee.platform_fee_bps)
        columns.processing_fees_bps.append(payee.processing_fee_bps)


def _fill(columns: Any, names: dict[str, str], records: Iterable[Any]) -> None:
    for column, field in names.items():
        values = [getattr(one, field) for one in records]
        # A list of nothing but what is empty is left out.
        if any(values):
            getattr(columns, column).extend(values)


def _micros(time: Timestamp) -> int:
    return time.seconds * 1_000_000 + time.nanos // 1000
