"""What the process remembers of everybody's settings, and how it keeps that fresh."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from services.kit.db import Connection, Database
from services.kit.tenancy import PLATFORM, scope

_MAX_AGE_SECONDS: Final = 1.0

Index = TypeVar("Index")
Change = TypeVar("Change")


class Catalog(ABC, Generic[Index]):
    """An index that is at most a second old.

    What was just changed may thus apply to work that is reported to other replicas a second later.
    """

    def __init__(self, reader: Database, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._monotonic = monotonic
        self._index = self._empty()
        self._fresh_until = float("-inf")
        self._expirations = 0
        self._refreshing = asyncio.Lock()

    def expire(self) -> None:
        """Look for changes before the index is used again: something was just changed here."""
        self._expirations += 1
        self._fresh_until = float("-inf")

    async def index(self) -> Index:
        """The index, which the caller must not change."""
        # One look for all who find the index old at once.
        if not self._is_fresh():
            async with self._refreshing:
                if not self._is_fresh():
                    await self._refresh()
        return self._index

    @abstractmethod
    def _empty(self) -> Index:
        """The index of nothing."""

    @abstractmethod
    async def _look(self, connection: Connection) -> None:
        """Bring the index up to what is stored. The connection may read everybody's rows."""

    def _is_fresh(self) -> bool:
        return self._monotonic() < self._fresh_until

    async def _refresh(self) -> None:
        asked_at, expirations = self._monotonic(), self._expirations
        async with self._reader.begin() as connection:
            # Everybody's, since each event is looked up by its own customer or organization.
            await scope(connection, PLATFORM)
            await self._look(connection)
        # Not if something was changed meanwhile, which this look may have missed.
        if self._expirations == expirations:
            self._fresh_until = asked_at + _MAX_AGE_SECONDS


class ChangeCatalog(Catalog[Index], Generic[Index, Change]):
    """A catalog of rows whose every change has a number: a look reads only what came since the last one."""

    _seen = 0

    @abstractmethod
    async def _last_change(self, connection: Connection) -> int:
        """The number of the newest change, 0 if there is none."""

    @abstractmethod
    async def _list_changes(self, connection: Connection, *, after: int) -> tuple[list[Change], int]:
        """What changed after that number, and the number of the newest of it."""

    @abstractmethod
    def _apply(self, changes: list[Change]) -> None:
        """Put the changes into the index."""

    async def _look(self, connection: Connection) -> None:
        latest = await self._last_change(connection)
        if latest < self._seen:
            # An older database was restored under us.
            self._index, self._seen = self._empty(), 0
        if latest > self._seen:
            changes, self._seen = await self._list_changes(connection, after=self._seen)
            self._apply(changes)
