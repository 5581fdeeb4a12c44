"""Credits that are set aside before work is done: leases, holds, and what ends them. Amounts are micros."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from services.kit import ids
from services.kit.errors import InvalidArgument
from services.kit.money import check_amount, check_currency
from services.ledger.domain.accounts import CustomerBalance
from services.ledger.domain.violations import Violations

MAX_ITEMS_PER_CALL: Final = 1000
MAX_EPOCH: Final = 2**31 - 2
# How long a hold may stand.
MAX_HOLD: Final = timedelta(days=366)
# The lease epoch that means a hold.
NO_LEASE: Final = 0
_SHA256_LENGTH: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}")


class HoldPurpose(StrEnum):
    """What a hold is for; values as in ledger.hold_purpose."""

    RUN = "run"
    OUTCOME = "outcome"


class HoldState(StrEnum):
    """The life of a hold; values as in ledger.hold_state."""

    HELD = "held"
    REFUSED = "refused"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


class ReservationState(StrEnum):
    """What became of a reservation, once and for all."""

    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class ReservationClaim:
    """What was reserved for a charge: an allocation in a lease, or a hold, which knows the rest by itself."""

    reservation_id: str
    lease_epoch: int
    amount: int = 0
    currency_code: str = ""
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class OutcomeHold:
    """What to hold for an outcome that is not decided when its work is charged."""

    hold_id: str
    currency_code: str
    amount: int
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class CreditLease:
    """A part of a customer's credits that is set aside for allocations outside the ledger."""

    customer_id: str
    currency_code: str
    epoch: int
    remaining: int
    version: int
    expire_time: datetime
    recall: bool
    draining: bool
    create_time: datetime


