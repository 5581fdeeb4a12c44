"""What is kept of a usage event once it is priced."""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from services.kit import ids
from services.metering.domain.claim import Claim, OutcomeHold
from services.metering.domain.compiled_price import NO_TERMS, ContractTerms
from services.metering.domain.outcome import DeferredOutcome
from services.metering.domain.price_counter import Counted
from services.metering.domain.rating import RatedLine
from services.metering.domain.usage_event import EventKey, UsageEvent


class Component(StrEnum):
    """Which part of a run a charge is for: the names are part of what charge ids are derived from."""

    # What is known when the work ends.
    BASE = "BASE"
    # What an outcome adds that was decided later.
    OUTCOME = "OUTCOME"


class ChargeKey(NamedTuple):
    """The identity of a charge."""

    customer_id: str
    workflow_id: str
    ordinal: int
    component: Component

    @property
    def charge_id(self) -> str:
        """The id of the charge, which the ledger derives alike."""
        return ids.charge_id(self.customer_id, self.workflow_id, self.component, self.ordinal)


class IntendedCharge(NamedTuple):
    """A charge that a usage event leads to, with all that the ledger is told of it.

    `claim` is what it is to be paid from first; an outcome that adds nothing has one too, which is then
    released instead of charged. `outcome_hold` is what to hold for an outcome that is still to come.
    """

    key: EventKey
    organization_id: str
    agent_id: str
    occur_time: datetime
    currency_code: str
    amount_micros: int
    price_version_id: str
    evidence_hash: bytes
    component: Component = Component.BASE
    claim: Claim | None = None
    outcome_hold: OutcomeHold | None = None

    @property
    def charge_key(self) -> ChargeKey:
        return ChargeKey(*self.key, self.component)

    @property
    def is_release(self) -> bool:
        """Whether there is nothing to charge, only something held to give back."""
        return self.component is Component.OUTCOME and self.amount_micros == 0


class UsageRecord(NamedTuple):
    """A usage event as recorded: what it was, and how it was priced, once and for all.

    `deferred` is its outcome if it was reported as pending: that may have been decided since.
    `contract_terms` are what a contract added to the price, and `counted` is what a price was rated with that
    depends on counters: with the event and the price version, all that its amount follows from.
    """

    charge: IntendedCharge
    content: bytes
    evidence_ref: str
    lines: tuple[RatedLine, ...]
    deferred: DeferredOutcome | None = None
    contract_terms: ContractTerms = NO_TERMS
    counted: Counted | None = None

    def evidence_differs(self, event: UsageEvent) -> bool:
        """Whether a repeated report brings other evidence than the first one did."""
        recorded = (self.evidence_ref, self.charge.evidence_hash)
        return recorded != (event.evidence_ref, event.evidence_hash)

    def is_settled_with(self, reservation_id: str) -> bool:
        """Whether the event was recorded with a claim on this reservation."""
        claim = self.charge.claim
        return claim is not None and claim.reservation_id == reservation_id


class KnownUsage(NamedTuple):
    """A usage event that was recorded before, and whether the ledger has yet to confirm its charge, and what
    follows from its outcome.
    """

    record: UsageRecord
    pending: bool
    outcome_pending: bool = False


def outcome_charge(record: UsageRecord) -> IntendedCharge:
    """The charge for the outcome of an event, once it is decided; a release if it adds nothing.

    It belongs to the time of the decision: that is when it was earned.
    """
    base, deferred = record.charge, record.deferred
    if deferred is None or deferred.resolve_time is None:
        raise ValueError(f"the outcome of {base.key} is not a deferred one that was decided")
    return base._replace(
        occur_time=deferred.resolve_time,
        amount_micros=deferred.bonus_micros,
        evidence_hash=deferred.evidence_hash,
        component=Component.OUTCOME,
        claim=Claim(
            reservation_id=deferred.outcome_id,
            lease_epoch=0,
            amount_micros=deferred.max_bonus_micros,
            currency_code=base.currency_code,
            expire_time=deferred.expire_time,
            price_version_id=base.price_version_id,
        ),
        outcome_hold=None,
    )


def charge_id(key: EventKey) -> str:
    """The id of the charge for what was known of the event when the work ended."""
    return ChargeKey(*key, Component.BASE).charge_id


def outcome_id(charge_id: str) -> str:
    """The id of the outcome of the event that has this charge."""
    return f"{ids.OUTCOME}_{charge_id.removeprefix(f'{ids.CHARGE}_')}"
