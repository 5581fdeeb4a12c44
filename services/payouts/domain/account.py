"""An organization's account at the payment processor, and what its state means to people."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final


class AccountState(StrEnum):
    """Whether the organization can be paid."""

    ONBOARDING = "onboarding"
    RESTRICTED = "restricted"
    ACTIVE = "active"
    DISCONNECTED = "disconnected"


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something that the payment processor wants."""

    name: str
    past_due: bool
    # What was wrong with what was given; "" if nothing was.
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """What is read of an account at the payment processor."""

    stripe_account_id: str
    country_code: str
    # "active", "pending" or "inactive".
    transfers_status: str
    bank_payouts_enabled: bool
    details_submitted: bool
    disabled_reason: str
    requirements: Sequence[Requirement]


@dataclass(frozen=True, slots=True)
class ConnectedAccount:
    """A row of payouts.connected_account."""

    organization_id: str
    country_code: str
    create_attempt_time: datetime
    create_time: datetime
    stripe_account_id: str | None = None
    transfers_status: str = "inactive"
    bank_payouts_enabled: bool = False
    details_submitted: bool = False
    disabled_reason: str = ""
    requirements: tuple[Requirement, ...] = ()
    deauthorized: bool = False
    version: int = 0
    refresh_time: datetime | None = None

    @property
    def state(self) -> AccountState:
        """The transfers capability alone decides whether it can be paid, not what else it may do."""
        if self.deauthorized or self.disabled_reason.startswith("rejected."):
            return AccountState.DISCONNECTED
        if self.transfers_status == "active":
            return AccountState.ACTIVE
        return AccountState.RESTRICTED if self.details_submitted else AccountState.ONBOARDING

    @property
    def can_be_paid(self) -> bool:
        """Whether a payout may be requested."""
        return self.state is AccountState.ACTIVE


DEFAULT_COUNTRY: Final = "US"
