"""What customers used before in their billing periods, for estimates: nobody is locked out meanwhile."""

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.metering.domain.price_counter import CounterPeriod
from services.metering.domain.rating import Counters, counter_names
from services.metering.rpc.terms import Terms
from services.metering.store import price_counters


class CounterReader:
    """Reads counters of prices."""

    def __init__(self, reader: Database) -> None:
        self._reader = reader

    async def current(self, customer_id: str, terms: Terms) -> Counters:
        """What a price depends on that such work would be charged by; nothing for most prices."""
        if not counter_names(terms.price, terms.agreed.compiled):
            return {}
        period = CounterPeriod(
            customer_id,
            terms.organization_id,
            terms.currency_code,
            terms.period.start,
        )
        async with self._reader.begin() as connection:
            # The caller learns no more of it than what its run may cost.
            await scope(connection, PLATFORM)
            return await price_counters.values_of(connection, period)
