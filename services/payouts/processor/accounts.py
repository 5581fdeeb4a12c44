"""Connected accounts at Stripe: v1 accounts with a controller. Nothing else knows which API they are of."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import stripe

from services.kit import ids
from services.payouts.domain.account import AccountFacts, Requirement
from services.payouts.processor.api import StripeApi, metadata_of
from services.payouts.processor.errors import KeyRefused, Refused

# Clocks differ.
_SKEW: Final = timedelta(minutes=5)
# A key never makes anything later than this after it was first used.
_LONGEST_ATTEMPT: Final = timedelta(days=1)
_MOST_REQUIREMENTS: Final = 100
_LONGEST_TEXT: Final = 500


@dataclass(frozen=True, slots=True)
class OnboardingLink:
    """Where a person goes on with onboarding. Serves once; never stored, and kept out of logs."""

    url: str
    expire_time: datetime

    def __repr__(self) -> str:
        return f"OnboardingLink(until {self.expire_time.isoformat()})"


class ProcessorAccounts:
    """What payouts does with connected accounts. Every method may raise ProcessorError.

    Who is behind an account is Stripe's to know: nothing personal is read.
    """

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self._accounts = api.client.v1.accounts
        self._links = api.client.v1.account_links

    async def create(self, organization_id: str, country_code: str, key: str) -> AccountFacts:
        """Make an account, about which nobody has told Stripe anything yet."""
        created = await self._api.call(
            "accounts.create",
            self._accounts.create_async,
            params=_body(organization_id, country_code),
            key=key,
        )
        return _facts(created)

    async def get(self, stripe_account_id: str) -> AccountFacts:
        """An account as it is now. Refused, with `is_missing`, once it is not ours any more."""
        with _gone_is_refused():
            found = await self._api.call(
                "accounts.retrieve", self._accounts.retrieve_async, stripe_account_id
            )
        return _facts(found)

    async def find(self, organization_id: str, attempt_time: datetime) -> AccountFacts | None:
        """The account that an attempt at `attempt_time` made, by the name that its body gave it."""
        pages = self._api.pages(
            "accounts.list",
            self._accounts.list_async,
            params={
                "created": {
                    "gte": int((attempt_time - _SKEW).timestamp()),
                    "lte": int((attempt_time + _LONGEST_ATTEMPT).timestamp()),
                }
            },
        )
        async for found in pages:
            if metadata_of(found).get("organization_id") == organization_id:
                return _facts(found)
        return None

    async def create_link(
        self, stripe_account_id: str, *, return_url: str, refresh_url: str
    ) -> OnboardingLink:
        """A link that serves once, for some minutes.

        Each has a key of its own: one that nobody saw just ends, and need not be found again.
        """
        params = {
            "account": stripe_account_id,
            "type": "account_onboarding",
            "return_url": return_url,
            "refresh_url": refresh_url,
        }
        key = f"tallystick-{ids.new_id('link')}"
        with _gone_is_refused():
            created = await self._api.call(
                "account_links.create", self._links.create_async, params=params, key=key
            )
        return OnboardingLink(created.url, datetime.fromtimestamp(created.expires_at, UTC))


@contextmanager
def _gone_is_refused() -> Iterator[None]:
    """Of an account that is gone Stripe says 403, as if our key were at fault: certain, and no key helps."""
    try:
        yield
    except KeyRefused as error:
        if not error.is_account_gone:
            raise
        raise Refused(error.message, code=error.code, status=error.status) from error


def _body(organization_id: str, country_code: str) -> Mapping[str, Any]:
    """What is asked for: it follows from the row alone, so that a key always goes with the same body."""
    return {
        "country": country_code,
        "controller": {
            "stripe_dashboard": {"type": "express"},
            "fees": {"payer": "application"},
            # Stripe carries losses only of accounts that take payments themselves; these get transfers.
            "losses": {"payments": "application"},
            # Stripe asks for what the law wants, and asks again when that changes.
            "requirement_collection": "stripe",
        },
        "capabilities": {"transfers": {"requested": True}},
        # What arrives goes to the bank when we say so, so that each payout can be followed there.
        "settings": {"payouts": {"schedule": {"interval": "manual"}}},
        # By this an account is found whose answer was never seen.
        "metadata": {"organization_id": organization_id},
    }


def _facts(found: stripe.Account) -> AccountFacts:
    capabilities, wanted = found.capabilities, found.requirements
    transfers = None if capabilities is None else getattr(capabilities, "transfers", None)
    return AccountFacts(
        stripe_account_id=found.id,
        country_code=found.country or "",
        transfers_status=transfers or "inactive",
        bank_payouts_enabled=bool(found.payouts_enabled),
        details_submitted=bool(found.details_submitted),
        disabled_reason=(wanted.disabled_reason if wanted is not None else None) or "",
        requirements=() if wanted is None else _requirements(wanted),
    )


def _requirements(wanted: stripe.Account.Requirements) -> tuple[Requirement, ...]:
    """What is due, the most urgent first. What is only being checked, or may be asked for one day, is not."""
    past_due = wanted.past_due or []
    problems = {error.requirement: error.reason for error in wanted.errors or []}
    # Stripe names what is past due as currently due, too.
    names = dict.fromkeys([*past_due, *(wanted.currently_due or [])])
    return tuple(
        Requirement(name[:_LONGEST_TEXT], name in past_due, problems.get(name, "")[:_LONGEST_TEXT])
        for name in list(names)[:_MOST_REQUIREMENTS]
    )
