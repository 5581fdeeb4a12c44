"""A charge with what it was for. Amounts are micros."""

from dataclasses import dataclass
from datetime import datetime

from services.kit.runs import ChargeKind, ServicePeriod, kind_of, service_period


@dataclass(frozen=True, slots=True)
class UsageDetail:
    """What metering said of the event that a charge is for."""

    agent_id: str
    agent_version: str
    action_type: str
    model: str
    input_tokens: int
    output_tokens: int
    outcome: str
    # Serialized tallystick.reporting.v1.ReportedCharge, of which only `lines` is set.
    lines: bytes


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge as one party sees it: a customer all of it, an organization its own share."""

    charge_id: str
    customer_id: str
    workflow_id: str
    component: str
    ordinal: int
    currency_code: str
    gross: int
    corrected: int
    # What the organization earned of it and has not lost to corrections; None for others.
    net: int | None
    # Empty unless the caller may see a payee.
    agent_id: str
    # None if the charge was not posted by metering, or if its usage was not read yet.
    usage: UsageDetail | None
    price_version_id: str
    occur_time: datetime
    create_time: datetime

    @property
    def kind(self) -> ChargeKind:
        """What it is for."""
        return kind_of(self.workflow_id)

    @property
    def service(self) -> ServicePeriod | None:
        """The period that a fee, or a closing, is for; None for work."""
        return service_period(self.workflow_id, self.occur_time)
