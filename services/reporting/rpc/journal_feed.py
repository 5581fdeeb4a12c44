"""The ledger's journal as rows."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc

from services.reporting.domain.facts import JournalBatch, Movement, PostedCharge, PostedTransaction, Revenue
from services.reporting.domain.projection import Feed, FeedGap
from services.reporting.rpc.feeds import FeedReader, micros
from tallystick.ledger.v1 import account_pb2 as account
from tallystick.ledger.v1 import charge_pb2, ledger_service_pb2_grpc
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick.ledger.v1 import transaction_pb2 as posted

_TYPES: Final = {
    number: name.removeprefix("TRANSACTION_TYPE_").lower() for name, number in posted.TransactionType.items()
}
_KINDS: Final = {
    number: name.removeprefix("ACCOUNT_KIND_").lower() for name, number in account.AccountKind.items()
}
_COMPONENTS: Final = {
    number: name.removeprefix("CHARGE_COMPONENT_").lower()
    for name, number in charge_pb2.ChargeComponent.items()
}
# Whose accounts are on no statement: the platform's, and what it keeps of organizations' earnings.
_PLATFORM: Final = "platform"
_PAYABLE: Final = 2
# Where an organization's leg is within (platform fee, processing fee, net).
_LEGS: Final = {
    account.ACCOUNT_KIND_PLATFORM_FEES: 0,
    account.ACCOUNT_KIND_PROCESSING_FEES: 1,
    account.ACCOUNT_KIND_ORGANIZATION_PAYABLE: _PAYABLE,
}
_NOTHING: Final = (0, 0, 0)
# What changes what was earned by a charge, without changing what was billed.
_OF_A_CHARGE: Final = frozenset(
    {
        posted.TRANSACTION_TYPE_COLLECTION,
        posted.TRANSACTION_TYPE_WRITE_OFF,
        posted.TRANSACTION_TYPE_PROMOTION_SETTLEMENT,
    }
)


class JournalReader(FeedReader[JournalBatch]):
    """Reads the ledger's journal."""

    feed = Feed.JOURNAL

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ledger = ledger_service_pb2_grpc.LedgerServiceStub(channel)

    def _begin(self, log_id: str, after: int) -> JournalBatch:
        return JournalBatch(log_id, after, after)

    def _call(self, log_id: str, after: int, size: int) -> Any:
        return self._ledger.ReadJournal(
            pb.ReadJournalRequest(after_position=after, log_id=log_id, batch_size=size, include_charges=True)
        )

    def _add(self, batch: JournalBatch, response: pb.ReadJournalResponse) -> None:
        for sequenced in response.transactions:
            batch.follow(sequenced.position)
            _add_transaction(batch, sequenced)


def _add_transaction(batch: JournalBatch, sequenced: pb.SequencedTransaction) -> None:
    position, transaction = sequenced.position, sequenced.transaction
    create_time = micros(transaction.create_time)
    batch.apply_time = create_time
    batch.transactions.append(
        PostedTransaction(
            position,
            transaction.transaction_id,
            _TYPES[transaction.type],
            transaction.charge_id,
            transaction.correction_id,
            transaction.payout_id,
            transaction.reason,
            micros(transaction.occur_time),
            create_time,
        )
    )
    # What each organization got or gave, by leg.
    earned: dict[str, list[int]] = {}
    for entry in transaction.entries:
        of, amount = entry.account, entry.amount.amount_micros
        owner_id, kind = of.owner_id, of.kind
        leg = _LEGS.get(kind)
        collected = available_on = None
        if leg is not None:
            legs = earned.get(owner_id)
            if legs is None:
                legs = earned[owner_id] = [0, 0, 0]
            legs[leg] += amount
            if leg != _PAYABLE:
                continue
            bucket = entry.bucket
            collected, available_on = bucket.collected, bucket.available_on
        if owner_id == _PLATFORM:
            continue
        batch.movements.append(
            Movement(
                position,
                entry.entry_number,
                owner_id,
                of.currency_code,
                _KINDS[kind],
                amount,
                collected,
                available_on,
            )
        )
    if transaction.type == posted.TRANSACTION_TYPE_CHARGE:
        _add_charge(batch, sequenced, earned)
    elif transaction.type in _OF_A_CHARGE and transaction.charge_id:
        # Of what was owed a collection moves earnings between buckets; what was unpaid is earned now. A
        # write-off of what was owed takes them back, though it stays billed, and so does a settlement of what
        # an organization's own promotion paid. (What is given up of earnings below zero, and what a promotion
        # pays for others, names no charge, and is no revenue.)
        currency_code = transaction.entries[0].account.currency_code
        batch.revenue += [
            Revenue(position, organization_id, "", currency_code, 0, *legs)
            for organization_id, legs in earned.items()
            if any(legs)
        ]
    elif transaction.type == posted.TRANSACTION_TYPE_CORRECTION:
        _add_correction(batch, sequenced, earned)


def _add_charge(
    batch: JournalBatch, sequenced: pb.SequencedTransaction, earned: Mapping[str, Sequence[int]]
) -> None:
    position = sequenced.position
    if not sequenced.HasField("charge"):
        raise FeedGap(f"journal: the charge of position {position} is missing")
    charge = sequenced.charge
    currency_code = charge.gross.currency_code
    batch.charges.append(
        PostedCharge(
            position,
            charge.customer_id,
            charge.workflow_id,
            _COMPONENTS[charge.component],
            charge.ordinal,
            currency_code,
            charge.gross.amount_micros,
            charge.price_version_id,
        )
    )
    batch.revenue += [
        Revenue(
            position,
            earning.organization_id,
            earning.agent_id,
            currency_code,
            earning.gross.amount_micros,
            *earned.get(earning.organization_id, _NOTHING),
        )
        for earning in charge.earnings
    ]


def _add_correction(
    batch: JournalBatch, sequenced: pb.SequencedTransaction, earned: Mapping[str, Sequence[int]]
) -> None:
    position = sequenced.position
    if not sequenced.HasField("correction"):
        raise FeedGap(f"journal: the correction of position {position} is missing")
    correction = sequenced.correction
    charge_id, amount = correction.charge_id, correction.amount
    batch.corrected[charge_id] = batch.corrected.get(charge_id, 0) + amount.amount_micros
    for earning in correction.earnings:
        billed, legs = earning.gross.amount_micros, earned.get(earning.organization_id, _NOTHING)
        if billed or any(legs):
            batch.revenue.append(
                Revenue(position, earning.organization_id, "", amount.currency_code, -billed, *legs)
            )
