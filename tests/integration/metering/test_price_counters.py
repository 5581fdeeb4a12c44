"""Counters of prices, statement by statement."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from random import Random

import psycopg
import pytest

from services.kit.db import Database
from services.kit.tenancy import Tenants, scope
from services.metering.domain.price_counter import CounterPeriod, PriceCounterKey
from services.metering.store import price_counters
from services.metering.store.price_counters import MissingCounters

MAY = datetime(2026, 5, 1, tzinfo=UTC)
JUNE = datetime(2026, 6, 1, tzinfo=UTC)
PERIOD = CounterPeriod("cus_1", "org_a", "USD", MAY)
INPUT = PriceCounterKey(PERIOD, "pb_1/run/input")


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Database]:
    database = Database(
        # Many wait for each other here, on however slow a machine.
        database_url,
        role="metering_writer",
        schema="metering",
        hot_pool_size=6,
        wait=timedelta(minutes=2),
    )
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def add(writer: Database, amounts: Mapping[PriceCounterKey, int]) -> dict[PriceCounterKey, int]:
    """Add to counters, as a charge does; what they were before."""
    while True:
        try:
            async with writer.hot() as connection:
                before = await price_counters.lock(connection, amounts)
                after = {key: before[key] + amount for key, amount in amounts.items()}
                await price_counters.move(connection, after)
            return before
        except MissingCounters as error:
            async with writer.call() as connection:
                await price_counters.make(connection, error.keys)


async def test_what_was_counted_is_found_by_each_part_of_its_key(writer: Database) -> None:
    others = [
        PriceCounterKey(PERIOD._replace(customer_id="cus_2"), INPUT.name),
        PriceCounterKey(PERIOD._replace(organization_id="org_b"), INPUT.name),
        PriceCounterKey(PERIOD._replace(currency_code="EUR"), INPUT.name),
        PriceCounterKey(PERIOD._replace(start=JUNE), INPUT.name),
        PriceCounterKey(PERIOD, "allowance:input_tokens"),
    ]
    amounts = {key: 10**18 + number for number, key in enumerate([INPUT, *others])}

    assert await add(writer, amounts) == dict.fromkeys(amounts, 0)
    assert await add(writer, dict.fromkeys(reversed(amounts), 1)) == amounts
    assert await add(writer, {INPUT: 0}) == {INPUT: 10**18 + 1}


async def test_what_was_locked_only_was_not_counted_in(writer: Database) -> None:
    other = PriceCounterKey(PERIOD, "pb_1/run:charged")
    async with writer.hot() as connection:
        with pytest.raises(MissingCounters):
            await price_counters.lock(connection, [INPUT])
        await price_counters.make(connection, [INPUT, other])
        # What exists is left as it is.
        await price_counters.make(connection, [INPUT])
        assert await price_counters.lock(connection, [INPUT, other]) == {INPUT: 0, other: 0}
        # That nothing was charged is something else.
        await price_counters.move(connection, {other: 0})

    async with writer.begin() as connection:
        await scope(connection, Tenants(ids=("cus_1",)))
        assert await price_counters.values_of(connection, PERIOD) == {other.name: 0}


async def test_nothing_is_locked_without_a_statement(writer: Database) -> None:
    async with writer.hot() as connection:
        assert await price_counters.lock(connection, []) == {}
        await price_counters.move(connection, {})


async def test_those_that_share_counters_wait_for_each_other_and_never_deadlock(writer: Database) -> None:
    random = Random(7)
    keys = [
        PriceCounterKey(PERIOD._replace(customer_id=f"cus_{number}"), name)
        for number in range(6)
        for name in ("pb_1/run/input", "pb_1/run:charged")
    ]

    async def charge() -> dict[PriceCounterKey, int]:
        some = random.sample(keys, random.randint(1, len(keys)))
        # Not retried: a deadlock would fail the test.
        return await add(writer, dict.fromkeys(some, 1))

    found = await asyncio.gather(*(charge() for _ in range(60)))

    # Everybody found another number, one after the other.
    for key in keys:
        assert sorted(one[key] for one in found if key in one) == list(
            range(sum(key in one for one in found))
        )


async def test_what_is_rolled_back_was_not_counted(writer: Database) -> None:
    async with writer.hot() as connection, connection.transaction(force_rollback=True):
        await price_counters.make(connection, [INPUT])
        await price_counters.lock(connection, [INPUT])
        await price_counters.move(connection, {INPUT: 5})

    assert await add(writer, {INPUT: 1}) == {INPUT: 0}


@pytest.mark.parametrize(
    ("tenant", "sees"), [("cus_1", True), ("org_a", True), ("cus_2", False), ("org_b", False)]
)
async def test_counters_are_seen_by_their_customer_and_their_organization(
    writer: Database, tenant: str, sees: bool
) -> None:
    await add(writer, {INPUT: 5})

    async with writer.begin() as connection:
        await scope(connection, Tenants(ids=(tenant,)))
        assert await price_counters.values_of(connection, PERIOD) == ({INPUT.name: 5} if sees else {})


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE metering.price_counter SET value = 0",
        "INSERT INTO metering.price_counter VALUES ('\\x', 'cus_1', 'org_a', 'USD', now(), 'x', 0)",
        "DELETE FROM metering.price_counter",
        "TRUNCATE metering.price_counter",
    ],
)
async def test_the_writer_counts_by_functions_only(writer: Database, statement: str) -> None:
    async with writer.hot() as connection:
        await connection.execute("SELECT set_config('tallystick.platform', 'on', true)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(statement.encode())
