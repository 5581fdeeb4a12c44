"""Compares Stripe's books with the ledger, both ways."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Final

from services.kit.clock import Clock
from services.payouts.domain.reconciliation import (
    FEE,
    OTHER,
    PAYOUT,
    PURCHASE,
    Comparison,
    Key,
    Movement,
    compare,
)
from services.payouts.processor.balance import Balance
from services.payouts.rpc.ledger import Ledger
from tallystick.ledger.v1 import funding_service_pb2, transaction_pb2

# What is under way is left out: the ledger hears of a movement a moment after it happened.
SETTLING: Final = timedelta(minutes=1)
# How much later, or by clocks that differ earlier, the ledger may have recorded what the processor has.
_SLACK: Final = timedelta(days=1)
_FIRST: Final = datetime.min.replace(tzinfo=UTC)

_TYPES: Final = transaction_pb2.TransactionType


class Reconciler:
    """Reads both books. Nothing is changed."""

    def __init__(self, *, ledger: Ledger, balance: Balance, clock: Clock) -> None:
        self._ledger = ledger
        self._balance = balance
        self._clock = clock

    async def compare(self, start: datetime | None, end: datetime | None) -> Comparison:
        """What differs of what happened from `start` on and before `end`, which is a minute ago if None.

        Everything since `start` is read into memory, some hundred bytes per movement. Raises ProcessorError
        and TallystickError.
        """
        until = end or self._clock.now() - SETTLING
        # The first moments of time have none before them.
        since = None if start is None or start < _FIRST + _SLACK else start - _SLACK
        # The ledger first: what happens in between, the processor has and the time leaves out.
        recorded = [movement async for movement in self._recorded(since)]
        moved = [movement async for movement in self._balance.movements(since)]
        return compare(moved, recorded, start, until)

    async def _recorded(self, since: datetime | None) -> AsyncIterator[Movement]:
        async for page in self._ledger.clearing_pages(since):
            for found in page:
                yield _movement(found)


def _movement(found: funding_service_pb2.ClearingMovement) -> Movement:
    type_name = _TYPES.Name(found.type).removeprefix("TRANSACTION_TYPE_").lower()
    return Movement(
        key=Key(*_names(found), found.amount.currency_code),
        # An asset: a debit is money that came in.
        amount_micros=-found.amount.amount_micros,
        time=found.create_time.ToDatetime(tzinfo=UTC),
        type=FEE if found.type == transaction_pb2.TRANSACTION_TYPE_PROCESSOR_FEE else type_name,
        transaction_id=found.transaction_id,
    )


def _names(found: funding_service_pb2.ClearingMovement) -> tuple[str, str]:
    match found.type:
        case transaction_pb2.TRANSACTION_TYPE_PAYOUT_COMPLETION:
            return PAYOUT, found.payout_id
        case transaction_pb2.TRANSACTION_TYPE_PURCHASE:
            return PURCHASE, found.external_id
        case transaction_pb2.TRANSACTION_TYPE_PROCESSOR_FEE:
            return FEE, found.external_id
    # Of a reversal, refund, dispute, or what came again; an adjustment has no name but its own.
    return OTHER, found.external_id or found.transaction_id
