"""Counting and reserving against budgets, statement by statement."""

import asyncio
import random
from collections import Counter as Sums
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from services.kit.db import Database
from services.metering.domain.budget import Alert, CounterKey
from services.metering.store import budgets
from services.metering.store.budgets import CounterState, OpenReservation, Refusal, Spend
from tests.integration.metering.budget_world import NOW, a_budget, change, create

FOR_EVER = CounterKey("bud_1", None, "")
TODAY = CounterKey("bud_1", datetime(2026, 11, 20, tzinfo=UTC), "")
HOUR = timedelta(hours=1)


def later(by: timedelta = HOUR) -> datetime:
    # PostgreSQL judges expiry by its own clock.
    return datetime.now(UTC) + by


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, role="metering_writer", schema="metering", hot_pool_size=8)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def count(writer: Database, *spends: Spend) -> budgets.CountedSpend:
    async with writer.hot() as connection:
        return await budgets.count_spend(connection, spends)


async def reserve(
    writer: Database,
    reservation_id: str,
    limits: Mapping[CounterKey, int],
    amount: int,
    expire_time: datetime | None = None,
) -> Refusal | None:
    async with writer.hot() as connection:
        return await budgets.reserve_budgets(
            connection, reservation_id, limits, amount, expire_time or later()
        )


async def end(writer: Database, *reservation_ids: str) -> None:
    async with writer.hot() as connection:
        await budgets.end_budgets(connection, reservation_ids)


async def load(writer: Database, *keys: CounterKey) -> dict[CounterKey, CounterState]:
    async with writer.hot() as connection:
        return await budgets.load_counters(connection, keys)


async def state(writer: Database, key: CounterKey = FOR_EVER) -> tuple[int, dict[str, int]]:
    found = (await load(writer, key))[key]
    return found.spent, {one.reservation_id: one.amount for one in found.open}


async def test_counters_add_up_each_by_itself(writer: Database) -> None:
    await create(writer, a_budget(), a_budget("bud_2"))
    of_workflow = CounterKey("bud_2", None, "wf-1")

    first = await count(writer, Spend(TODAY, 5), Spend(FOR_EVER, 1), Spend(of_workflow, 0), Spend(TODAY, 7))
    second = await count(writer, Spend(TODAY, 100))

    assert first == ({TODAY: 12, FOR_EVER: 1, of_workflow: 0}, [])
    assert second == ({TODAY: 112}, [])
    assert await count(writer) == ({}, ())
    nothing_yet = CounterKey("bud_2", None, "wf-2")
    assert await load(writer, TODAY, FOR_EVER, nothing_yet) == {
        TODAY: CounterState(112, ()),
        FOR_EVER: CounterState(1, ()),
        nothing_yet: CounterState(0, ()),
    }
    assert await load(writer) == {}


async def test_a_budget_that_is_gone_counts_and_refuses_nothing(writer: Database) -> None:
    await create(writer, a_budget())
    await change(writer, a_budget(delete_time=NOW))
    unknown = CounterKey("bud_none", None, "")

    assert await count(writer, Spend(FOR_EVER, 5), Spend(unknown, 5)) == ({}, [])
    assert await reserve(writer, "rsv_1", {FOR_EVER: 1, unknown: 1}, 5) is None
    assert await state(writer) == (0, {})


async def test_what_was_rolled_back_was_not_spent(writer: Database) -> None:
    await create(writer, a_budget(alert_thresholds=(1,)))

    async def fail() -> None:
        async with writer.hot() as connection:
            await budgets.count_spend(connection, [Spend(FOR_EVER, 10)])
            raise LookupError("the usage was not recorded")

    with pytest.raises(LookupError):
        await fail()

    assert await state(writer) == (0, {})
    assert len((await count(writer, Spend(FOR_EVER, 10))).alerts) == 1


async def test_a_sum_beyond_64_bits_stays_at_its_end(writer: Database) -> None:
    await create(writer, a_budget(alert_thresholds=(1_000,)))
    most = 2**63 - 1

    counted = await count(writer, *[Spend(FOR_EVER, most)] * 3)
    again = await count(writer, Spend(FOR_EVER, most))

    assert counted.spent == again.spent == {FOR_EVER: most}
    assert [alert.threshold for alert in counted.alerts] == [1_000]
    refused = await reserve(writer, "rsv_1", {FOR_EVER: most}, 1)
    assert refused == Refusal(FOR_EVER, most, 0)


