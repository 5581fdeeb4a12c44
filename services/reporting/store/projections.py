"""Projections: which there are, how far each has read, and applying what comes.

What changes them is a function of the owner (migrations/sql/functions.sql): the writer has no other
rights.
"""

from collections import defaultdict
from datetime import datetime

from psycopg import AsyncConnection as HotConnection
from psycopg.rows import TupleRow
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.db import single
from services.reporting.domain.columns import Columns
from services.reporting.domain.facts import JournalBatch, UsageBatch
from services.reporting.domain.projection import Feed, Progress, Projection, ProjectionState

_PROJECTIONS = text("""
    SELECT p.projection_id, p.state, p.create_time, p.serve_time,
           f.feed, f.log_id, f.position, f.head_position, f.apply_time, f.hear_time
    FROM reporting.projection p JOIN reporting.feed f USING (projection_id)
    ORDER BY p.projection_id DESC, f.feed
""")
_APPLY_JOURNAL = """
SELECT apply_journal(
    %s, %s, %s, %s, %s, %s, %s,
    %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[],
    %s::bigint[],
    %s::bigint[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::text[], %s::bigint[], %s::text[],
    %s::text[], %s::bigint[],
    %s::bigint[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::integer[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::boolean[], %s::date[]
)
"""
_APPLY_USAGE = """
SELECT apply_usage(
    %s, %s, %s, %s, %s, %s, %s,
    %s::text[], %s::text[], %s::integer[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
    %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::numeric[], %s::bigint[],
    %s::text[], %s::text[], %s::integer[], %s::text[], %s::bigint[], %s::text[]
)
"""


async def list_all(connection: AsyncConnection) -> list[Projection]:
    """The projections, the newest first."""
    found = (await connection.execute(_PROJECTIONS)).all()
    feeds: defaultdict[int, dict[Feed, Progress]] = defaultdict(dict)
    for row in found:
        feeds[row.projection_id][Feed(row.feed)] = Progress(
            Feed(row.feed), row.log_id, row.position, row.head_position, row.apply_time, row.hear_time
        )
    return [
        Projection(
            row.projection_id,
            ProjectionState(row.state),
            row.create_time,
            row.serve_time,
            feeds[row.projection_id],
        )
        for row in found
        if row.feed == Feed.JOURNAL
    ]


async def begin_first(connection: AsyncConnection) -> int:
    """The projection that answers, begun if there is none."""
    return await _begin(connection, lost=None, first=True)


async def begin(connection: AsyncConnection, lost: int | None = None) -> int:
    """The projection that is being built, begun if there is none, or if it is `lost`."""
    return await _begin(connection, lost=lost, first=False)


async def _begin(connection: AsyncConnection, *, lost: int | None, first: bool) -> int:
    found = await connection.execute(
        text("SELECT reporting.begin_projection(:lost, :first)"), {"lost": lost, "first": first}
    )
    return int(found.scalar_one())


async def lose_feed(connection: AsyncConnection, projection_id: int, feed: Feed) -> None:
    """Note that what a projection has read of a feed is no longer there."""
    await connection.execute(
        text("SELECT reporting.lose_feed(:projection_id, :feed)"),
        {"projection_id": projection_id, "feed": feed.value},
    )


async def serve(connection: AsyncConnection, projection_id: int) -> bool:
    """Let a projection answer, if it has read as far as the one that does; whether it had."""
    found = await connection.execute(
        text("SELECT reporting.serve_projection(:projection_id)"), {"projection_id": projection_id}
    )
    return bool(found.scalar_one())


async def remove_retired(connection: AsyncConnection, before: datetime, limit: int) -> bool:
    """Remove some rows of a projection that was retired before a moment; whether there was one."""
    found = await connection.execute(
        text("SELECT reporting.remove_projections(:before, :limit)"), {"before": before, "limit": limit}
    )
    return bool(found.scalar_one())


async def hear(
    connection: HotConnection[TupleRow], projection_id: int, progress: Progress, hear_time: datetime
) -> None:
    """Note that a feed was asked and had nothing new."""
    await connection.execute(
        "SELECT hear(%s, %s, %s, %s)", (projection_id, progress.feed, progress.position, hear_time)
    )


async def apply_journal(
    connection: HotConnection[TupleRow], projection_id: int, batch: JournalBatch, hear_time: datetime | None
) -> bool:
    """Apply a batch, if the projection has read the journal up to exactly there; whether it had.

    `hear_time` is when the feed was asked, if this is all that it had.
    """
    corrected = Columns("ti")
    corrected += batch.corrected.items()
    return await _apply(
        connection,
        _APPLY_JOURNAL,
        (
            *(projection_id, batch.log_id, batch.after, batch.last, batch.head, batch.apply_time, hear_time),
            *batch.transactions.arrays(),
            *batch.charges.arrays(),
            *corrected.arrays(),
            *batch.revenue.arrays(),
            *batch.movements.arrays(),
        ),
    )


async def apply_usage(
    connection: HotConnection[TupleRow], projection_id: int, batch: UsageBatch, hear_time: datetime | None
) -> bool:
    """As apply_journal."""
    return await _apply(
        connection,
        _APPLY_USAGE,
        (
            *(projection_id, batch.log_id, batch.after, batch.last, batch.head, batch.apply_time, hear_time),
            *batch.events.arrays(),
            *batch.outcomes.arrays(),
        ),
    )


async def _apply(connection: HotConnection[TupleRow], statement: str, parameters: tuple[object, ...]) -> bool:
    return bool((await single(await connection.execute(statement, parameters)))[0])
