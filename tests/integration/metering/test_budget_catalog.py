"""What the process remembers of budgets, and how it learns of changes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.metering.domain.budget import Budget, BudgetIndex
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.store import budgets
from tests.integration.metering.budget_world import NOW, a_budget, change, create


class CountingReader(Database):
    """Counts its transactions, and lets a test step in after one: between `looked` and `go_on`."""

    transactions = 0
    looked: asyncio.Event | None = None
    go_on: asyncio.Event | None = None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        self.transactions += 1
        async with super().begin() as connection:
            yield connection
        if self.looked is not None and self.go_on is not None:
            self.looked.set()
            await self.go_on.wait()


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, role="metering_writer", schema="metering")
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[CountingReader]:
    database = CountingReader(database_url, role="metering_reader", schema="metering")
    try:
        yield database
    finally:
        await database.close()


def limits(index: BudgetIndex) -> dict[str, int]:
    found = index.matching("cus_1", "agt_1", "key_1", "USD")
    return {budget.budget_id: budget.limit_micros for budget in found}


async def test_budgets_are_looked_at_once_a_second_by_all_together(
    writer: Database, reader: CountingReader
) -> None:
    time = Time()
    catalog = BudgetCatalog(reader, monotonic=time)
    await create(writer, a_budget())

    indexes = await asyncio.gather(*(catalog.index() for _ in range(20)))
    assert [limits(index) for index in indexes] == [{"bud_1": 1_000}] * 20
    assert reader.transactions == 1
    await create(writer, a_budget("bud_2"))
    time.now = 0.99
    assert await catalog.index() is indexes[0]
    time.now = 1.0
    assert limits(await catalog.index()) == {"bud_1": 1_000, "bud_2": 1_000}
    assert reader.transactions == 2
    # Nothing changed: the index stays the same one.
    time.now = 2.0
    assert await catalog.index() is await catalog.index()
    assert reader.transactions == 3


async def test_every_kind_of_change_is_noticed(writer: Database, reader: CountingReader) -> None:
    catalog = BudgetCatalog(reader)
    await create(writer, a_budget(), a_budget("bud_2"), a_budget("bud_eur", currency_code="EUR"))
    old = await catalog.index()

    await change(writer, a_budget(limit_micros=7))
    await change(writer, a_budget("bud_2", delete_time=NOW))
    catalog.expire()

    assert limits(await catalog.index()) == {"bud_1": 7}
    assert len(await catalog.index()) == 2
    assert limits(old) == {"bud_1": 1_000, "bud_2": 1_000}


async def test_a_change_that_commits_late_is_not_missed(
    writer: Database, reader: CountingReader, database_url: str
) -> None:
    """Numbers are given in the order of commits: nobody sees a later one before an earlier one."""
    catalog = BudgetCatalog(reader)
    started = asyncio.Event()
    finish = asyncio.Event()

    async def slowly(slow: Budget) -> None:
        async with writer.begin() as connection:
            await scope(connection, PLATFORM)
            await budgets.create(connection, slow)
            started.set()
            await finish.wait()

    async with AsyncExitStack() as cleanup:
        cleanup.callback(finish.set)
        first = asyncio.create_task(slowly(a_budget("bud_slow")))
        await started.wait()
        second = asyncio.create_task(create(writer, a_budget("bud_fast")))
        assert limits(await catalog.index()) == {}
        finish.set()
        await asyncio.gather(first, second)
        catalog.expire()
        assert limits(await catalog.index()) == {"bud_slow": 1_000, "bud_fast": 1_000}
    with psycopg.connect(database_url) as admin:
        numbers = admin.execute("SELECT budget_id, change_number FROM metering.budget ORDER BY 2").fetchall()
    assert numbers == [("bud_slow", 1), ("bud_fast", 2)]


async def test_a_change_during_a_look_is_looked_for_again(writer: Database, reader: CountingReader) -> None:
    catalog = BudgetCatalog(reader)
    reader.looked, reader.go_on = asyncio.Event(), asyncio.Event()
    look = asyncio.create_task(catalog.index())
    await reader.looked.wait()
    await create(writer, a_budget())
    catalog.expire()
    reader.go_on.set()

    assert limits(await look) == {}
    assert limits(await catalog.index()) == {"bud_1": 1_000}


async def test_an_older_database_is_read_anew(
    writer: Database, reader: CountingReader, database_url: str
) -> None:
    catalog = BudgetCatalog(reader)
    budget = a_budget()
    await create(writer, budget)
    await change(writer, replace(budget, limit_micros=5))
    assert limits(await catalog.index()) == {"bud_1": 5}

    with psycopg.connect(database_url) as admin:
        admin.execute("SET session_replication_role = replica")
        admin.execute("UPDATE metering.budget SET limit_micros = 1000, change_number = 1")
        admin.execute("UPDATE metering.budget_change SET change_number = 1")
    catalog.expire()

    assert limits(await catalog.index()) == {"bud_1": 1_000}
