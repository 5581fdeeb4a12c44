"""ReadJournal in the form of transactions.

Messages are filled in place, from the rows: made one by one and put together they would take four times as
long.
"""

from collections.abc import Sequence
from typing import Any

from services.kit.feeds import in_turns
from services.kit.times import set_timestamp
from services.ledger.rpc import convert
from services.ledger.store.feed import JournalRows, PayeeRow, TransactionRow
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import charge_pb2, correction_pb2, transaction_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb

# By the names in rows.
TYPES = {type.value: number for type, number in convert.TYPE_TO_PROTO.items()}
KINDS = {kind.value: number for kind, number in convert.KIND_TO_PROTO.items()}
COMPONENTS = {component.value: number for component, number in convert.COMPONENT_TO_PROTO.items()}


async def fill_transactions(response: pb.ReadJournalResponse, rows: JournalRows, *, show_actor: bool) -> None:
    """Say what was read in a new message."""
    async for some in in_turns([*zip(rows.transactions, rows.entries, strict=True)]):
        for row, entries in some:
            _fill_sequenced(response.transactions.add(), row, entries, rows, show_actor=show_actor)


def _fill_sequenced(
    sequenced: pb.SequencedTransaction,
    row: TransactionRow,
    entries: Sequence[Sequence[Any]],
    rows: JournalRows,
    *,
    show_actor: bool,
) -> None:
    sequenced.position = row.position
    transaction = sequenced.transaction
    _fill_transaction(transaction, row, entries)
    if show_actor:
        transaction.actor_api_key_id = row.actor_api_key_id
    # A collection and a correction name a charge too: theirs came with the transaction that posted it.
    payees = rows.charges.get(row.charge_id)
    if payees is not None and payees[0].transaction_id == row.transaction_id:
        _fill_charge(sequenced.charge, payees, transaction)
    correction = rows.corrections.get(row.transaction_id)
    if correction is not None:
        fill_correction(sequenced.correction, correction, transaction.reason)
        sequenced.correction.create_time.CopyFrom(transaction.create_time)


def _fill_transaction(
    transaction: transaction_pb2.Transaction, row: TransactionRow, entries: Sequence[Any]
) -> None:
    transaction.transaction_id = row.transaction_id
    transaction.type = TYPES[row.type]
    transaction.charge_id = row.charge_id
    transaction.partition_id = row.partition_id
    _fill_entries(transaction.entries, entries)
    set_timestamp(transaction.occur_time, row.occur_time)
    set_timestamp(transaction.create_time, row.create_time)
    # What is empty is not set: that is the same, and most of these are.
    if row.reason:
        transaction.reason = row.reason
    if row.payout_id:
        transaction.payout_id = row.payout_id
    if row.external_id:
        transaction.external_id = row.external_id
    if row.correction_id:
        transaction.correction_id = row.correction_id


def _fill_entries(into: Any, entries: Sequence[Sequence[Any]]) -> None:
    for _, number, owner_id, kind, currency, micros, collected, earned_on, available_on, version in entries:
        entry = into.add()
        entry.entry_number = number
        account = entry.account
        account.owner_id = owner_id
        account.kind = KINDS[kind]
        account.currency_code = currency
        amount = entry.amount
        amount.currency_code = currency
        amount.amount_micros = micros
        if collected is not None:
            bucket = entry.bucket
            bucket.collected = collected
            bucket.earned_on = earned_on
            bucket.available_on = available_on
        if version is not None:
            entry.account_version = version


def _fill_charge(
    charge: charge_pb2.Charge, payees: Sequence[PayeeRow], transaction: transaction_pb2.Transaction
) -> None:
    """A charge as its transaction posted it: what became of it is in others."""
    row = payees[0]
    currency = row.currency_code
    charge.charge_id = row.charge_id
    charge.customer_id = row.customer_id
    charge.workflow_id = row.workflow_id
    charge.component = COMPONENTS[row.component]
    charge.ordinal = row.ordinal
    _fill_money(charge.gross, currency, row.gross)
    for payee in payees:
        earning = charge.earnings.add()
        earning.organization_id = payee.organization_id
        earning.agent_id = payee.agent_id
        gross, platform_fee, processing_fee = payee.payee_gross, payee.platform_fee, payee.processing_fee
        _fill_money(earning.gross, currency, gross)
        _fill_money(earning.platform_fee, currency, platform_fee)
        _fill_money(earning.processing_fee, currency, processing_fee)
        _fill_money(earning.net, currency, gross - platform_fee - processing_fee)
        earning.platform_fee_bps = payee.platform_fee_bps
        earning.processing_fee_bps = payee.processing_fee_bps
    # The times of a charge are those of its transaction.
    charge.occur_time.CopyFrom(transaction.occur_time)
    charge.create_time.CopyFrom(transaction.create_time)
    charge.price_version_id = row.price_version_id
    charge.evidence_hash = row.evidence_hash
    charge.transaction_id = row.transaction_id
    charge.reservation_id = row.reservation_id


def fill_correction(correction: correction_pb2.Correction, row: Any, reason: str) -> None:
    """Say a correction in a new message, without its time, which is that of its transaction."""
    currency = row.currency_code
    correction.charge_id = row.charge_id
    correction.correction_id = row.correction_id
    _fill_money(correction.amount, currency, row.amount)
    _fill_money(correction.refund.unpaid, currency, row.unpaid)
    _fill_money(correction.refund.receivable, currency, row.receivable)
    _fill_money(correction.refund.credits, currency, row.credits)
    # The legs are net, platform fee and processing fee of one payee after the other.
    nets, platform_fees, processing_fees = (row.legs[leg::3] for leg in range(3))
    for payee in zip(row.organization_ids, nets, platform_fees, processing_fees, strict=True):
        organization_id, net, platform_fee, processing_fee = payee
        earning = correction.earnings.add(organization_id=organization_id)
        _fill_money(earning.gross, currency, net + platform_fee + processing_fee)
        _fill_money(earning.platform_fee, currency, platform_fee)
        _fill_money(earning.processing_fee, currency, processing_fee)
        _fill_money(earning.net, currency, net)
    correction.reason = reason
    correction.transaction_id = row.transaction_id


def _fill_money(money: money_pb2.Money, currency: str, micros: int) -> None:
    money.currency_code = currency
    money.amount_micros = micros
