"""Payouts between the contract and the domain."""

from collections.abc import Iterable
from typing import Final

from services.kit.errors import InvalidArgument
from services.kit.money import Money
from services.kit.times import optional_timestamp, timestamp
from services.payouts.domain.payout import (
    BankStatus,
    Hold,
    Origin,
    Payout,
    PayoutState,
    Reversal,
    Transition,
)
from services.payouts.rpc.ledger import to_proto
from tallystick.payouts.v1 import payout_pb2

_STATE_TO_PROTO: Final[dict[PayoutState, payout_pb2.PayoutState.ValueType]] = {
    state: payout_pb2.PayoutState.Value(f"PAYOUT_STATE_{state.name}")
    for state in PayoutState
    if state not in (PayoutState.OPENING, PayoutState.REFUSED)
}
_STATE_FROM_PROTO: Final[dict[int, PayoutState]] = {
    number: state for state, number in _STATE_TO_PROTO.items()
}
_BANK_STATUS_TO_PROTO: Final[dict[BankStatus, payout_pb2.BankStatus.ValueType]] = {
    BankStatus.NONE: payout_pb2.BANK_STATUS_UNSPECIFIED,
    **{
        status: payout_pb2.BankStatus.Value(f"BANK_STATUS_{status.name}")
        for status in BankStatus
        if status is not BankStatus.NONE
    },
}
_HOLD_TO_PROTO: Final = {hold: payout_pb2.PayoutHold.Value(f"PAYOUT_HOLD_{hold.name}") for hold in Hold}
_ORIGIN_TO_PROTO: Final = {
    origin: payout_pb2.PayoutOrigin.Value(f"PAYOUT_ORIGIN_{origin.name}") for origin in Origin
}


def states_from_proto(states: Iterable[int]) -> tuple[PayoutState, ...]:
    """The states of a filter, in order; raises InvalidArgument for one that is not known."""
    found = set()
    for state in states:
        if state not in _STATE_FROM_PROTO:
            raise InvalidArgument.of("states", "must be known states")
        found.add(_STATE_FROM_PROTO[state])
    return tuple(sorted(found))


def payout_to_proto(payout: Payout) -> payout_pb2.Payout:
    """A payout that people may see as it travels."""
    return payout_pb2.Payout(
        payout_id=payout.payout_id,
        organization_id=payout.organization_id,
        amount=to_proto(payout.money),
        state=_STATE_TO_PROTO[payout.state],
        bank_status=_BANK_STATUS_TO_PROTO[payout.bank_status],
        method=payout_pb2.PAYOUT_METHOD_STRIPE_TRANSFER,
        origin=_ORIGIN_TO_PROTO[payout.origin],
        reversed=to_proto(Money(payout.money.currency_code, payout.reversed_micros)),
        failure_code=payout.failure_code,
        failure_reason=payout.failure_reason,
        hold=payout_pb2.PAYOUT_HOLD_UNSPECIFIED if payout.hold is None else _HOLD_TO_PROTO[payout.hold],
        transfer_id=payout.transfer_id or "",
        bank_payout_id=payout.bank_payout_id or "",
        bank_failure_code=payout.bank_failure_code,
        create_time=timestamp(payout.create_time),
        update_time=timestamp(payout.update_time),
        bank_arrival_time=optional_timestamp(payout.bank_arrival_time),
        earned_before="" if payout.earned_before is None else payout.earned_before.isoformat(),
    )


def transition_to_proto(transition: Transition) -> payout_pb2.PayoutTransition:
    """A step as it travels."""
    return payout_pb2.PayoutTransition(
        number=transition.number,
        state=_STATE_TO_PROTO[transition.state],
        bank_status=_BANK_STATUS_TO_PROTO[transition.bank_status],
        create_time=timestamp(transition.create_time),
        actor=transition.step.actor,
        method=transition.step.method,
        reason=transition.step.reason,
        stripe_id=transition.step.stripe_id,
    )


def reversal_to_proto(reversal: Reversal, currency_code: str) -> payout_pb2.PayoutReversal:
    """What came back as it travels."""
    return payout_pb2.PayoutReversal(
        reversal_id=reversal.reversal_id,
        amount=to_proto(Money(currency_code, reversal.amount_micros)),
        create_time=timestamp(reversal.create_time),
    )
