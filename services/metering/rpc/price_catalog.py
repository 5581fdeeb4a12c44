"""The published prices, as the process remembers them."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from services.kit.db import Connection, Database
from services.kit.tenancy import PLATFORM, scope
from services.metering.domain.compiled_price import CompiledPrice, compile_price_list
from services.metering.domain.price_index import PriceIndex
from services.metering.rpc.catalog import Catalog
from services.metering.store import price_books

_MAX_VERSIONS: Final = 1_000


class PriceCatalog(Catalog[PriceIndex]):
    """Which versions are in force, and their prices, compiled.

    Published versions never change, so what is compiled stays right.
    """

    def __init__(self, reader: Database, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__(reader, monotonic=monotonic)
        self._compiled: dict[str, Sequence[CompiledPrice]] = {}

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

    def _empty(self) -> PriceIndex:
        return PriceIndex()

    async def _look(self, connection: Connection) -> None:
        if await price_books.count_published(connection) != len(self._index):
            self._index = PriceIndex(await price_books.list_published(connection))
