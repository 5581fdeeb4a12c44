"""Charges for finished work: what is asked for, what is valid, and what was posted. Amounts are micros."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from services.kit import ids
from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.money import MAX_AMOUNT_MICROS, check_currency
from services.ledger.domain.accounts import CustomerBalance

MAX_CHARGES_PER_CALL = 1000
MAX_PAYEES = 16
MAX_WEIGHT = 1_000_000
MAX_ORDINAL = 2**31 - 1
MAX_PRICE_VERSION_ID_LENGTH = 64
SHA256_LENGTH = 32


class ChargeComponent(IntEnum):
    """Which part of a run a charge is for; the numbers are those of the contract and of the database."""

    BASE = 1
    OUTCOME = 2


@dataclass(frozen=True, slots=True)
class Payee:
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
        """What must be equal for a repeated request to be the same: everything but the evidence.

        It is stored for ever, so its form never changes; a new field that matters starts a new version.
        """
        content = (
            "charge/1",
            self.customer_id,
            self.workflow_id,
            int(self.component),
            self.ordinal,
            self.currency_code,
            self.gross,
            [(payee.organization_id, payee.agent_id, payee.weight) for payee in self.payees],
            self.occur_time.isoformat(),
            self.price_version_id,
        )
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).digest()


def check(intent: ChargeIntent, now: datetime) -> None:
    """Raise InvalidArgument with every malformed field of an intent."""
    violations: list[FieldViolation] = []

    def require(holds: bool, name: str, description: str) -> None:
        if not holds:
            violations.append(FieldViolation(name, description))

    try:
        ids.check_id(intent.customer_id, ids.CUSTOMER, field="customer_id")
        ids.check_workflow_id(intent.workflow_id)
        check_currency(intent.currency_code, field="gross.currency_code")
        for number, payee in enumerate(intent.payees):
            ids.check_id(payee.organization_id, ids.ORGANIZATION, field=f"payees[{number}].organization_id")
            ids.check_id(payee.agent_id, ids.AGENT, field=f"payees[{number}].agent_id")
            require(
                1 <= payee.weight <= MAX_WEIGHT,
                f"payees[{number}].weight",
                f"must be from 1 to {MAX_WEIGHT}",
            )
    except InvalidArgument as error:
        violations.extend(error.field_violations)
    require(0 <= intent.ordinal <= MAX_ORDINAL, "ordinal", "must not be negative")
    require(
        0 <= intent.gross <= MAX_AMOUNT_MICROS,
        "gross.amount_micros",
        f"must be from 0 to {MAX_AMOUNT_MICROS}",
    )
    require(1 <= len(intent.payees) <= MAX_PAYEES, "payees", f"must be one to {MAX_PAYEES}")
    organizations = {payee.organization_id for payee in intent.payees}
    require(len(organizations) == len(intent.payees), "payees", "must name each organization at most once")
    require(intent.occur_time <= now, "occur_time", "must not be in the future")
    require(
        len(intent.price_version_id) <= MAX_PRICE_VERSION_ID_LENGTH,
        "price_version_id",
        f"must have at most {MAX_PRICE_VERSION_ID_LENGTH} characters",
    )
    require(len(intent.evidence_hash) in (0, SHA256_LENGTH), "evidence_hash", "must be a SHA-256, or empty")
    if violations:
        raise InvalidArgument(
            "; ".join(f"{violation.field}: {violation.description}" for violation in violations),
            field_violations=violations,
        )


@dataclass(frozen=True, slots=True)
class Earning:
    """One payee's share of a charge: gross = net + platform_fee + processing_fee."""

    organization_id: str
    agent_id: str
    gross: int
    platform_fee: int
    processing_fee: int
    platform_fee_bps: int
    processing_fee_bps: int

    @property
    def net(self) -> int:
        return self.gross - self.platform_fee - self.processing_fee


@dataclass(frozen=True, slots=True)
class ChargePayment:
    """How a charge stands; the amounts add up to its gross."""

    from_credits: int
    receivable: int
    unpaid: int


@dataclass(frozen=True, slots=True)
class Charge:
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


@dataclass(frozen=True, slots=True)
class PostedCharge:
    """The answer to an intent."""

    charge: Charge
    balance: CustomerBalance
    duplicate: bool
    evidence_differs: bool
