"""Reporting dies with SIGKILL while it catches up and rebuilds: its projections are as if it had not."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from sandbox.ports import FREE_PORTS
from sandbox.process import ChildProcess
from sandbox.stack import ROOT
from tests.support.feeds import FakeFeeds, running_feeds
from tests.support.reporting_world import FeedWorld, ModelEvent, content

HAPPENINGS = 2_000
BATCH = 20
KILLS = 5
LONGEST_WAIT = timedelta(seconds=120)
PAYEES = (
    (("org_x", "agt_x"),),
    (("org_x", "agt_x2"),),
    (("org_y", "agt_y"), ("org_x", "agt_x")),
)
# What the catalogue of the service, which is not that of the model, has no part in.
OF_THE_JOURNAL = (
    "charge",
    "movement",
    "movement_day",
    "payable_bucket",
    "revenue",
    "revenue_rollup",
    "revenue_sum",
)


def some_world(choice: random.Random) -> FeedWorld:
    """Runs, most of which are charged when their usage is known, and what happens to charges later."""
    world = FeedWorld()
    for number in range(HAPPENINGS):
        world.now += timedelta(seconds=choice.randrange(300))
        what = choice.random()
        if what < 0.7 or not world.charges:
            run(world, choice, f"run-{number}")
        elif what < 0.8:
            pending = [event for event in world.events[-50:] if event.outcome == "pending"]
            if pending:
                outcome = choice.choice(("success", "failure"))
                world.decide(choice.choice(pending), outcome, choice.randrange(300))
        elif what < 0.87:
            world.collect(choice.choice(world.charges), choice.randrange(2), choice.randrange(1, 9))
        elif what < 0.95:
            world.correct(choice.choice(world.charges), choice.randrange(1, 5_000))
        elif what < 0.97:
            end = choice.choice(("payout_completion", "payout_return"))
            world.pay_out(choice.choice(("org_x", "org_y")), end)
        else:
            world.grant(choice.choice(("cus_a", "cus_b")), choice.randrange(1, 9_999))
    return world


def run(world: FeedWorld, choice: random.Random, workflow_id: str) -> None:
    customer_id, payees = choice.choice(("cus_a", "cus_b", "cus_c")), choice.choice(PAYEES)
    paid, gross = choice.randrange(9), choice.randrange(5_000)
    owed = choice.randrange(9 - paid)
    outcome = choice.choice(("success", "failure", "pending"))
    event = ModelEvent(
        *(customer_id, workflow_id, 0, *payees[0], choice.choice(("", "1.0")), "run", ""),
        *((choice.randrange(999), 9), outcome, 7, world.now),
    )
    charged_first = choice.random() < 0.2
    if not charged_first:
        world.record(event)
    world.charge(customer_id, workflow_id, 0, gross, payees, paid=paid, owed=owed)
    if charged_first:
        world.record(event)


class Service:
    """Reporting as a process of its own, over feeds that the test writes."""

    def __init__(self, database_url: str, feeds: FakeFeeds, folder: Path) -> None:
        (folder / "service.key").write_text("nobody looks at it")
        # Of a length that is enough.
        (folder / "session.secret").write_text("s" * 64)
        ports = FREE_PORTS.with_free()
        web = f"127.0.0.1:{ports.reporting_web}"
        settings = {
            "DATABASE_URL": database_url,
            "REPORTING_LISTEN_ADDRESS": f"127.0.0.1:{ports.reporting}",
            "REPORTING_METRICS_ADDRESS": f"127.0.0.1:{ports.reporting_metrics}",
            "REPORTING_WEB_ADDRESS": web,
            "REPORTING_PUBLIC_URL": f"http://{web}",
            "REPORTING_SESSION_SECRETS_FILE": str(folder / "session.secret"),
            "REPORTING_SERVICE_API_KEY_FILE": str(folder / "service.key"),
            "REPORTING_LEDGER_ADDRESS": feeds.address,
            "REPORTING_METERING_ADDRESS": feeds.address,
            "REPORTING_PAYOUTS_ADDRESS": feeds.address,
            "REPORTING_FEED_BATCH_SIZE": str(BATCH),
        }
        self.process = ChildProcess(
            "reporting",
            [sys.executable, "-m", "services.reporting", "serve"],
            log_path=folder / "reporting.log",
            env={**os.environ, **settings},
            cwd=ROOT,
        )


@asynccontextmanager
async def running(database_url: str, folder: Path) -> AsyncIterator[tuple[Service, FakeFeeds]]:
    async with running_feeds() as feeds:
        service = Service(database_url, feeds, folder)
        try:
            yield service, feeds
        finally:
            await asyncio.to_thread(service.process.kill)


async def until(condition: Callable[[], bool], service: Service) -> None:
    async with asyncio.timeout(LONGEST_WAIT.total_seconds()):
        while not condition():
            service.process.check()
            await asyncio.sleep(0.002)


async def test_reporting_that_is_killed_while_it_reads_makes_what_it_would_have_made(
    database_url: str, tmp_path: Path
) -> None:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1_000_000))
    sys.stdout.write(f"seed {seed}: repeat with SEED={seed}\n")
    choice = random.Random(seed)
    world = some_world(choice)
    length = len(world.journal) + len(world.usage)
    with psycopg.connect(database_url, autocommit=True) as connection:

        def query(statement: str) -> list[tuple[Any, ...]]:
            return connection.execute(statement.encode()).fetchall()

        def read(projection_id: int) -> int:
            [(position,)] = query(
                f"SELECT coalesce(sum(position), 0) FROM reporting.feed WHERE projection_id = {projection_id}"
            )
            return int(position)

        def answers(projection_id: int) -> bool:
            of = f"projection_id = {projection_id}"
            return query(f"SELECT state FROM reporting.projection WHERE {of}") == [("serving",)]

        async with running(database_url, tmp_path) as (service, feeds):
            feeds.journal.records, feeds.usage.records = world.journal, world.usage

            async def read_and_be_killed(projection_id: int) -> list[int]:
                """At so many moments of its reading; how far it was at each."""
                killed_at = []
                for moment in sorted(choice.sample(range(length * 9 // 10), KILLS)):
                    if not service.process.running:
                        service.process.start()
                    await until(lambda moment=moment: read(projection_id) >= moment, service)  # type: ignore[misc]
                    # Anywhere in a batch, and not just behind one.
                    await asyncio.sleep(choice.random() * 0.03)
                    await asyncio.to_thread(service.process.kill)
                    killed_at.append(read(projection_id))
                service.process.start()
                await until(lambda: read(projection_id) == length and answers(projection_id), service)
                return killed_at

            caught_up = await read_and_be_killed(1)
            assert query("SELECT reporting.begin_projection(NULL, false)") == [(2,)]
            rebuilt = await read_and_be_killed(2)
            sys.stdout.write(f"killed at {caught_up} and {rebuilt} of {length} records\n")
            # Else it was killed when there was nothing to lose.
            assert sum(0 < place < length for place in (*caught_up, *rebuilt)) >= KILLS

            # Left alone.
            assert query("SELECT reporting.begin_projection(NULL, false)") == [(3,)]
            await until(lambda: read(3) == length and answers(3), service)

        tables = query(
            "SELECT c.relname, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)"
            " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relnamespace = 'reporting'::regnamespace AND c.relkind = 'r' AND a.attnum > 0"
            " AND a.attname <> 'projection_id' AND NOT a.attisdropped"
            " AND c.relname NOT IN ('alembic_version', 'projection', 'feed') GROUP BY 1"
        )
        assert len(tables) >= 9
        for table, columns in tables:
            undisturbed, *others = (
                query(
                    f"SELECT {columns} FROM reporting.{table} WHERE projection_id = {one} ORDER BY {columns}"
                )
                for one in (3, 1, 2)
            )
            assert undisturbed or table == "unnamed_charge"
            for other in others:
                assert other == undisturbed, table
        found, expected = content(query, 3), world.expected()
        assert {table: found[table] for table in OF_THE_JOURNAL} == {
            table: expected[table] for table in OF_THE_JOURNAL
        }
