"""The ledger with a long history: whether its charges become dearer, and how fast its journal is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final

import psycopg
from psycopg.rows import TupleRow

from bench.contestants import UnexpectedAnswerError, contestants
from bench.machine import CpuClock
from bench.results import FEED, LEDGER_GROWTH, Result, cpu_per_operation, rounded
from bench.runner import Record, Runner
from bench.summary import median, median_ratio
from bench.traffic import CURRENCY, CUSTOMERS, ORGANIZATIONS
from bench.world import Suite, World
from services.kit.db import connection_parameters
from services.kit.tenancy import PLATFORM, scope_hot
from services.ledger.store.feed import FeedFilter
from services.ledger.store.feed_columns import read_journal_columns
from tallystick.ledger.v1.ledger_service_pb2 import JOURNAL_FORM_COLUMNS, ReadJournalRequest

ENTRIES_PER_CHARGE: Final = 4
_CHARGES_PER_CALL: Final = 10_000
# Of customers of their own, so that they never wait for each other.
_FILLERS: Final = 2
_FILL_SECONDS: Final = 3600.0
# Positions that a round of the feed reads.
_FEED_POSITIONS: Final = 50_000
_FEED_BATCH: Final = 1_000

# Charges by the ledger's own function, so that the books are right. Their ids are as long as those that the
# ledger derives, and in as little order.
_FILL: Final = """
    SELECT count(*) FILTER (WHERE posted.status = 'posted')
    FROM (
        SELECT array_agg('ch_' || left(encode(sha256(workflow_id::bytea), 'hex'), 32) ORDER BY number) AS ids,
               array_agg(customer_id ORDER BY number) AS customer_ids,
               array_agg(workflow_id ORDER BY number) AS workflow_ids,
               array_agg(1::smallint ORDER BY number) AS components,
               array_agg(0 ORDER BY number) AS ordinals,
               array_agg(%(currency)s::text ORDER BY number) AS currency_codes,
               array_agg(10000 + number %% 1000 ORDER BY number) AS gross_amounts,
               array_agg(now() ORDER BY number) AS occur_times,
               array_agg(%(price_version_id)s::text ORDER BY number) AS price_version_ids,
               array_agg(''::bytea ORDER BY number) AS evidence_hashes,
               array_agg(sha256(workflow_id::bytea) ORDER BY number) AS content_hashes,
               array_agg((number - %(first)s + 1)::integer ORDER BY number) AS payee_charge,
               array_agg('org_' || payee ORDER BY number) AS organization_ids,
               array_agg('agt_' || payee ORDER BY number) AS agent_ids,
               array_agg(1::bigint ORDER BY number) AS weights
        FROM (
            SELECT number, 'history/' || number AS workflow_id,
                   (%(customer_ids)s::text[])[1 + number %% %(customers)s::bigint] AS customer_id,
                   lpad((number %% %(organizations)s::bigint)::text, 3, '0') AS payee
            FROM generate_series(%(first)s::bigint, %(first)s::bigint + %(count)s - 1) AS number
        ) AS charge
    ) AS b
    CROSS JOIN LATERAL ledger.post_charges(
        b.ids, b.customer_ids, b.workflow_ids, b.components, b.ordinals, b.currency_codes, b.gross_amounts,
        b.occur_times, b.price_version_ids, b.evidence_hashes, b.content_hashes,
        b.payee_charge, b.organization_ids, b.agent_ids, b.weights, 'key_bench'
    ) AS posted
