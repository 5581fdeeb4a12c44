"""What events about connected accounts come to: the account is read again."""

import dataclasses
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, Protocol

from services.kit import log
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.payouts.domain.account import ConnectedAccount
from services.payouts.domain.event import (
    DONE,
    Handler,
    Outcome,
    ProcessorEvent,
    failing,
    ignored,
    quarantined,
)
from services.payouts.processor.errors import KeyRefused, Refused
from services.payouts.store import accounts

# An account has its first events before its id is written down here: that comes with the answer that made it.
_PATIENCE: Final = timedelta(minutes=1)
_DEAUTHORIZED: Final = "account.application.deauthorized"
_log = log.get_logger()


class AccountReader(Protocol):
    """Reads accounts at the payment processor."""

    async def refresh(self, stripe_account_id: str) -> object:
        """Read an account that is known here, and keep what it is now. Raises ProcessorError."""


class AccountEvents:
    """Handles events about connected accounts, their capabilities and their bank accounts."""

    def __init__(self, *, writer: Database, reader: AccountReader, clock: Clock) -> None:
        self._writer = writer
        self._reader = reader
        self._clock = clock

    def handlers(self) -> Mapping[str, Handler]:
        """Handlers by prefix of the type of event."""
        return {"account.": self.changed, "capability.": self.changed, _DEAUTHORIZED: self.deauthorized}

    async def changed(self, event: ProcessorEvent) -> Outcome:
        """Something about an account is not as it was."""
        if not event.stripe_account_id:
            return ignored("of the platform's own account")
        if await find_account(self._writer, event.stripe_account_id) is None:
            return of_unknown_account(event, self._clock.now())
        await self._reader.refresh(event.stripe_account_id)
        return DONE

    async def deauthorized(self, event: ProcessorEvent) -> Outcome:
        """The owner of an account disconnected the platform, unless it was connected again since."""
        while True:
            account = await find_account(self._writer, event.stripe_account_id)
            if account is None or account.deauthorized:
                return DONE if account else of_unknown_account(event, self._clock.now())
            try:
                await self._reader.refresh(event.stripe_account_id)
            except (KeyRefused, Refused) as error:
                # The event alone proves nothing: it may be late. Nor does the refusal, which a wrong API key
                # would get for every account.
                if not _says_gone(error):
                    raise
            else:
                return DONE
            gone = dataclasses.replace(account, deauthorized=True, refresh_time=self._clock.now())
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                saved = await accounts.save(connection, account, gone)
            if saved is not None:
                _log.warning(
                    "account.disconnected",
                    organization_id=account.organization_id,
                    stripe_account_id=account.stripe_account_id,
                )
                return DONE


async def find_account(writer: Database, stripe_account_id: str) -> ConnectedAccount | None:
    """The account with this id at the payment processor."""
    async with writer.begin() as connection:
        await scope(connection, PLATFORM)
        return await accounts.find_by_stripe_id(connection, stripe_account_id)


def of_unknown_account(event: ProcessorEvent, now: datetime) -> Outcome:
    """What becomes of an event of an account that is not known here, or not yet."""
    if now - event.receive_time < _PATIENCE:
        return failing("the account is not known here yet")
    return quarantined("the account is not known here")


def _says_gone(error: KeyRefused | Refused) -> bool:
    return error.is_missing if isinstance(error, Refused) else error.is_account_gone
