"""Projections against an oracle: whatever happens, however the feeds bring it, every row and sum agrees."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.kit.clock import SystemClock
from services.kit.db import Database
from services.kit.runs import ChargeKind, kind_of
from services.reporting.projector import Projector
from services.reporting.rpc.journal_feed import JournalReader
from services.reporting.rpc.usage_feed import UsageReader
from tests.support.feeds import FakeFeeds, running_feeds
from tests.support.reporting_world import CATALOGUE, FeedWorld, ModelEvent, content

CUSTOMERS = ("cus_a", "cus_b")
PAYEES = (
    (("org_x", "agt_x"),),
    (("org_x", "agt_x2"),),
    (("org_y", "agt_y"), ("org_x", "agt_x")),
    (("org_x", "agt_x"), ("org_y", "agt_y"), ("org_z", "agt_z")),
)
FEE = "sub_{}/2026-10-01T00:00:00Z/2026-11-01T00:00:00Z"
CLOSING = "period/org_x/USD/2026-10-01T00:00:00Z"
OPERATIONS = (
    "charge",
    "charge",
    "charge",
    "event",
    "decide",
    "collect",
    "correct",
    "write_off",
    "pay_out",
    "grant",
    "adjust",
)


@dataclass
class Running:
    """Feeds and a database, in an event loop that outlives the examples."""

    runner: asyncio.Runner
    feeds: FakeFeeds
    writer: Database
    connection: psycopg.Connection[tuple[Any, ...]]

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(statement.encode()).fetchall()

    def empty(self) -> None:
        tables = self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'reporting'")
        for (table,) in tables:
            if table != "alembic_version":
                self.connection.execute(f"DELETE FROM reporting.{table}".encode())

    def projector(self, batch_size: int) -> Projector:
        return Projector(
            writer=self.writer,
            usage=UsageReader(self.feeds.channel, CATALOGUE),
            journal=JournalReader(self.feeds.channel),
            clock=SystemClock(),
            batch_size=batch_size,
            removal_delay=timedelta(0),
        )


@pytest.fixture
def running(database_url: str) -> Iterator[Running]:
    @asynccontextmanager
    async def open_all() -> AsyncIterator[tuple[FakeFeeds, Database]]:
        async with AsyncExitStack() as stack:
            feeds = await stack.enter_async_context(running_feeds())
            writer = Database(database_url, role="reporting_writer", schema="reporting")
            stack.push_async_callback(writer.close)
            await writer.open()
            yield feeds, writer

    with asyncio.Runner() as runner, psycopg.connect(database_url, autocommit=True) as connection:
        context = open_all()
        feeds, writer = runner.run(context.__aenter__())
        try:
            yield Running(runner, feeds, writer, connection)
        finally:
            runner.run(context.__aexit__(None, None, None))


def happen(world: FeedWorld, data: st.DataObject) -> None:
    """One thing happens, some time after the one before."""
    world.now += timedelta(seconds=data.draw(st.integers(0, 1500)), microseconds=data.draw(st.integers(0, 2)))
    match data.draw(st.sampled_from(OPERATIONS)):
        case "charge":
            number = len(world.charges)
            world.charge(
                data.draw(st.sampled_from(CUSTOMERS)),
                data.draw(st.sampled_from((f"run-{number}", f"run-{number}", FEE.format(number), CLOSING))),
                data.draw(st.integers(0, 1)),
                data.draw(st.integers(0, 5000)),
                data.draw(st.sampled_from(PAYEES)),
                paid=data.draw(st.integers(0, 8)),
                owed=data.draw(st.integers(0, 8)),
                currency_code=data.draw(st.sampled_from(("USD", "USD", "EUR"))),
                late=timedelta(minutes=data.draw(st.sampled_from((0, 0, 20, 2000)))),
            )
        case "event":
            of_charge = data.draw(st.integers(0, len(world.charges)))
            charge = world.charges[of_charge] if of_charge < len(world.charges) else None
            if charge and kind_of(charge.workflow_id) is not ChargeKind.USAGE:
                # Hosts may not name theirs like that.
                return
            key = (
                (charge.customer_id, charge.workflow_id, charge.ordinal)
                if charge
                else ("cus_a", f"other-{len(world.events)}", 0)
            )
            if any((event.customer_id, event.workflow_id, event.ordinal) == key for event in world.events):
                return
            organization_id, agent_id = charge.payees[0] if charge else ("org_x", "agt_x")
            world.record(
                ModelEvent(
                    *key,
                    organization_id,
                    agent_id,
                    data.draw(st.sampled_from(("", "1.0", "1.1"))),
                    data.draw(st.sampled_from(("ticket.resolve", "ticket.route", ""))),
                    data.draw(st.sampled_from(("gpt-x", "unheard-of", ""))),
                    (data.draw(st.integers(0, 2)), data.draw(st.integers(0, 999))),
                    data.draw(
                        st.sampled_from(("success", "failure", "partial", "unknown", "pending", "pending"))
                    ),
                    charge.gross if charge else 7,
                    world.now - timedelta(minutes=data.draw(st.sampled_from((0, 10, 2000)))),
                )
            )
        case "decide":
            pending = [event for event in world.events if event.outcome == "pending"]
            if not pending:
                return
            event = data.draw(st.sampled_from(pending))
            bonus = data.draw(st.integers(0, 300))
            world.decide(
                event, data.draw(st.sampled_from(("success", "failure", "partial", "unknown"))), bonus
            )
            if bonus:
                payees = ((event.organization_id, event.agent_id),)
                key = (event.customer_id, event.workflow_id, event.ordinal)
                world.charge(*key, bonus, payees, paid=8, owed=0, component="outcome")
        case "collect" if world.charges:
            charge = data.draw(st.sampled_from(world.charges))
            world.collect(charge, data.draw(st.integers(0, 1)), data.draw(st.integers(1, 8)))
        case "correct" if world.charges:
            charge = data.draw(st.sampled_from(world.charges))
            world.correct(charge, data.draw(st.one_of(st.integers(1, 5000), st.just(charge.gross))))
        case "write_off" if world.charges:
            charge = data.draw(st.sampled_from(world.charges))
            world.write_off(charge, data.draw(st.integers(0, 1)), data.draw(st.integers(1, 8)))
        case "pay_out":
            organization_id = data.draw(st.sampled_from(("org_x", "org_y", "org_z")))
            world.pay_out(
                organization_id, data.draw(st.sampled_from(("payout_completion", "payout_return", "")))
            )
        case "grant":
            world.grant(data.draw(st.sampled_from(CUSTOMERS)), data.draw(st.integers(1, 9999)))
        case "adjust":
            world.adjust(data.draw(st.sampled_from(CUSTOMERS)), data.draw(st.integers(1, 9999)))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_projections_are_what_the_oracle_says_and_a_rebuild_is_the_same(
    running: Running, data: st.DataObject
) -> None:
    world = FeedWorld()
    for _ in range(data.draw(st.integers(1, 30))):
        happen(world, data)
    feeds = running.feeds
    feeds.journal.records, feeds.usage.records = world.journal, world.usage
    running.empty()

    async def follow(batch_size: int, replicas: int) -> None:
        # Each time a new process. Several at once read the same, and one of them is late.
        projectors = [running.projector(batch_size) for _ in range(replicas)]
        await asyncio.gather(*(to_the_end(projector) for projector in projectors))

    async def to_the_end(projector: Projector) -> None:
        while await projector.follow():
            pass

    # In any order of the two, piece by piece, and then the rest.
    for feed, until, batch_size, replicas in data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(("journal", "usage")),
                st.integers(0, 40),
                st.integers(1, 9),
                st.integers(1, 2),
            ),
            max_size=5,
        )
    ):
        feeds.journal.visible = feeds.journal.visible or 0
        feeds.usage.visible = feeds.usage.visible or 0
        getattr(feeds, feed).visible = max(until, getattr(feeds, feed).visible)
        running.runner.run(follow(batch_size, replicas))
    feeds.journal.visible = feeds.usage.visible = None
    running.runner.run(follow(1000, 1))

    [(first,)] = running.query("SELECT projection_id FROM reporting.projection")
    assert content(running.query, first) == world.expected()

    async def rebuild() -> int:
        projector = running.projector(data.draw(st.integers(1, 50)))
        begun = await projector.begin()
        assert await projector.begin() == begun
        while (first, "serving") in running.query("SELECT projection_id, state FROM reporting.projection"):
            await projector.build()
        return begun

    second = running.runner.run(rebuild())
    assert content(running.query, second) == content(running.query, first)

    async def remove() -> None:
        projector = running.projector(1)
        while await projector.build():
            pass

    running.runner.run(remove())
    assert running.query("SELECT projection_id, state FROM reporting.projection") == [(second, "serving")]
    assert running.query("SELECT count(*) FROM reporting.movement") == [(len(world.movements),)]