@dataclass(frozen=True, slots=True)
class GrantedLease:
    """A lease, and what the customer could spend beside it; nothing of either, if it is frozen."""

    lease: CreditLease
    available: int
    credit_room: int
    frozen: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Money that is kept for one piece of work."""

    customer_id: str
    hold_id: str
    currency_code: str
    purpose: HoldPurpose
    state: HoldState
    credits: int
    receivable: int
    captured: int
    charge_id: str
    expire_time: datetime
    create_time: datetime
    end_time: datetime | None
    # What its maker said that the work will be charged by.
    price_version_id: str = ""


@dataclass(frozen=True, slots=True)
class PlacedHold:
    """A hold, the balance that it left, and the lease that it came from if that is the current one."""

    hold: Hold
    balance: CustomerBalance
    duplicate: bool
    lease: CreditLease | None


@dataclass(frozen=True, slots=True)
class EndedReservation:
    """How a reservation ended, and its lease if that is the current one."""

    state: ReservationState
    currency_code: str
    captured_credits: int
    captured_receivable: int
    lease: CreditLease | None


@dataclass(frozen=True, slots=True)
class ReleasedReservation:
    """A reservation that has ended, and the balance that it left."""

    ended: EndedReservation
    balance: CustomerBalance


@dataclass(frozen=True, slots=True)
class LeaseRenewal:
    """Asks to prolong a lease, and for more; of what is known already it needs no answer."""

    customer_id: str
    currency_code: str
    epoch: int
    wanted: int
    known_version: int = 0
    known_available: int = 0


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """Asks for a hold, or, without a content hash, for more of one that stands."""

    customer_id: str
    hold_id: str
    purpose: HoldPurpose
    currency_code: str
    amount: int
    expire_time: datetime
    content_hash: bytes
    price_version_id: str = ""
    # The allocation that becomes this hold.
    from_lease: ReservationClaim | None = None


@dataclass(frozen=True, slots=True)
class ReservationRelease:
    """Asks to end a reservation for which no charge comes."""

    customer_id: str
    currency_code: str
    reservation_id: str
    lease_epoch: int
    # Unset for a hold.
    expire_time: datetime | None


def check_reservation_id(value: str, *, field: str) -> str:
    """`value`, if it can name a reservation or a hold; raises InvalidArgument otherwise."""
    if not _ID.fullmatch(value):
        raise InvalidArgument.of(
            field, "must be 1 to 64 letters, digits, '_', '.', ':', '/' or '-', the first a letter or digit"
        )
    return value


def check_epoch(epoch: int, *, field: str, minimum: int = 1) -> int:
    """`epoch`, if there could be such a lease; raises InvalidArgument otherwise."""
    if not minimum <= epoch <= MAX_EPOCH:
        raise InvalidArgument.of(field, f"must be from {minimum} to {MAX_EPOCH}")
    return epoch


def check_wanted(amount: int, *, field: str) -> int:
    """`amount`, if a lease could hold it; zero wants nothing."""
    return check_amount(amount, field=field, minimum=0)


def check_renewal(renewal: LeaseRenewal) -> None:
    """Raise InvalidArgument with every malformed field."""
    violations = Violations()
    violations.check(ids.check_id, renewal.customer_id, ids.CUSTOMER, field="customer_id")
    violations.check(check_currency, renewal.currency_code)
    violations.check(check_epoch, renewal.epoch, field="epoch")
    violations.check(check_wanted, renewal.wanted, field="wanted_micros")
    violations.require(renewal.known_version >= 0, "known_version", "must not be negative")
    violations.raise_if_any()


def check_hold(request: HoldRequest, now: datetime) -> None:
    """Raise InvalidArgument with every malformed field."""
    violations = Violations()
    violations.check(ids.check_id, request.customer_id, ids.CUSTOMER, field="customer_id")
    violations.check(check_reservation_id, request.hold_id, field="hold_id")
    violations.check(check_currency, request.currency_code, field="amount.currency_code")
    violations.check(check_amount, request.amount, field="amount.amount_micros")
    violations.require(request.expire_time <= now + MAX_HOLD, "expire_time", "must be within a year")
    violations.require(
        len(request.content_hash) in (0, _SHA256_LENGTH), "content_hash", "must be a SHA-256, or empty"
    )
    if request.price_version_id:
        violations.check(ids.check_id, request.price_version_id, ids.PRICE_VERSION, field="price_version_id")
    if request.from_lease is not None:
        _check_conversion(violations, request, request.from_lease)
    violations.raise_if_any()


def _check_conversion(violations: Violations, request: HoldRequest, claim: ReservationClaim) -> None:
    violations.require(request.purpose is HoldPurpose.RUN, "purpose", "must be a run for what was allocated")
    violations.require(bool(request.content_hash), "content_hash", "is required for what was allocated")
    violations.require(
        claim.reservation_id == request.hold_id, "from_lease.reservation_id", "must be the hold's id"
    )
    violations.check(check_epoch, claim.lease_epoch, field="from_lease.lease_epoch")
    _check_money(violations, claim.amount, claim.currency_code, request.currency_code, "from_lease.amount")
    violations.require(
        claim.expire_time is not None, "from_lease.expire_time", "is required for an allocation"
    )


def check_return(number: int, amount: int) -> None:
    """Raise InvalidArgument unless a lease could be returned so; nothing needs no number."""
    check_amount(amount, field="amount_micros", minimum=0)
    if number < (0 if amount == 0 else 1):
        raise InvalidArgument.of("return_number", "must be above zero")


def check_release(release: ReservationRelease) -> None:
    """Raise InvalidArgument with every malformed field."""
    violations = Violations()
    violations.check(ids.check_id, release.customer_id, ids.CUSTOMER, field="customer_id")
    violations.check(check_currency, release.currency_code)
    violations.check(check_reservation_id, release.reservation_id, field="reservation_id")
    violations.check(check_epoch, release.lease_epoch, field="lease_epoch", minimum=NO_LEASE)
    violations.require(
        release.lease_epoch == NO_LEASE or release.expire_time is not None,
        "expire_time",
        "is required for an allocation in a lease",
    )
    violations.raise_if_any()


def check_distinct(keys: Sequence[Hashable], field: str) -> None:
    """Raise InvalidArgument if a key comes twice in a batch."""
    if len(set(keys)) != len(keys):
        raise InvalidArgument.of(field, "must name each at most once")


def claim_violations(
    violations: Violations,
    claim: ReservationClaim | None,
    hold: OutcomeHold | None,
    currency_code: str,
    now: datetime,
) -> None:
    """Note what is malformed of the claim and the outcome hold of a charge in this currency."""
    if claim is not None:
        violations.check(check_reservation_id, claim.reservation_id, field="reservation.reservation_id")
        violations.check(check_epoch, claim.lease_epoch, field="reservation.lease_epoch", minimum=NO_LEASE)
        if claim.lease_epoch != NO_LEASE:
            _check_money(violations, claim.amount, claim.currency_code, currency_code, "reservation.amount")
            violations.require(
                claim.expire_time is not None, "reservation.expire_time", "is required for an allocation"
            )
    if hold is not None:
        violations.check(check_reservation_id, hold.hold_id, field="outcome_hold.hold_id")
        _check_money(violations, hold.amount, hold.currency_code, currency_code, "outcome_hold.amount")
        violations.require(
            hold.expire_time <= now + MAX_HOLD, "outcome_hold.expire_time", "must be within a year"
        )


def _check_money(violations: Violations, amount: int, currency: str, expected: str, field: str) -> None:
    violations.require(currency == expected, f"{field}.currency_code", "must be that of the whole")
    violations.check(check_amount, amount, field=f"{field}.amount_micros")
