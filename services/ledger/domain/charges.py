"""Charges for finished work: what is asked for, what is valid, and what was posted. Amounts are micros."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from json.encoder import encode_basestring_ascii as quote
from typing import NamedTuple

from services.kit import ids
from services.kit.money import check_amount, check_currency
from services.ledger.domain.accounts import CustomerBalance
from services.ledger.domain.credits import (
    EndedReservation,
    Hold,
    OutcomeHold,
    ReservationClaim,
    claim_violations,
)
from services.ledger.domain.violations import Violations

MAX_CHARGES_PER_CALL = 1000
MAX_PAYEES = 16
MAX_WEIGHT = 1_000_000
MAX_ORDINAL = 2**31 - 1
SHA256_LENGTH = 32
# How far the clock of another service may be ahead of ours before we call its time the future.
MAX_CLOCK_SKEW = timedelta(minutes=5)


class ChargeComponent(IntEnum):
    """Which part of a run a charge is for; the numbers are those of the contract and of the database."""

    BASE = 1
    OUTCOME = 2


class Payee(NamedTuple):
    """An organization that earns from a charge, by its agent, in proportion to its weight."""

    organization_id: str
    agent_id: str
    weight: int


@dataclass(frozen=True, slots=True)
class ChargeIntent:
    """A request for one charge."""

    customer_id: str
    workflow_id: str
    component: ChargeComponent
    ordinal: int
    currency_code: str
    gross: int
    payees: tuple[Payee, ...]
    occur_time: datetime
    price_version_id: str
    evidence_hash: bytes
    # What it is paid from first, and what is held with it: not part of what the charge is.
    reservation: ReservationClaim | None = None
    outcome_hold: OutcomeHold | None = None
    # Both are derived from the fields above.
    charge_id: str = field(init=False)
    content_hash: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "charge_id",
            ids.charge_id(self.customer_id, self.workflow_id, self.component.name, self.ordinal),
        )
        object.__setattr__(self, "content_hash", self._content_hash())

    def _content_hash(self) -> bytes:
        """What must be equal for a repeated request to be the same: everything but the evidence and the
        reservation.

        It is stored for ever, so its form never changes; a new field that matters starts a new version.
        """
        payees = ",".join(
            [f"[{quote(one.organization_id)},{quote(one.agent_id)},{one.weight}]" for one in self.payees]
        )
        # A JSON array as json.dumps writes it without spaces, in half of its time.
        content = (
            f'["charge/1",{quote(self.customer_id)},{quote(self.workflow_id)},{self.component:d},{self.ordinal},'
            f"{quote(self.currency_code)},{self.gross},[{payees}],"
            f"{quote(self.occur_time.isoformat())},{quote(self.price_version_id)}]"
        )
        return hashlib.sha256(content.encode()).digest()


def check(intent: ChargeIntent, now: datetime) -> None:
    """Raise InvalidArgument with every malformed field of an intent."""
    violations = Violations()
    violations.check_id(intent.customer_id, ids.CUSTOMER, "customer_id")
    violations.check(ids.check_workflow_id, intent.workflow_id)
    violations.require(0 <= intent.ordinal <= MAX_ORDINAL, "ordinal", "must not be negative")
    violations.check(check_currency, intent.currency_code, field="gross.currency_code")
    violations.check(check_amount, intent.gross, field="gross.amount_micros", minimum=0)
    _check_payees(violations, intent.payees)
    violations.require(intent.occur_time <= now + MAX_CLOCK_SKEW, "occur_time", "must not be in the future")
    violations.check_id(intent.price_version_id, ids.PRICE_VERSION, "price_version_id")
    violations.require(
        len(intent.evidence_hash) in (0, SHA256_LENGTH), "evidence_hash", "must be a SHA-256, or empty"
    )
    claim_violations(violations, intent.reservation, intent.outcome_hold, intent.currency_code, now)
    violations.raise_if_any()


def _check_payees(violations: Violations, payees: tuple[Payee, ...]) -> None:
    violations.require(1 <= len(payees) <= MAX_PAYEES, "payees", f"must be one to {MAX_PAYEES}")
    organizations = {payee.organization_id for payee in payees}
    violations.require(
        len(organizations) == len(payees), "payees", "must name each organization at most once"
    )
    for number, payee in enumerate(payees):
        if (
            ids.is_id(payee.organization_id, ids.ORGANIZATION)
            and ids.is_id(payee.agent_id, ids.AGENT)
            and 1 <= payee.weight <= MAX_WEIGHT
        ):
            continue
        path = f"payees[{number}]"
        violations.check_id(payee.organization_id, ids.ORGANIZATION, f"{path}.organization_id")
        violations.check_id(payee.agent_id, ids.AGENT, f"{path}.agent_id")
        violations.require(
            1 <= payee.weight <= MAX_WEIGHT, f"{path}.weight", f"must be from 1 to {MAX_WEIGHT}"
        )


class Earning(NamedTuple):
    """One payee's share of a charge: gross = net + platform_fee + processing_fee."""

    organization_id: str
    agent_id: str
    gross: int
    platform_fee: int
    processing_fee: int
    platform_fee_bps: int
    processing_fee_bps: int
    # What corrections took back of the three.
    corrected_net: int = 0
    corrected_platform_fee: int = 0
    corrected_processing_fee: int = 0

    @property
    def net(self) -> int:
        return self.gross - self.platform_fee - self.processing_fee

    @property
    def corrected(self) -> int:
        return self.corrected_net + self.corrected_platform_fee + self.corrected_processing_fee


class ChargePayment(NamedTuple):
    """How a charge stands; the amounts add up to its gross without what is corrected or written off."""

    from_credits: int
    receivable: int
    unpaid: int


class Charge(NamedTuple):
    """A charge as a reader may see it: without what is none of the reader's business."""

    charge_id: str
    customer_id: str
    workflow_id: str
    component: ChargeComponent
    ordinal: int
    currency_code: str
    gross: int
    earnings: tuple[Earning, ...]
    payment: ChargePayment | None
    occur_time: datetime
    create_time: datetime
    price_version_id: str
    evidence_hash: bytes
    transaction_id: str
    # What it was paid from first, and how much came from there; as the payment, not for every reader.
    reservation_id: str = ""
    captured: int = 0
    # Of the gross that the reader sees, what corrections took back.
    corrected: int = 0
    # What was given up of it; as the payment, not for every reader.
    written_off: int = 0


class PostedCharge(NamedTuple):
    """The answer to an intent."""

    charge: Charge
    balance: CustomerBalance
    duplicate: bool
    evidence_differs: bool
    # None if the intent claims nothing, or something that stands.
    reservation: EndedReservation | None = None
    outcome_hold: Hold | None = None
