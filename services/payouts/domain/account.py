"""An organization's account at the payment processor: its states, and what each reading of it makes of it.

Here as with payouts, the store writes an account only if nobody else wrote it since it was read.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from services.kit.errors import AlreadyExists, InvalidArgument
from services.payouts.domain.payout import KEY_LIFE

DEFAULT_COUNTRY: Final = "US"
# So long after a key has ended no call with it is under way any more, and what it made is listed.
SETTLED_AFTER: Final = timedelta(minutes=5)
_COUNTRY: Final = re.compile(r"[A-Z]{2}")


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
    create_attempt_time: datetime | None
    create_time: datetime
    create_spent_time: datetime | None = None
    create_number: int = 1
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

    @property
    def create_key(self) -> str:
        """The idempotency key under which it is made now.

        Together with the row's country it says all that is asked, so it never goes with another body.
        """
        return f"tallystick-account-{self.organization_id}-{self.create_number}"


def check_country(country_code: str, *, field: str = "country_code") -> str:
    """`country_code`, if it looks like one: two capital letters. Raises InvalidArgument naming `field`."""
    if not _COUNTRY.fullmatch(country_code):
        raise InvalidArgument.of(field, "must be the two-letter code of a country, in capitals")
    return country_code


def begun(organization_id: str, country_code: str, now: datetime) -> ConnectedAccount:
    """An account that will be asked for, in this country ("" for the usual one)."""
    return ConnectedAccount(
        organization_id=organization_id,
        country_code=country_code or DEFAULT_COUNTRY,
        create_attempt_time=now,
        create_time=now,
    )


def asked_again(account: ConnectedAccount, country_code: str, now: datetime) -> ConnectedAccount:
    """The processor refused it before: it is asked for anew, perhaps in another country."""
    return dataclasses.replace(
        account, country_code=country_code or account.country_code, create_attempt_time=now
    )


def check_same_country(account: ConnectedAccount, country_code: str) -> None:
    """Raises AlreadyExists if it was asked for in another country, and perhaps made there."""
    if account.create_attempt_time is None:
        return
    if country_code and country_code != account.country_code:
        raise AlreadyExists(
            f"the connected account was asked for in {account.country_code}, which cannot be changed",
            metadata={"resource_id": account.organization_id},
        )


def key_end(account: ConnectedAccount, attempt_time: datetime) -> datetime:
    """Until when the key of an attempt makes it harmless to ask again."""
    return account.create_spent_time or attempt_time + KEY_LIFE


def is_settled(account: ConnectedAccount, attempt_time: datetime, now: datetime) -> bool:
    """Whether what an attempt has made, if anything, is certain to be listed."""
    return now >= key_end(account, attempt_time) + SETTLED_AFTER


def key_spent(account: ConnectedAccount, now: datetime) -> ConnectedAccount:
    """The key will not say what it made: from now on that is only looked for."""
    return dataclasses.replace(account, create_spent_time=now)


def not_made(account: ConnectedAccount) -> ConnectedAccount:
    """Certainly nothing was made under this key, and never will be: the next attempt has another one."""
    return dataclasses.replace(
        account,
        create_number=account.create_number + 1,
        create_attempt_time=None,
        create_spent_time=None,
    )


def read(account: ConnectedAccount, facts: AccountFacts, now: datetime) -> ConnectedAccount:
    """The account with what was read of it. The first reading gives it its id."""
    return dataclasses.replace(
        account,
        stripe_account_id=facts.stripe_account_id,
        country_code=facts.country_code or account.country_code,
        transfers_status=facts.transfers_status,
        bank_payouts_enabled=facts.bank_payouts_enabled,
        details_submitted=facts.details_submitted,
        disabled_reason=facts.disabled_reason,
        requirements=tuple(facts.requirements),
        deauthorized=False,
        refresh_time=now,
    )


def gone(account: ConnectedAccount, now: datetime) -> ConnectedAccount:
    """The processor no longer lets us read it. Should it do so again, `read` takes this back."""
    return dataclasses.replace(
        account,
        transfers_status="inactive",
        bank_payouts_enabled=False,
        requirements=(),
        deauthorized=True,
        refresh_time=now,
    )


def can_do_more(before: ConnectedAccount, after: ConnectedAccount) -> bool:
    """Whether payouts that stand still for want of the account can go on."""
    return (after.can_be_paid and not before.can_be_paid) or (
        after.bank_payouts_enabled and not before.bank_payouts_enabled
    )
