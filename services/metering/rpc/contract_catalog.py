"""The contracts, as the process remembers them."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.metering.domain.contract import ContractIndex
from services.metering.rpc.contract_convert import from_stored
from services.metering.store import contracts

_MAX_AGE_SECONDS: Final = 1.0


class ContractCatalog:
    """Which contracts there are, at most a second old.

    A contract that was just changed may thus apply to work that is reported to other replicas a second later.
    """

    def __init__(self, reader: Database, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._monotonic = monotonic
        self._index = ContractIndex()
        self._seen = 0
        self._fresh_until = float("-inf")
        self._expirations = 0
        self._refreshing = asyncio.Lock()

    def expire(self) -> None:
        """Look for changes before the next event is priced: a contract was just changed here."""
        self._expirations += 1
        self._fresh_until = float("-inf")

    async def index(self) -> ContractIndex:
        """The index of contracts."""
        # One look for all who find the index old at once.
        if not self._is_fresh():
            async with self._refreshing:
                if not self._is_fresh():
                    await self._refresh()
        return self._index

    def _is_fresh(self) -> bool:
        return self._monotonic() < self._fresh_until

    async def _refresh(self) -> None:
        asked_at, expirations = self._monotonic(), self._expirations
        async with self._reader.begin() as connection:
            # Everybody's contracts: each event is priced by those of its own customer.
            await scope(connection, PLATFORM)
            latest = await contracts.last_change(connection)
            if latest < self._seen:
                # An older database was restored under us.
                self._index, self._seen = ContractIndex(), 0
            if latest > self._seen:
                changed, self._seen = await contracts.list_changes(connection, after=self._seen)
                self._index.add(map(from_stored, changed))
        # Not if a contract was changed meanwhile, which this look may have missed.
        if self._expirations == expirations:
            self._fresh_until = asked_at + _MAX_AGE_SECONDS
