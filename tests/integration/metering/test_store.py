"""The queue of pending charges, statement by statement."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from services.kit.db import Database
from services.metering.domain.price_book import UnitPrice
from services.metering.domain.rating import RatedLine
from services.metering.domain.usage_event import EventKey
from services.metering.domain.usage_record import (
    ChargeKey,
    Component,
    IntendedCharge,
    KnownUsage,
    UsageRecord,
)
from services.metering.store import pending_charges, usage_events
from services.metering.store.pending_charges import FailedCharge

NOW = timedelta(0)
HOUR = timedelta(hours=1)


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, role="metering_writer", schema="metering")
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def record(number: int) -> UsageRecord:
    return UsageRecord(
        charge=IntendedCharge(
            key=EventKey("cus_1", f"run-{number}", number),
            organization_id="org_a",
            agent_id="agt_a",
            occur_time=datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC),
            currency_code="USD",
            amount_micros=10**14 - number,
            price_version_id="pv_1",
            evidence_hash=bytes(32),
        ),
        content=bytes(range(256)),
        evidence_ref="s3://größe/'\"\\{}",
        lines=(
            RatedLine("fee", 1, UnitPrice("0.005"), 5_000),
            RatedLine("in.put-_", 10**12, UnitPrice("0.60", 10**12), 10**14),
        ),
    )


async def store(writer: Database, *records: UsageRecord, delay: timedelta = NOW) -> list[EventKey]:
    async with writer.hot() as connection:
        return list(await usage_events.record(connection, records, delay))


async def take(
    writer: Database, limit: int = 10, first: timedelta = HOUR, longest: timedelta = 24 * HOUR
) -> list[IntendedCharge]:
    async with writer.hot() as connection:
        return await pending_charges.take(connection, limit, first_delay=first, longest_delay=longest)


async def test_what_was_recorded_comes_back_as_it_was(writer: Database) -> None:
    assert await store(writer, record(1)) == []

    async with writer.hot() as connection:
        known = await usage_events.record(connection, [record(1), record(2)], NOW)

    assert list(known.values()) == [KnownUsage(record(1), pending=True)]


async def test_events_that_are_recorded_at_once_are_recorded_once(writer: Database) -> None:
    events = [record(number) for number in range(50)]

    known = await asyncio.gather(
        *(store(writer, *(events if turn % 2 else events[::-1])) for turn in range(6))
    )

    assert sum(50 - len(keys) for keys in known) == 50
    assert len(await take(writer, limit=100)) == 50


async def test_a_new_event_is_left_to_its_call_for_a_while(writer: Database) -> None:
    await store(writer, record(1), delay=HOUR)

    assert await take(writer) == []


async def test_a_charge_that_was_taken_is_nobody_elses(writer: Database) -> None:
    await store(writer, *(record(number) for number in range(10)))

    taken = await asyncio.gather(*(take(writer, limit=3) for _ in range(5)))

    assert sorted(charge.key.ordinal for charges in taken for charge in charges) == list(range(10))
    assert await take(writer) == []


async def test_attempts_become_rarer_up_to_a_limit(writer: Database, database_url: str) -> None:
    await store(writer, record(1))
    delays = []
    for _ in range(6):
        async with writer.hot() as connection:
            assert await pending_charges.take(connection, 1, first_delay=HOUR, longest_delay=10 * HOUR)
            await connection.execute("SELECT set_config('tallystick.platform', 'on', true)")
            cursor = await connection.execute("SELECT next_attempt_time - now() FROM metering.pending_charge")
            delays += await cursor.fetchall()
        with psycopg.connect(database_url) as admin:
            admin.execute("UPDATE metering.pending_charge SET next_attempt_time = now()")

    assert delays == [(HOUR,), (2 * HOUR,), (4 * HOUR,), (8 * HOUR,), (10 * HOUR,), (10 * HOUR,)]


async def test_a_refused_charge_stays_and_is_not_tried_again(writer: Database) -> None:
    await store(writer, record(1), record(2))
    async with writer.hot() as connection:
        await pending_charges.note_failed(
            connection,
            [
                FailedCharge(record(1).charge.charge_key, "CUSTOMER_NOT_FOUND: gone", True),
                FailedCharge(record(2).charge.charge_key, "INTERNAL: once more", False),
            ],
        )

    assert [charge.key for charge in await take(writer)] == [record(2).charge.key]
    async with writer.hot() as connection:
        assert await pending_charges.count_refused(connection) == 1
        # The host reported it again, and this time the ledger took it.
        await pending_charges.confirm(connection, [record(1).charge.charge_key])
        assert await pending_charges.count_refused(connection) == 0


async def test_confirming_nothing_and_strangers_is_fine(writer: Database) -> None:
    await store(writer, record(1))
    async with writer.hot() as connection:
        await pending_charges.confirm(connection, [])
        await pending_charges.note_failed(connection, [])
        await pending_charges.confirm(connection, [ChargeKey("cus_x", "none", 0, Component.BASE)])

    assert len(await take(writer)) == 1