async def test_transactions_that_cross_add_up_and_never_deadlock(writer: Database, database_url: str) -> None:
    keys = [CounterKey(f"bud_{number}", None, "") for number in range(6)]
    await create(writer, *(a_budget(key.budget_id, alert_thresholds=(1, 50, 100)) for key in keys))
    rng = random.Random(7)
    batches = [[Spend(key, rng.randrange(1, 40)) for key in rng.sample(keys, k=5)] * 2 for _ in range(60)]

    async def pay(number: int, batch: Sequence[Spend]) -> Sequence[Alert]:
        reservation_id = f"rsv_{number}"
        await reserve(writer, reservation_id, {spend.key: 10**9 for spend in batch}, 10)
        async with writer.hot() as connection:
            counted = await budgets.count_spend(connection, batch)
            await budgets.end_budgets(connection, [reservation_id])
            return counted.alerts

    # A deadlock would fail one of these: nothing here retries.
    alerts = await asyncio.gather(*(pay(number, batch) for number, batch in enumerate(batches)))

    wanted: Sums[CounterKey] = Sums()
    for batch in batches:
        for spend in batch:
            wanted[spend.key] += spend.amount_micros
    assert {key: (found.spent, found.open) for key, found in (await load(writer, *keys)).items()} == {
        key: (wanted[key], ()) for key in keys
    }
    told = Sums((alert.budget_id, alert.threshold) for some in alerts for alert in some)
    assert told == {(key.budget_id, threshold): 1 for key in keys for threshold in (1, 50, 100)}
    with psycopg.connect(database_url) as admin:
        kept = admin.execute("SELECT budget_id, threshold FROM metering.budget_alert").fetchall()
    assert Sums(kept) == told


async def test_each_threshold_alerts_once_per_period_and_workflow(writer: Database) -> None:
    budget = a_budget(alert_thresholds=(50, 100, 120))
    await create(writer, budget)
    tomorrow = TODAY._replace(period_start=datetime(2026, 11, 21, tzinfo=UTC))

    async def thresholds(key: CounterKey, amount: int) -> list[int]:
        counted = await count(writer, Spend(key, amount))
        assert all(alert.spent_micros == counted.spent[key] for alert in counted.alerts)
        assert all(alert[:3] == key for alert in counted.alerts)
        return [alert.threshold for alert in counted.alerts]

    assert await thresholds(TODAY, 499) == []
    assert await thresholds(TODAY, 1) == [50]
    assert await thresholds(TODAY, 600) == [100]
    assert await thresholds(TODAY, 0) == []
    assert await thresholds(tomorrow, 1_200) == [50, 100, 120]
    assert await thresholds(FOR_EVER, 500) == [50]
    assert await thresholds(FOR_EVER._replace(workflow_id="wf"), 500) == [50]
    # The limit as it is now counts, and what was told stays told.
    await change(writer, replace(budget, limit_micros=500, alert_thresholds=(50, 100, 200)))
    assert await thresholds(TODAY, 1) == [200]
    assert await thresholds(FOR_EVER, 1) == [100]


async def test_a_reservation_takes_room_in_all_counters_or_in_none(writer: Database) -> None:
    await create(writer, a_budget(), a_budget("bud_2"))
    other = CounterKey("bud_2", None, "")
    limits = {other: 700, FOR_EVER: 1_000}
    await count(writer, Spend(FOR_EVER, 300))
    expire_time = later().replace(microsecond=0)

    assert await reserve(writer, "rsv_1", limits, 700, expire_time) is None
    # Both have no room now; the first is named.
    assert await reserve(writer, "rsv_2", limits, 1) == Refusal(FOR_EVER, 300, 700)
    assert await reserve(writer, "rsv_2", {other: 700}, 1) == Refusal(other, 0, 700)
    assert await state(writer) == (300, {"rsv_1": 700})
    assert (await load(writer, other))[other].open == (OpenReservation("rsv_1", 700, expire_time),)

    await end(writer, "rsv_1", "rsv_none")

    assert await reserve(writer, "rsv_2", limits, 700) is None
    assert await state(writer) == (300, {"rsv_2": 700})


