"""Leases, holds, reservations and balances, between the contract and the domain."""

from collections.abc import Mapping
from datetime import datetime

from services.kit.errors import InvalidArgument
from services.kit.messages import set_money
from services.kit.times import optional_time_from_proto, optional_timestamp, time_from_proto, timestamp
from services.ledger.domain.accounts import CustomerBalance
from services.ledger.domain.credits import (
    NO_LEASE,
    CreditLease,
    EndedReservation,
    GrantedLease,
    Hold,
    HoldPurpose,
    HoldRequest,
    HoldState,
    LeaseRenewal,
    OutcomeHold,
    PlacedHold,
    ReleasedReservation,
    ReservationClaim,
    ReservationRelease,
    ReservationState,
)
from services.ledger.domain.lots import CreditLot
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, charge_pb2, credit_pb2, credit_service_pb2

_PURPOSE_TO_PROTO = {
    purpose: credit_pb2.HoldPurpose.Value(f"HOLD_PURPOSE_{purpose.name}") for purpose in HoldPurpose
}
_PURPOSE_FROM_PROTO: Mapping[int, HoldPurpose] = {number: one for one, number in _PURPOSE_TO_PROTO.items()}
_HOLD_STATES = {state: credit_pb2.HoldState.Value(f"HOLD_STATE_{state.name}") for state in HoldState}
_RESERVATION_STATES = {
    state: credit_pb2.ReservationState.Value(f"RESERVATION_STATE_{state.name}") for state in ReservationState
}


def purpose_from_proto(number: int, field: str) -> HoldPurpose:
    """Raises InvalidArgument naming the field for a number that is no purpose."""
    if number not in _PURPOSE_FROM_PROTO:
        raise InvalidArgument.of(field, "must be a known purpose")
    return _PURPOSE_FROM_PROTO[number]


def claim_from_proto(message: charge_pb2.ReservationClaim) -> ReservationClaim:
    if message.lease_epoch == NO_LEASE:
        # A hold knows its amount and its time by itself.
        return ReservationClaim(message.reservation_id, NO_LEASE)
    return ReservationClaim(
        reservation_id=message.reservation_id,
        lease_epoch=message.lease_epoch,
        amount=message.amount.amount_micros,
        currency_code=message.amount.currency_code,
        expire_time=optional_time_from_proto(message, "expire_time"),
    )


def outcome_hold_from_proto(message: charge_pb2.OutcomeHold) -> OutcomeHold:
    return OutcomeHold(
        hold_id=message.hold_id,
        currency_code=message.amount.currency_code,
        amount=message.amount.amount_micros,
        expire_time=time_from_proto(message, "expire_time"),
    )


def renewal_from_proto(message: credit_service_pb2.LeaseRenewal) -> LeaseRenewal:
    return LeaseRenewal(
        customer_id=message.customer_id,
        currency_code=message.currency_code,
        epoch=message.epoch,
        wanted=message.wanted_micros,
        known_version=message.known_version,
        known_available=message.known_available_micros,
    )


def hold_request_from_proto(message: credit_service_pb2.HoldRequest) -> HoldRequest:
    return HoldRequest(
        customer_id=message.customer_id,
        hold_id=message.hold_id,
        purpose=purpose_from_proto(message.purpose, "purpose"),
        currency_code=message.amount.currency_code,
        amount=message.amount.amount_micros,
        expire_time=time_from_proto(message, "expire_time"),
        content_hash=message.content_hash,
        price_version_id=message.price_version_id,
        from_lease=claim_from_proto(message.from_lease) if message.HasField("from_lease") else None,
    )


def release_from_proto(message: credit_service_pb2.ReservationRelease) -> ReservationRelease:
    return ReservationRelease(
        customer_id=message.customer_id,
        currency_code=message.currency_code,
        reservation_id=message.reservation_id,
        lease_epoch=message.lease_epoch,
        expire_time=optional_time_from_proto(message, "expire_time"),
    )


def lease_to_proto(lease: CreditLease) -> credit_pb2.CreditLease:
    return credit_pb2.CreditLease(
        customer_id=lease.customer_id,
        epoch=lease.epoch,
        remaining=_money(lease.currency_code, lease.remaining),
        version=lease.version,
        expire_time=timestamp(lease.expire_time),
        recall=lease.recall,
        draining=lease.draining,
        create_time=timestamp(lease.create_time),
    )


