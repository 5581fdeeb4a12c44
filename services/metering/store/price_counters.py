"""Counters of prices: what a customer used before in a billing period.

Whoever rates by counters locks all of them by one call of `lock`, in the transaction that records what was
rated, and moves them before it commits: charges that share a counter come one after the other. See
metering.lock_price_counters for the order of all locks.
"""

from collections.abc import Collection, Mapping

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection as Connection

from services.kit.db import single
from services.metering.domain.price_counter import CounterPeriod, PriceCounterKey
from services.metering.store.tables import price_counter


class MissingCounters(Exception):
    """Some of these do not exist yet: make them, in a transaction of their own, and try again."""

    def __init__(self, keys: Collection[PriceCounterKey]) -> None:
        super().__init__(f"some of {len(keys)} counters do not exist")
        self.keys = keys


async def lock(
    connection: AsyncConnection[TupleRow], keys: Collection[PriceCounterKey]
) -> dict[PriceCounterKey, int]:
    """Lock counters until the transaction ends; their values, 0 for those in which nothing was counted yet.

    Keys must be distinct. Raises MissingCounters; those in which an event was counted exist.
    """
    if not keys:
        return {}
    by_id = sorted((key.counter_id, key) for key in keys)
    cursor = await connection.execute(
        "SELECT metering.lock_price_counters(%b::bytea[])", ([counter_id for counter_id, _ in by_id],)
    )
    (values,) = await single(cursor)
    if values is None:
        raise MissingCounters(keys)
    return {key: value for (_, key), value in zip(by_id, values, strict=True)}


async def make(connection: AsyncConnection[TupleRow], keys: Collection[PriceCounterKey]) -> None:
    """Make counters that do not exist yet, in which nothing was counted."""
    await connection.execute(
        "SELECT metering.make_price_counters("
        "%b::bytea[], %b::text[], %b::text[], %b::text[], %b::timestamptz[], %b::text[])",
        (
            [key.counter_id for key in keys],
            [key.period.customer_id for key in keys],
            [key.period.organization_id for key in keys],
            [key.period.currency_code for key in keys],
            [key.period.start for key in keys],
            [key.name for key in keys],
        ),
    )


async def move(connection: AsyncConnection[TupleRow], values: Mapping[PriceCounterKey, int]) -> None:
    """Set counters that this transaction has locked."""
    if not values:
        return
    await connection.execute(
        "SELECT metering.move_price_counters(%b::bytea[], %b::bigint[])",
        ([key.counter_id for key in values], list(values.values())),
    )


async def values_of(connection: Connection, period: CounterPeriod) -> dict[str, int]:
    """The counters of a period in which something was counted, by name, as they are now; those that the
    connection's tenants may see.
    """
    query = select(price_counter.c.name, price_counter.c.value).where(
        price_counter.c.customer_id == period.customer_id,
        price_counter.c.organization_id == period.organization_id,
        price_counter.c.currency_code == period.currency_code,
        price_counter.c.period_start == period.start,
        price_counter.c.value.is_not(None),
    )
    return {row.name: row.value for row in await connection.execute(query)}