async def test_what_refused_once_is_what_refuses_again(writer: Database) -> None:
    await create(writer, a_budget(), a_budget("bud_2"))
    other = CounterKey("bud_2", None, "")
    limits = {FOR_EVER: 1_000, other: 100}

    async def attempt() -> Refusal | None:
        async with writer.hot() as connection:
            return await budgets.reserve_budgets(connection, "rsv_1", limits, 500, later(), freeze=True)

    assert await attempt() == Refusal(other, 0, 0)
    limits[other] = 1_000
    assert await attempt() == Refusal(other, 0, 0)
    assert await state(writer) == (0, {})
    # For the others it takes no room.
    assert await reserve(writer, "rsv_2", limits, 1_000) is None


async def test_reserving_again_raises_and_prolongs_and_never_lowers(writer: Database) -> None:
    await create(writer, a_budget())
    limit = {FOR_EVER: 1_000}
    early, late = later(HOUR), later(2 * HOUR)
    assert await reserve(writer, "rsv_1", limit, 400, late) is None
    assert await reserve(writer, "rsv_2", limit, 500, late) is None

    assert await reserve(writer, "rsv_1", limit, 300, early) is None
    assert (await load(writer, FOR_EVER))[FOR_EVER].open[0] == OpenReservation("rsv_1", 400, late)
    assert await reserve(writer, "rsv_1", limit, 500, early) is None
    assert await reserve(writer, "rsv_1", limit, 501, late) == Refusal(FOR_EVER, 0, 500)
    assert await state(writer) == (0, {"rsv_1": 500, "rsv_2": 500})
    # The limit was lowered: what it has, it keeps.
    assert await reserve(writer, "rsv_1", {FOR_EVER: 10}, 500, late + HOUR) is None
    assert (await load(writer, FOR_EVER))[FOR_EVER].open[0] == OpenReservation("rsv_1", 500, late + HOUR)


async def test_what_has_expired_counts_no_more_and_is_purged(writer: Database, database_url: str) -> None:
    await create(writer, a_budget())
    limit = {FOR_EVER: 1_000}
    for number in range(3):
        assert await reserve(writer, f"rsv_{number}", limit, 900, later(-HOUR)) is None
    assert await reserve(writer, "rsv_open", limit, 900) is None

    assert await state(writer) == (0, {"rsv_open": 900})
    # One that has expired starts over, as small as it is asked for.
    assert await reserve(writer, "rsv_0", limit, 901) == Refusal(FOR_EVER, 0, 900)
    assert await reserve(writer, "rsv_0", limit, 100) is None
    assert await state(writer) == (0, {"rsv_0": 100, "rsv_open": 900})

    async def purge(most: int) -> int:
        async with writer.hot() as connection:
            return await budgets.purge_budget_reservations(connection, most)

    assert [await purge(1), await purge(10), await purge(10)] == [1, 1, 0]
    with psycopg.connect(database_url) as admin:
        assert admin.execute("SELECT count(*) FROM metering.budget_reservation").fetchone() == (2,)


@pytest.mark.parametrize("spent", [0, 250])
async def test_of_many_at_once_exactly_as_many_fit_as_there_is_room_for(writer: Database, spent: int) -> None:
    await create(writer, a_budget(), a_budget("bud_2"))
    await count(writer, Spend(FOR_EVER, spent))
    limits = {FOR_EVER: 1_000, CounterKey("bud_2", None, ""): 10_000}
    keys = list(limits)

    async def attempt(number: int) -> bool:
        order = keys if number % 2 else keys[::-1]
        refused = await reserve(writer, f"rsv_{number}", {key: limits[key] for key in order}, 100)
        assert refused is None or refused.key == FOR_EVER
        return refused is None

    fitted = await asyncio.gather(*map(attempt, range(40)))

    assert sum(fitted) == (1_000 - spent) // 100
    assert (await state(writer, keys[1]))[1].keys() == (await state(writer))[1].keys()
    assert len((await state(writer))[1]) == sum(fitted)


async def test_settling_frees_and_spends_in_one_step(writer: Database) -> None:
    """Nobody who reserves meanwhile finds room that is only seemingly there."""
    await create(writer, a_budget())
    limit = {FOR_EVER: 1_000}
    assert await reserve(writer, "rsv_1", limit, 1_000) is None

    async with writer.hot() as connection:
        await budgets.count_spend(connection, [Spend(FOR_EVER, 990)])
        await budgets.end_budgets(connection, ["rsv_1"])
        # It is at the lock, or will come to it: the answer is the same.
        waiting = asyncio.create_task(reserve(writer, "rsv_2", limit, 11))

    assert await waiting == Refusal(FOR_EVER, 990, 0)
    assert await reserve(writer, "rsv_3", limit, 10) is None
