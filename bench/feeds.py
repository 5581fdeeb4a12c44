"""How fast reporting reads everything anew, and what the database and the feeds alone would allow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from bench.contestants import Statement, UnexpectedAnswerError, meter_batch, recorded
from bench.load import drive
from bench.machine import CpuClock, Processes
from bench.results import FEED_CATCHUP, Result, rounded
from bench.summary import median, median_ratio
from bench.world import World
from sandbox.process import SandboxError
from sandbox.stack import Stack
from services.kit.client import connect
from services.kit.db import connection_parameters, single
from services.kit.model_costs import Catalogue
from services.reporting.config import ReportingConfig
from services.reporting.domain.facts import Batch, JournalBatch, UsageBatch
from services.reporting.domain.projection import Progress
from services.reporting.migrations import migrate
from services.reporting.rpc.feeds import FeedReader
from services.reporting.rpc.journal_feed import JournalReader
from services.reporting.rpc.usage_feed import UsageReader
from services.reporting.store import projections
from tallystick.reporting.v1 import projection_service_pb2
from tallystick.reporting.v1.projection_service_pb2_grpc import ProjectionServiceStub

if TYPE_CHECKING:
    from tallystick.reporting.v1.projection_service_pb2_grpc import ProjectionServiceAsyncStub

B = TypeVar("B", bound=Batch)
Apply = Callable[[psycopg.AsyncConnection[TupleRow], int, B, None], Coroutine[Any, Any, bool]]

# Of the same PostgreSQL: what is applied there, the service neither sees nor disturbs.
_FLOOR_DATABASE: Final = "bench_floor"
_METER_SECONDS: Final = 1_200.0
_SETTLE_SECONDS: Final = 600.0
_LOOK_SECONDS: Final = 0.05
_TAKEN: Final = """
    SELECT (extract(epoch FROM serve_time - create_time) * 1000000)::bigint
    FROM reporting.projection WHERE projection_id = {} AND state = 'serving'
"""
_BEHIND: Final = """
    SELECT count(*) FROM reporting.feed JOIN reporting.projection USING (projection_id)
    WHERE state = 'serving' AND position < CASE feed WHEN 'journal' THEN {} ELSE {} END
"""
# What a projection lacks, or has too much, of what metering and ledger have stored.
_DIFFERENCE: Final = """
    SELECT abs((SELECT count(*) FROM ledger.charge)
               - (SELECT count(*) FROM reporting.charge WHERE projection_id = {0}))
         + abs((SELECT count(*) FROM metering.usage_event)
               - (SELECT count(*) FROM reporting.usage WHERE projection_id = {0}))
         + abs((SELECT sum(gross) FROM ledger.charge)
               - (SELECT sum(billed_micros) FROM reporting.revenue WHERE projection_id = {0}))
"""


@dataclass(frozen=True)
class Feeds:
    """Both feeds, read by reporting's own readers; the service beside them; and the database of the floor."""

    journal: JournalReader
    usage: UsageReader
    projections: ProjectionServiceAsyncStub
    floor: FloorDatabase
    processes: Processes


class FloorDatabase:
    """A database with the schema of reporting alone, and a bare connection to it for each feed."""

    def __init__(self, connections: Sequence[psycopg.AsyncConnection[TupleRow]]) -> None:
        self._usage, self._journal = connections

    async def apply(self, journal: Sequence[Statement], usage: Sequence[Statement]) -> float:
        """Make a projection of these, as reporting does; how many seconds that took."""
        started = time.perf_counter()
        begun = await self._usage.execute("SELECT begin_projection(NULL, false)")
        projection_id = int((await single(begun))[0])
        # A batch of usage comes first in reporting, too.
        await _apply(self._usage, projection_id, usage[:1])
        await asyncio.gather(
            _apply(self._usage, projection_id, usage[1:]), _apply(self._journal, projection_id, journal)
        )
        await self._usage.execute("SELECT serve_projection(%s)", [projection_id])
        return time.perf_counter() - started


@asynccontextmanager
async def open_feeds(stack: Stack, world: World) -> AsyncIterator[Feeds]:
    """What feed_catchup needs of a stack with reporting, beside the world of its callers."""
    async with AsyncExitStack() as cleanup:
        endpoints = stack.endpoints
        service = stack.reporting_key.read()
        ledger = await cleanup.enter_async_context(connect(endpoints.ledger, service))
        metering = await cleanup.enter_async_context(connect(endpoints.metering, service))
        reporting = await cleanup.enter_async_context(connect(endpoints.reporting, stack.operator_key.read()))
        await world.admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_FLOOR_DATABASE)))
        url = make_conninfo(endpoints.database_url, dbname=_FLOOR_DATABASE)
        await asyncio.to_thread(migrate, url)
        parameters = connection_parameters(url, role="reporting_writer", schema="reporting")
        connections = [
            await cleanup.enter_async_context(
                await psycopg.AsyncConnection.connect(**parameters, autocommit=True, prepare_threshold=0)
            )
            for _ in range(2)
        ]
        pid = stack.pid("reporting")
        if pid is None:
            raise SandboxError("reporting ended before the run began")
        yield Feeds(
            journal=JournalReader(ledger),
            usage=UsageReader(metering, Catalogue.load()),
            projections=ProjectionServiceStub(reporting),
            floor=FloorDatabase(connections),
            processes=world.processes.with_process("reporting", pid),
        )