def granted_to_proto(granted: GrantedLease) -> credit_service_pb2.GrantedLease:
    currency = granted.lease.currency_code
    return credit_service_pb2.GrantedLease(
        lease=lease_to_proto(granted.lease),
        available=_money(currency, granted.available),
        credit_room=_money(currency, granted.credit_room),
        customer_frozen=granted.frozen,
    )


def hold_to_proto(hold: Hold) -> credit_pb2.Hold:
    return credit_pb2.Hold(
        customer_id=hold.customer_id,
        hold_id=hold.hold_id,
        purpose=_PURPOSE_TO_PROTO[hold.purpose],
        state=_HOLD_STATES[hold.state],
        from_credits=_money(hold.currency_code, hold.credits),
        from_receivable=_money(hold.currency_code, hold.receivable),
        captured=_money(hold.currency_code, hold.captured),
        charge_id=hold.charge_id,
        expire_time=timestamp(hold.expire_time),
        create_time=timestamp(hold.create_time),
        end_time=None if hold.end_time is None else timestamp(hold.end_time),
        price_version_id=hold.price_version_id,
    )


def placed_to_proto(placed: PlacedHold) -> credit_service_pb2.PlacedHold:
    return credit_service_pb2.PlacedHold(
        hold=hold_to_proto(placed.hold),
        balance=customer_balance_to_proto(placed.balance),
        duplicate=placed.duplicate,
        lease=None if placed.lease is None else lease_to_proto(placed.lease),
    )


def ended_to_proto(ended: EndedReservation) -> credit_pb2.EndedReservation:
    return credit_pb2.EndedReservation(
        state=_RESERVATION_STATES[ended.state],
        captured_credits=_money(ended.currency_code, ended.captured_credits),
        captured_receivable=_money(ended.currency_code, ended.captured_receivable),
        lease=None if ended.lease is None else lease_to_proto(ended.lease),
    )


def released_to_proto(released: ReleasedReservation) -> credit_service_pb2.ReleasedReservation:
    return credit_service_pb2.ReleasedReservation(
        ended=ended_to_proto(released.ended), balance=customer_balance_to_proto(released.balance)
    )


def customer_balance_to_proto(balance: CustomerBalance) -> account_pb2.CustomerBalance:
    message = account_pb2.CustomerBalance()
    fill_customer_balance(message, balance)
    return message


def fill_customer_balance(message: account_pb2.CustomerBalance, balance: CustomerBalance) -> None:
    """Say a balance in a new message."""
    currency, held = balance.currency_code, balance.held_credits
    message.customer_id = balance.customer_id
    set_money(message.available, currency, balance.available)
    set_money(message.held, currency, balance.held)
    set_money(message.receivable, currency, balance.receivable)
    set_money(message.unpaid, currency, balance.unpaid)
    set_money(message.credit_limit, currency, balance.credit_limit)
    if held is not None:
        set_money(message.held_credits.leased, currency, held.leased)
        message.held_credits.lease_epoch = held.lease_epoch
        set_money(message.held_credits.draining, currency, held.draining)
        set_money(message.held_credits.runs, currency, held.runs)
        set_money(message.held_credits.outcomes, currency, held.outcomes)
    set_money(message.held_receivable, currency, balance.held_receivable)
    set_money(message.chargebacks, currency, balance.chargebacks)
    message.frozen = balance.frozen


def lot_to_proto(lot: CreditLot, now: datetime) -> credit_pb2.CreditLot:
    return credit_pb2.CreditLot(
        customer_id=lot.customer_id,
        lot_id=lot.lot_id,
        source=credit_pb2.CreditLotSource.Value(f"CREDIT_LOT_SOURCE_{lot.source.name}"),
        funder_organization_id=lot.funder_organization_id,
        amount=_money(lot.currency_code, lot.amount),
        remaining=_money(lot.currency_code, lot.remaining),
        expired=_money(lot.currency_code, lot.expired),
        expire_time=optional_timestamp(lot.expire_time),
        priority=lot.priority,
        state=credit_pb2.CreditLotState.Value(f"CREDIT_LOT_STATE_{lot.state(now).name}"),
        create_time=timestamp(lot.create_time),
    )


def _money(currency_code: str, amount: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code=currency_code, amount_micros=amount)
