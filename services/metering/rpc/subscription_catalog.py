"""What customers are subscribed to, as the process remembers it."""

from services.kit.db import Connection
from services.metering.domain.contract import ContractKey
from services.metering.domain.subscription import Subscribed, SubscriptionIndex
from services.metering.rpc.catalog import ChangeCatalog
from services.metering.rpc.contract_convert import stored_billing_period
from services.metering.rpc.subscription_convert import included_in
from services.metering.store import subscriptions
from services.metering.store.subscriptions import StoredSegment
from tallystick.metering.v1 import contract_pb2


class SubscriptionCatalog(ChangeCatalog[SubscriptionIndex, tuple[int, StoredSegment]]):
    """What customers are subscribed to."""

    def _empty(self) -> SubscriptionIndex:
        return SubscriptionIndex()

    async def _last_change(self, connection: Connection) -> int:
        return await subscriptions.last_change(connection)

    async def _list_changes(
        self, connection: Connection, *, after: int
    ) -> tuple[list[tuple[int, StoredSegment]], int]:
        return await subscriptions.list_changes(connection, after=after)

    def _apply(self, changes: list[tuple[int, StoredSegment]]) -> None:
        for number, segment in changes:
            key = ContractKey(segment.customer_id, segment.organization_id, segment.currency_code)
            billing_period = stored_billing_period(
                contract_pb2.BillingPeriod.FromString(segment.billing_period)
            )
            included = None if segment.content is None else included_in(segment.content)
            self._index.add(
                key,
                Subscribed(segment.subscription_id, number, segment.start_time, billing_period, included),
            )
