"""The published prices, as the process remembers them."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.metering.domain.price_index import PriceIndex
from services.metering.domain.rating import CompiledPrice, compile_price_list
from services.metering.store import price_books

_MAX_AGE_SECONDS: Final = 1.0
_MAX_VERSIONS: Final = 1_000


class PriceCatalog:
    """Which versions are in force, at most a second old, and their prices, compiled.

    A version that is published with effect at once may thus price events of other replicas a second later.
    Published versions never change, so what is compiled stays right.
    """

    def __init__(self, reader: Database, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._monotonic = monotonic
        self._index = PriceIndex()
        self._fresh_until = float("-inf")
        self._expirations = 0
        self._refreshing = asyncio.Lock()
        self._compiled: dict[str, Sequence[CompiledPrice]] = {}

    def expire(self) -> None:
        """Look for new versions before the next event is priced: one was just published here."""
        self._expirations += 1
        self._fresh_until = float("-inf")

    async def index(self) -> PriceIndex:
        """The index of published versions."""
        # One look for all who find the index old at once.
        if not self._is_fresh():
            async with self._refreshing:
                if not self._is_fresh():
                    await self._refresh()
        return self._index

    async def compiled(self, price_version_ids: Collection[str]) -> Mapping[str, Sequence[CompiledPrice]]:
        """The prices of published versions, by version id."""
        found = {id_: self._compiled[id_] for id_ in price_version_ids if id_ in self._compiled}
        missing = [id_ for id_ in price_version_ids if id_ not in found]
        if missing:
            async with self._reader.begin() as connection:
                await scope(connection, PLATFORM)
                loaded = await price_books.load_versions(connection, missing)
            for id_, version in loaded.items():
                found[id_] = self._compiled[id_] = compile_price_list(
                    version.price_list, version.price_book_id
                )
            while len(self._compiled) > _MAX_VERSIONS:
                del self._compiled[next(iter(self._compiled))]
        return found

    def _is_fresh(self) -> bool:
        return self._monotonic() < self._fresh_until

    async def _refresh(self) -> None:
        asked_at, expirations = self._monotonic(), self._expirations
        async with self._reader.begin() as connection:
            # Everybody's prices: each event is priced by the books of its own agent's organization.
            await scope(connection, PLATFORM)
            if await price_books.count_published(connection) != len(self._index):
                self._index = PriceIndex(await price_books.list_published(connection))
        # Not if a version was published meanwhile, which this look may have missed.
        if self._expirations == expirations:
            self._fresh_until = asked_at + _MAX_AGE_SECONDS
