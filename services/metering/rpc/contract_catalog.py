"""The contracts, as the process remembers them."""

from services.kit.db import Connection
from services.metering.domain.contract import ContractIndex
from services.metering.rpc.catalog import ChangeCatalog
from services.metering.rpc.contract_convert import from_stored
from services.metering.store import contracts
from services.metering.store.contracts import StoredContract


class ContractCatalog(ChangeCatalog[ContractIndex, StoredContract]):
    """Which contracts there are."""

    def _empty(self) -> ContractIndex:
        return ContractIndex()

    async def _last_change(self, connection: Connection) -> int:
        return await contracts.last_change(connection)

    async def _list_changes(self, connection: Connection, *, after: int) -> tuple[list[StoredContract], int]:
        return await contracts.list_changes(connection, after=after)

    def _apply(self, changes: list[StoredContract]) -> None:
        self._index.add(map(from_stored, changes))