async def feed_catchup(
    world: World,
    feeds: Feeds,
    events: int,
    rounds: int,
    conditions: Mapping[str, object],
    say: Callable[[str], None],
) -> Result:
    """Meter so many events; then, in turns: a rebuild by the service, the same batches applied from bare
    connections, and both feeds read without applying them.
    """
    say(f"metering {events:,} events")
    metered = meter_batch(world, "feed")
    await drive(metered.call, metered.prepare(-(-events // metered.size)), metered.in_flight, _METER_SECONDS)
    await world.drained()
    journal, usage = await asyncio.gather(_read(feeds.journal), _read(feeds.usage))
    count = sum(batch.count for batch in (*journal, *usage))
    journal_calls, usage_calls = statements(journal, usage)
    async with asyncio.timeout(_SETTLE_SECONDS):
        while await world.count(_BEHIND.format(journal[-1].last, usage[-1].last)):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
    # The service has made a projection by now. So has the floor, when its turns begin.
    await feeds.floor.apply(journal_calls, usage_calls)
    values, floors, reads = [], [], []
    used: list[CpuClock] = []
    for number in range(rounds):
        before = feeds.processes.cpu()
        values.append(count / await _rebuild(world, feeds))
        used.append(feeds.processes.cpu().since(before))
        floors.append(count / await feeds.floor.apply(journal_calls, usage_calls))
        started = time.perf_counter()
        await asyncio.gather(_read(feeds.journal), _read(feeds.usage))
        reads.append(count / (time.perf_counter() - started))
        say(
            f"round {number + 1}: records/s: {FEED_CATCHUP} {values[-1]:,.0f}, bare_apply {floors[-1]:,.0f},"
            f" read only {reads[-1]:,.0f}; CPUs taken by others: {used[-1].others / used[-1].at:.1f}"
        )
    return Result(
        FEED_CATCHUP,
        rounded(median(values)),
        "events/s",
        rounded(median(floors)),
        rounded(median_ratio(values, floors)),
        None,
        None,
        {
            "floor_name": "bare_apply",
            "records": count,
            "batch_size": ReportingConfig.feed_batch_size,
            "value_by_round": [rounded(one) for one in values],
            "floor_by_round": [rounded(one) for one in floors],
            "read_by_round": [rounded(one) for one in reads],
            "read_only": rounded(median(reads)),
            "cpu_us_per_operation": {
                name: rounded(sum(one.processes[name] for one in used) / (count * rounds) * 1e6)
                for name in used[0].processes
            },
            "other_cpus": rounded(median([one.others / one.at for one in used])),
            "reporting_memory_mb": rounded(feeds.processes.peak_memory_mb("reporting")),
            **conditions,
        },
    )


def statements(
    journal: Sequence[JournalBatch], usage: Sequence[UsageBatch]
) -> tuple[list[Statement], list[Statement]]:
    """What reporting itself would send for these batches; the projection comes first in their parameters."""
    return (
        [_statement(projections.apply_journal, batch) for batch in journal],
        [_statement(projections.apply_usage, batch) for batch in usage],
    )


def _statement(apply: Apply[B], batch: B) -> Statement:
    return recorded(lambda connection: apply(connection, 0, batch, None))


async def _apply(
    connection: psycopg.AsyncConnection[TupleRow], projection_id: int, calls: Sequence[Statement]
) -> None:
    for call in calls:
        parameters: tuple[Any, ...] = (projection_id, *call.parameters[1:])
        if not (await single(await connection.execute(call.text, parameters)))[0]:
            raise UnexpectedAnswerError("a batch of the floor was not applied")


async def _read(reader: FeedReader[B]) -> list[B]:
    """All of a feed, in batches as reporting applies them."""
    beginning = Progress(reader.feed, "", 0, 0, None, None)
    return [
        batch async for batch in reader.batches(beginning, ReportingConfig.feed_batch_size) if batch.count
    ]


async def _rebuild(world: World, feeds: Feeds) -> float:
    """Have the service make a projection from nothing; how many seconds until it answers."""
    begun = await feeds.projections.RebuildProjection(projection_service_pb2.RebuildProjectionRequest())
    projection_id = begun.projection.projection_id
    async with asyncio.timeout(_SETTLE_SECONDS):
        while not (taken := await world.count(_TAKEN.format(projection_id))):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
    if await world.count(_DIFFERENCE.format(projection_id)):
        raise UnexpectedAnswerError("a projection differs from what was metered and charged")
    return taken / 1e6
