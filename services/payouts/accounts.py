"""Connected accounts: made once, read again and again, and the way people take to finish them.

What an account is asked with follows from its row, which is written before it is asked; what is read of it is
written only if nobody else wrote meanwhile. So it does not matter where a process is killed.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.kit import log
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import Unavailable
from services.kit.tenancy import PLATFORM, Tenants, scope
from services.kit.worker import PeriodicWorker
from services.payouts.domain import account as rules
from services.payouts.domain.account import ConnectedAccount
from services.payouts.processor.accounts import OnboardingLink, ProcessorAccounts
from services.payouts.processor.errors import InDoubt, KeyConflict, ProcessorError, Refused
from services.payouts.store import accounts, onboarding, payouts

# How long a person may take at the payment processor's pages: papers have to be looked for.
SESSION: Final = timedelta(hours=4)
# Another call with the same key is under way: how often it is looked at what became of it, and after what
# pause. Longer than Stripe takes to make an account.
_LOOKS: Final = 20
_PAUSE_SECONDS: Final = 0.25

# Events tell of changes; this is for those that were lost. Two or three calls a second at most.
_REREAD_AFTER: Final = timedelta(days=1)
_REREAD_INTERVAL: Final = timedelta(seconds=10)
_REREAD_BATCH: Final = 25
# An ended way back is remembered for a while, to be told from one that never was.
_FORGET_AFTER: Final = timedelta(days=1)
_FORGET_BATCH: Final = 1000

_log = log.get_logger()


@dataclass(frozen=True, slots=True)
class OnboardingUrls:
    """Where the payment processor sends people back to."""

    public_url: str

    def return_url(self, secret: str) -> str:
        """Where a person arrives who has finished, or left."""
        return f"{self.public_url.rstrip('/')}/connect/return/{secret}"

    def refresh_url(self, secret: str) -> str:
        """Where a person gets another link, whose own is used up."""
        return f"{self.public_url.rstrip('/')}/connect/refresh/{secret}"


class Accounts:
    """What is done with connected accounts. What Stripe does not do raises ProcessorError.

    Who may ask for which organization is decided before.
    """

    def __init__(
        self,
        *,
        writer: Database,
        processor: ProcessorAccounts,
        urls: OnboardingUrls,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is told when payouts that waited for an account may go on."""
        self._writer = writer
        self._processor = processor
        self._urls = urls
        self._clock = clock
        self._wake = wake

    def worker(self) -> PeriodicWorker:
        """Reads accounts that were not read for a day, and forgets ways back that have ended."""
        return PeriodicWorker("payouts.accounts", _REREAD_INTERVAL, self.step)

    async def step(self) -> bool:
        """Do a bounded part of that. There is never more to do at once: it is meant to be slow."""
        now = self._clock.now()
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            await onboarding.delete_expired(connection, now - _FORGET_AFTER, _FORGET_BATCH)
            stale = await accounts.list_since_refresh(connection, now - _REREAD_AFTER, _REREAD_BATCH)
        for account in stale:
            try:
                await self.refresh_organization(account.organization_id)
            except Refused:
                # About this one alone; the call has said so in the log.
                continue
            except ProcessorError:
                # Nobody is answered now.
                break
        return False

    # Making one.

    async def ensure(self, organization_id: str, country_code: str) -> ConnectedAccount:
        """The account of an organization, made at Stripe if there is none; `country_code` may be "".

        Raises AlreadyExists if it is of another country, Unavailable if another call takes long to make it.
        """
        account = await self._begin(organization_id, country_code)
        for _ in range(_LOOKS):
            rules.check_same_country(account, country_code)
            if account.stripe_account_id is not None:
                return account
            account = await self._make(account, country_code)
        raise Unavailable("the connected account is being made")

    async def _begin(self, organization_id: str, country_code: str) -> ConnectedAccount:
        """The row, written before Stripe is asked."""
        new = rules.begun(organization_id, country_code, self._clock.now())
        async with self._writer.begin() as connection:
            await scope(connection, _of(organization_id))
            # Nothing happens if there is one: of calls at once, all go on with the row of the first.
            await accounts.create(connection, new)
            account = await accounts.find(connection, organization_id)
        if account is None:
            raise LookupError(f"the account of {organization_id} was just created, and is not there")
        return account

    async def _make(self, account: ConnectedAccount, country_code: str) -> ConnectedAccount:
        """One step. Every way out of it writes the row, reads it anew, or raises."""
        now, attempt_time = self._clock.now(), account.create_attempt_time
        if attempt_time is None:
            return await self._save(account, rules.asked_again(account, country_code, now))
        if now >= rules.key_end(account, attempt_time):
            return await self._look_up(account, attempt_time)
        try:
            facts = await self._processor.create(
                account.organization_id, account.country_code, account.create_key
            )
        except Refused:
            # Known to be so; the next attempt may name another country.
            await self._save(account, rules.not_made(account))
            raise
        except KeyConflict:
            # What asked otherwise was perhaps a version of ours before this one.
            return await self._save(account, rules.key_spent(account, self._clock.now()))
        except InDoubt as error:
            if error.status == 409:
                # Another call with our key makes the very account that we want.
                await asyncio.sleep(_PAUSE_SECONDS)
                return await self._read_row(account)
            if error.status >= 500:
                # Whether it was made or not, the key may answer so for a day.
                return await self._save(account, rules.key_spent(account, self._clock.now()))
            raise
        return await self._save(account, rules.read(account, facts, self._clock.now()))

    async def _look_up(self, account: ConnectedAccount, attempt_time: datetime) -> ConnectedAccount:
        """Adopt what the key made that has ended. Only if that is certainly nothing, there is another key."""
        # Before the look: what is made during it may be missed, and then nothing is settled.
        settled = rules.is_settled(account, attempt_time, self._clock.now())
        facts = await self._processor.find(account.organization_id, attempt_time)
        if facts is not None:
            return await self._save(account, rules.read(account, facts, self._clock.now()))
        if not settled:
            raise InDoubt("whether the account was made is not known yet")
        return await self._save(account, rules.not_made(account))

    # Reading it.

    async def refresh(self, stripe_account_id: str) -> ConnectedAccount | None:
        """Read an account at Stripe, and write down how it is; None if no organization has it."""
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            account = await accounts.find_by_stripe_id(connection, stripe_account_id)
        return None if account is None else await self.refresh_organization(account.organization_id)

    async def refresh_organization(self, organization_id: str) -> ConnectedAccount | None:
        """The same, of an organization; None if it has none here.

        One that Stripe does not have yet is answered as it is.
        """
        while True:
            # Its version is read first: what was written since then may be newer than what we read.
            account = await self.find(organization_id)
            if account is None or account.stripe_account_id is None:
                return account
            saved = await self._write(account, await self._read(account, account.stripe_account_id))
            # Somebody else was first: read again.
            if saved is not None:
                return saved

    async def find(self, organization_id: str) -> ConnectedAccount | None:
        """The account as it was last read."""
        async with self._writer.begin() as connection:
            await scope(connection, _of(organization_id))
            return await accounts.find(connection, organization_id)

    async def _read(self, account: ConnectedAccount, stripe_account_id: str) -> ConnectedAccount:
        now = self._clock.now()
        try:
            return rules.read(account, await self._processor.get(stripe_account_id), now)
        except Refused as error:
            if not error.is_missing:
                raise
            return rules.gone(account, now)

    async def _read_row(self, account: ConnectedAccount) -> ConnectedAccount:
        return await self.find(account.organization_id) or account

    async def _save(self, before: ConnectedAccount, after: ConnectedAccount) -> ConnectedAccount:
        """The account with the change; or, if somebody else was first, as it is now."""
        return await self._write(before, after) or await self._read_row(before)

    async def _write(self, before: ConnectedAccount, after: ConnectedAccount) -> ConnectedAccount | None:
        """Write a change, and let payouts that waited for it go on; None if somebody else was first."""
        async with self._writer.begin() as connection:
            await scope(connection, _of(before.organization_id))
            saved = await accounts.save(connection, before, after)
            # In the same transaction: a change that lets payouts go on is never written without that.
            if saved is not None and rules.can_do_more(before, saved):
                await payouts.release(connection, saved.organization_id, self._clock.now())
        if saved is not None:
            self._wake()
            _tell_operators(before, saved)
        return saved

    # The way there and back.

    async def begin_onboarding(self, account: ConnectedAccount) -> OnboardingLink:
        """A link to Stripe's pages for the bearer of an API key, and a way back that is good for some hours.

        The secret of the way back goes to Stripe and to the person's browser only; its hash is kept.
        """
        secret = secrets.token_urlsafe(32)
        async with self._writer.begin() as connection:
            await scope(connection, _of(account.organization_id))
            await onboarding.create(
                connection, _hash(secret), account.organization_id, self._clock.now() + SESSION
            )
        return await self.go_on(account, secret)

    async def go_on(self, account: ConnectedAccount, secret: str) -> OnboardingLink:
        """Another link, with the way back that there is: it ends when it would have ended."""
        if account.stripe_account_id is None:
            raise LookupError(f"the account of {account.organization_id} has not been made")
        return await self._processor.create_link(
            account.stripe_account_id,
            return_url=self._urls.return_url(secret),
            refresh_url=self._urls.refresh_url(secret),
        )

    async def use_way_back(self, secret: str) -> str | None:
        """The organization for which a person may act who came back with this secret; None if it is over."""
        # Who comes back is nobody's API key: the secret alone says for whom it is.
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            return await onboarding.use(connection, _hash(secret), self._clock.now())

    async def was_way_back(self, secret: str) -> bool:
        """Whether a secret that is over was one, not long ago."""
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            return await onboarding.is_known(connection, _hash(secret))


def _of(organization_id: str) -> Tenants:
    """What concerns one organization sees no other's rows."""
    return Tenants(ids=(organization_id,))


def _hash(secret: str) -> bytes:
    # 256 random bits: a slow hash would add nothing.
    return hashlib.sha256(secret.encode()).digest()


def _tell_operators(before: ConnectedAccount, after: ConnectedAccount) -> None:
    """Log what is news."""
    made = before.stripe_account_id is None and after.stripe_account_id is not None
    seen = (before.state, before.bank_payouts_enabled, before.disabled_reason)
    if not made and (after.state, after.bank_payouts_enabled, after.disabled_reason) == seen:
        return
    _log.info(
        "account.made" if made else "account.changed",
        organization_id=after.organization_id,
        stripe_account_id=after.stripe_account_id,
        state=after.state,
        bank_payouts_enabled=after.bank_payouts_enabled,
        disabled_reason=after.disabled_reason,
        deauthorized=after.deauthorized,
    )
