"""The projector: reads the feeds and makes the projections of them.

Two workers do the same for two projections: the one that answers, and the one that is being built. Replicas
may do it at the same time: whoever applies a batch moves the feed's position with it, and the others find
that they are late. What a crash leaves is a position, and everything up to it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Generic, TypeVar

from prometheus_client import Counter, Gauge
from psycopg import AsyncConnection as HotConnection
from psycopg.rows import TupleRow

from services.kit import log
from services.kit.clock import Clock
from services.kit.db import Database, retry_transaction
from services.kit.tenancy import PLATFORM, scope
from services.kit.worker import PeriodicWorker
from services.reporting.domain.facts import Batch, JournalBatch, UsageBatch
from services.reporting.domain.projection import Feed, FeedGap, LostLog, Progress, Projection, ProjectionState
from services.reporting.rpc.feeds import FeedReader
from services.reporting.store import projections

B = TypeVar("B", bound=Batch)
Apply = Callable[[HotConnection[TupleRow], int, B, datetime | None], Awaitable[bool]]

# Of one feed, before the other one gets its turn.
_TURN: Final = 20
# Rows of each table that one step removes of a projection that was retired.
_REMOVED_AT_ONCE: Final = 5_000

_LAG = Gauge(
    "tallystick_feed_lag_seconds", "How old what reporting knows of a feed is: of what answers.", ["feed"]
)
_POSITION = Gauge(
    "tallystick_feed_position", "How far the projection that answers has read a feed.", ["feed"]
)
_HEAD = Gauge("tallystick_feed_head_position", "The last position of a feed, as far as is known.", ["feed"])
_APPLIED = Counter("tallystick_feed_records", "Records that were applied.", ["feed", "projection"])
_GAPS = Counter(
    "tallystick_feed_gaps", "Feeds that skipped or repeated something: reporting stands still.", ["feed"]
)
_LOST = Counter("tallystick_feed_lost_logs", "Feeds that came to be others: all is read again.", ["feed"])
_log = log.get_logger()


@dataclass(frozen=True, slots=True)
class _Source(Generic[B]):
    """A feed, and how what it says is applied."""

    reader: FeedReader[B]
    apply: Apply[B]


class Projector:
    """Reads both feeds for the projections."""

    def __init__(
        self,
        *,
        writer: Database,
        usage: FeedReader[UsageBatch],
        journal: FeedReader[JournalBatch],
        clock: Clock,
        batch_size: int,
        removal_delay: timedelta,
    ) -> None:
        self._writer = writer
        self._usage = _Source(usage, projections.apply_usage)
        self._journal = _Source(journal, projections.apply_journal)
        self._clock = clock
        self._batch_size = batch_size
        self._removal_delay = removal_delay
        self._builder: PeriodicWorker | None = None
        # Projections whose feeds are no longer there.
        self._lost: set[int] = set()

    def workers(self, interval: timedelta) -> list[PeriodicWorker]:
        """They look for news every `interval`."""
        self._builder = PeriodicWorker("reporting.builder", interval, self.build)
        return [PeriodicWorker("reporting.projector", interval, self.follow), self._builder]

    async def follow(self) -> bool:
        """Bring the projection that answers up to date, and begin one if there is none. Whether there is more
        to do.
        """
        projection = await self._find(ProjectionState.SERVING)
        if projection is None:
            async with self._writer.begin() as connection:
                await projections.begin_first(connection)
            return True
        self._observe(projection)
        return await self._advance(projection)

    async def build(self) -> bool:
        """Go on with the projection that is being built, and let it answer once it has read as much as the
        one that does; else remove some of one that was retired. Whether there is more to do.
        """
        projection = await self._find(ProjectionState.BUILDING)
        if projection is None:
            async with self._writer.begin() as connection:
                before = self._clock.now() - self._removal_delay
                return await projections.remove_retired(connection, before, _REMOVED_AT_ONCE)
        more = await self._advance(projection)
        async with self._writer.begin() as connection:
            serving = await projections.serve(connection, projection.projection_id)
        if serving:
            _log.info("projection.serving", projection_id=projection.projection_id)
        return more

    async def begin(self, lost: int | None = None) -> int:
        """Begin to build a projection, unless one is being built other than `lost`; its id."""
        async with self._writer.begin() as connection:
            projection_id = await projections.begin(connection, lost)
        _log.info("projection.begun", projection_id=projection_id)
        if self._builder is not None:
            self._builder.wake()
        return projection_id

    async def _find(self, state: ProjectionState) -> Projection | None:
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            found = await projections.list_all(connection)
        return next((one for one in found if one.state is state), None)

    async def _advance(self, projection: Projection) -> bool:
        """Read both feeds for a while, at the same time; whether there is more to read. A feed that is away
        does not keep the other from being read.
        """
        # Usage has a batch's head start: it says of what is charged what it was for, and to have it first is
        # cheaper than to add it later.
        ahead = asyncio.Event()
        nobody = asyncio.Event()
        nobody.set()
        read = await asyncio.gather(
            self._read(self._usage, projection, behind=nobody, ahead=ahead),
            self._read(self._journal, projection, behind=ahead, ahead=asyncio.Event()),
            return_exceptions=True,
        )
        failures = [one for one in read if isinstance(one, BaseException)]
        for feed, failure in zip((Feed.USAGE, Feed.JOURNAL), read, strict=True):
            if isinstance(failure, FeedGap):
                _GAPS.labels(feed).inc()
            # Once, and not in every round until another projection answers.
            if isinstance(failure, LostLog) and projection.projection_id not in self._lost:
                _LOST.labels(feed).inc()
                _log.error("feed.lost", feed=feed, projection_id=projection.projection_id, error=str(failure))
                async with self._writer.begin() as connection:
                    await projections.lose_feed(connection, projection.projection_id, feed)
        if any(isinstance(failure, LostLog) for failure in failures):
            self._lost.add(projection.projection_id)
            # It answers what it knows until another one is built; nothing can be added to it.
            await self.begin(projection.projection_id)
            failures = [failure for failure in failures if not isinstance(failure, LostLog)]
        more = any(one is True for one in read)
        if failures and not more:
            raise failures[0]
        for failure in failures:
            # Who waits after a failure must not be the feed that has more: it would be read in bits.
            _log.error("feed.failed", projection_id=projection.projection_id, exc_info=failure)
        return more

    async def _read(
        self, source: _Source[B], projection: Projection, *, behind: asyncio.Event, ahead: asyncio.Event
    ) -> bool:
        """Read a feed to its end, or for some batches; whether there is more. The next batch is read while
        one is being applied. The first one is applied when the other feed is out of the way, and is then
        `ahead`; so it is if nothing came.
        """
        asked = self._clock.now()
        progress = projection.feeds[source.reader.feed]
        applying: asyncio.Task[bool] | None = None
        turns = 0

        async def apply(batch: B) -> bool:
            await behind.wait()
            applied = await self._apply(source, projection, batch, asked)
            ahead.set()
            return applied

        try:
            async with aclosing(source.reader.batches(progress, self._batch_size)) as batches:
                try:
                    async for batch in batches:
                        if applying is not None:
                            applied = await applying
                            applying = None
                            if not applied:
                                return True
                        if batch.count:
                            applying = asyncio.create_task(apply(batch))
                        elif turns == 0:
                            await self._hear(projection, progress, asked)
                        turns += 1
                        if turns == _TURN:
                            break
                finally:
                    # Also when the batch behind it cannot be read: what came in order is applied.
                    applied = applying is None or await applying
        finally:
            ahead.set()
        return not applied or turns == _TURN

    async def _apply(self, source: _Source[B], projection: Projection, batch: B, asked: datetime) -> bool:
        """Apply a batch; False if another replica was there first."""

        async def attempt() -> bool:
            async with self._writer.hot() as connection:
                return await source.apply(
                    connection, projection.projection_id, batch, asked if batch.at_end else None
                )

        # A second attempt that finds the first one's work says False, and the position is read again.
        applied = await retry_transaction(attempt, idempotent=True)
        if applied:
            _APPLIED.labels(source.reader.feed, projection.state).inc(batch.count)
        return applied

    async def _hear(self, projection: Projection, progress: Progress, asked: datetime) -> None:
        async with self._writer.hot() as connection:
            await projections.hear(connection, projection.projection_id, progress, asked)

    def _observe(self, projection: Projection) -> None:
        now = self._clock.now()
        for feed, progress in projection.feeds.items():
            _POSITION.labels(feed).set(progress.position)
            _HEAD.labels(feed).set(progress.head_position)
            known_until = progress.known_until() or projection.create_time
            _LAG.labels(feed).set(max(0.0, (now - known_until).total_seconds()))
