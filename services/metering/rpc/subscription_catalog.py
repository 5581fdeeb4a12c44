"""What customers are subscribed to, as the process remembers it."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.metering.domain.contract import ContractKey
from services.metering.domain.subscription import Subscribed, SubscriptionIndex
from services.metering.rpc.contract_convert import stored_billing_period
from services.metering.rpc.subscription_convert import included_in
from services.metering.store import subscriptions
from services.metering.store.subscriptions import StoredSegment
from tallystick.metering.v1 import contract_pb2

_MAX_AGE_SECONDS: Final = 1.0


class SubscriptionCatalog:
    """What customers are subscribed to, at most a second old."""

    def __init__(self, reader: Database, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._monotonic = monotonic
        self._index = SubscriptionIndex()
        self._seen = 0
        self._fresh_until = float("-inf")
        self._expirations = 0
        self._refreshing = asyncio.Lock()

    def expire(self) -> None:
        """Look for changes before the next event is priced: a subscription was just changed here."""
        self._expirations += 1
        self._fresh_until = float("-inf")

    async def index(self) -> SubscriptionIndex:
        """The index of subscriptions."""
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
            # Everybody's: each event is priced by those of its own customer.
            await scope(connection, PLATFORM)
            latest = await subscriptions.last_change(connection)
            if latest < self._seen:
                # An older database was restored under us.
                self._index, self._seen = SubscriptionIndex(), 0
            if latest > self._seen:
                changed, self._seen = await subscriptions.list_changes(connection, after=self._seen)
                for number, segment in changed:
                    self._add(number, segment)
        # Not if one was changed meanwhile, which this look may have missed.
        if self._expirations == expirations:
            self._fresh_until = asked_at + _MAX_AGE_SECONDS

    def _add(self, number: int, segment: StoredSegment) -> None:
        key = ContractKey(segment.customer_id, segment.organization_id, segment.currency_code)
        billing_period = stored_billing_period(contract_pb2.BillingPeriod.FromString(segment.billing_period))
        included = None if segment.content is None else included_in(segment.content)
        self._index.add(
            key, Subscribed(segment.subscription_id, number, segment.start_time, billing_period, included)
        )