"""


async def fill(world: World, entries: int, say: Callable[[str], None]) -> float:
    """Post charges with so many entries, four each; how many seconds that took.

    Sequencer and folder have caught up afterwards, and tables are vacuumed and analyzed, as they are in the
    long run.
    """
    charges = entries // ENTRIES_PER_CHARGE
    started = time.perf_counter()
    calls = iter(range(0, charges, _CHARGES_PER_CALL))
    share = len(CUSTOMERS) // _FILLERS

    async def post(number: int) -> None:
        connection = await stack.enter_async_context(await _without_waiting(world))
        for first in calls:
            count = min(_CHARGES_PER_CALL, charges - first)
            parameters = {
                "first": first,
                "count": count,
                "currency": CURRENCY,
                "price_version_id": world.traffic.price_version_id,
                "customer_ids": list(CUSTOMERS[number * share : (number + 1) * share]),
                "customers": share,
                "organizations": len(ORGANIZATIONS),
            }
            posted = await (await connection.execute(_FILL, parameters)).fetchone()
            if posted != (count,):
                raise UnexpectedAnswerError(f"of {count} charges of the history {posted} were posted")
            if first // _CHARGES_PER_CALL % 25 == 0:
                say(f"{first + count:,} of {charges:,} charges of the history")

    async with AsyncExitStack() as stack, asyncio.timeout(_FILL_SECONDS):
        await asyncio.gather(*(post(number) for number in range(_FILLERS)))
        while await world.count(world.backlog):  # noqa: ASYNC110 - other processes work it off
            await asyncio.sleep(0.5)
        await world.admin.execute("VACUUM (ANALYZE)")
        await world.admin.execute("CHECKPOINT")
    return time.perf_counter() - started


async def _without_waiting(world: Suite) -> psycopg.AsyncConnection[TupleRow]:
    """A connection that may take long, and does not wait for the disk: a history is only made to be there."""
    connection = await world.writer()
    await connection.execute("SET synchronous_commit = off")
    await connection.execute("SET statement_timeout = 0")
    return connection


async def ledger_growth(
    world: World,
    runner: Runner,
    grow: Callable[[], Awaitable[object]],
    conditions: Mapping[str, object],
) -> Result:
    """ledger_batch against its floor on an empty ledger, and again with the history that `grow` makes."""
    taking_part = [
        one for name, one in (await contestants(world)).items() if name in ("bare_batch", "ledger_batch")
    ]
    empty = await runner.run(taking_part)
    await grow()
    full = await runner.run(taking_part)
    before, after = _ratio(empty), _ratio(full)
    return Result(
        LEDGER_GROWTH,
        rounded(after / before),
        "of the ratio when empty",
        rounded(before),
        None,
        None,
        None,
        {
            "charges_per_second": rounded(_rate(full["ledger_batch"])),
            "charges_per_second_when_empty": rounded(_rate(empty["ledger_batch"])),
            "rate_lost": rounded(1 - _rate(full["ledger_batch"]) / _rate(empty["ledger_batch"])),
            "floor_per_second": rounded(_rate(full["bare_batch"])),
            "floor_per_second_when_empty": rounded(_rate(empty["bare_batch"])),
            "ratio": rounded(after),
            "ratio_when_empty": rounded(before),
            "cpu_us_per_operation": cpu_per_operation(full["ledger_batch"]),
            "cpu_us_per_operation_when_empty": cpu_per_operation(empty["ledger_batch"]),
            "entries": await world.count("SELECT count(*) FROM ledger.entry"),
            **conditions,
        },
    )


def _rate(record: Record) -> float:
    return median([one.rate for one in record.rounds])


def _ratio(records: Mapping[str, Record]) -> float:
    rates = {name: [one.rate for one in record.rounds] for name, record in records.items()}
    return median_ratio(rates["ledger_batch"], rates["bare_batch"])


async def feed(
    world: World, rounds: int, conditions: Mapping[str, object], say: Callable[[str], None]
) -> Result:
    """ReadJournal as columns, from the beginning on, against its statements from a bare connection."""
    bare = await _reader(world)
    values, floors = [], []
    used: list[CpuClock] = []
    read = 0
    for number in range(rounds):
        before, started = world.processes.cpu(), time.perf_counter()
        count = await _read_journal(world)
        values.append(count / (time.perf_counter() - started))
        used.append(world.processes.cpu().since(before))
        read += count
        floors.append(await _read_bare(bare))
        say(f"round {number + 1}: transactions/s: {FEED} {values[-1]:,.0f}, bare_columns {floors[-1]:,.0f}")
    return Result(
        FEED,
        rounded(median(values)),
        "transactions/s",
        rounded(median(floors)),
        rounded(median_ratio(values, floors)),
        None,
        None,
        {
            "floor_name": "bare_columns",
            "batch_size": _FEED_BATCH,
            "value_by_round": [rounded(one) for one in values],
            "floor_by_round": [rounded(one) for one in floors],
            "cpu_us_per_operation": {
                name: rounded(sum(one.processes[name] for one in used) / read * 1e6)
                for name in used[0].processes
            },
            "other_cpus": rounded(median([one.others / one.at for one in used])),
            **conditions,
        },
    )


async def _read_journal(world: World) -> int:
    """The first positions of the journal, as readers of the feed get them; how many transactions that is."""
    call = world.ledger.ReadJournal(ReadJournalRequest(batch_size=_FEED_BATCH, form=JOURNAL_FORM_COLUMNS))
    count = 0
    async for response in call:
        count += len(response.columns.positions)
        if response.last_position >= _FEED_POSITIONS:
            break
    call.cancel()
    if count < _FEED_POSITIONS:
        raise UnexpectedAnswerError(
            f"the journal has {count} transactions, and {_FEED_POSITIONS} are to be read"
        )
    return count


async def _read_bare(connection: psycopg.AsyncConnection[TupleRow]) -> float:
    """The same positions as PostgreSQL sends them, of which nothing is made; how many in a second."""
    started, position = time.perf_counter(), 0
    while position < _FEED_POSITIONS:
        async with connection.transaction():
            await scope_hot(connection, PLATFORM)
            found = await read_journal_columns(
                connection, "", position, _FEED_BATCH, FeedFilter(), include_charges=False
            )
        position = found.last_position
    return position / (time.perf_counter() - started)


async def _reader(world: Suite) -> psycopg.AsyncConnection[TupleRow]:
    parameters = connection_parameters(world.database_url, role="ledger_reader", schema="ledger")
    return await psycopg.AsyncConnection.connect(**parameters, autocommit=True, prepare_threshold=0)
