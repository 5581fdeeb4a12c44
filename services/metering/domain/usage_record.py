"""What is kept of a usage event once it is priced."""

from datetime import datetime
from typing import NamedTuple

from services.kit import ids
from services.metering.domain.rating import RatedLine
from services.metering.domain.usage_event import EventKey, UsageEvent

# Name of the charge component that is posted when the work ends; part of what charge ids are derived from.
BASE = "BASE"


class IntendedCharge(NamedTuple):
    """The charge that a usage event leads to, with all that the ledger is told of it."""

    key: EventKey
    organization_id: str
    agent_id: str
    occur_time: datetime
    currency_code: str
    amount_micros: int
    price_version_id: str
    evidence_hash: bytes


class UsageRecord(NamedTuple):
    """A usage event as recorded: what it was, and how it was priced, once and for all."""

    charge: IntendedCharge
    content: bytes
    evidence_ref: str
    lines: tuple[RatedLine, ...]

    def evidence_differs(self, event: UsageEvent) -> bool:
        """Whether a repeated report brings other evidence than the first one did."""
        recorded = (self.evidence_ref, self.charge.evidence_hash)
        return recorded != (event.evidence_ref, event.evidence_hash)


class KnownUsage(NamedTuple):
    """A usage event that was recorded before, and whether the ledger has yet to confirm its charge."""

    record: UsageRecord
    pending: bool


def charge_id(key: EventKey) -> str:
    """The id of the event's charge, which the ledger derives alike."""
    return ids.charge_id(key.customer_id, key.workflow_id, BASE, key.ordinal)


def outcome_id(charge_id: str) -> str:
    """The id of the outcome of the event that has this charge."""
    return f"{ids.OUTCOME}_{charge_id.removeprefix(f'{ids.CHARGE}_')}"
