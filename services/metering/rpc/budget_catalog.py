"""The budgets, as the process remembers them."""

from services.kit.db import Connection
from services.metering.domain.budget import Budget, BudgetIndex
from services.metering.rpc.catalog import ChangeCatalog
from services.metering.store import budgets


class BudgetCatalog(ChangeCatalog[BudgetIndex, Budget]):
    """Which budgets count."""

    def _empty(self) -> BudgetIndex:
        return BudgetIndex()

    async def _last_change(self, connection: Connection) -> int:
        return await budgets.last_change(connection)

    async def _list_changes(self, connection: Connection, *, after: int) -> tuple[list[Budget], int]:
        return await budgets.list_changes(connection, after=after)

    def _apply(self, changes: list[Budget]) -> None:
        self._index = self._index.updated(changes)
