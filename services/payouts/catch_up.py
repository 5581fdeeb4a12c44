"""The worker that reads the payment processor's list of events, for those that no webhook brought.

Each connected account has a list of its own, which takes a call at least, and webhooks bring nearly
everything. So the platform's list is read in every round, those of accounts whose money is on its way to a
bank once an hour, and the others once a day.
"""

from datetime import datetime, timedelta
from typing import Final

from services.kit import log
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.kit.worker import PeriodicWorker
from services.payouts.domain.event import EventError, EventState, ProcessorEvent
from services.payouts.intake import Intake
from services.payouts.processor.errors import KeyRefused, ProcessorError
from services.payouts.processor.events import Events
from services.payouts.store import cursors
from services.payouts.store.cursors import PLATFORM_ACCOUNT, EventCursor

# The payment processor lists no older ones.
KEPT: Final = timedelta(days=30)
# Events are not listed in the order in which they were made: some come to be seen late.
OVERLAP: Final = timedelta(minutes=10)
ON_ITS_WAY_PAUSE: Final = timedelta(hours=1)
AT_REST_PAUSE: Final = timedelta(days=1)
# Longer than reading some lists takes. If not, somebody else reads the same, which does no harm.
_LEASE: Final = timedelta(minutes=5)
_LEASED_AT_ONCE: Final = 20
# Lists that one round reads at most: the calls are wanted for payouts too.
_ROUND: Final = 500
_BATCH: Final = 256
_log = log.get_logger()


class CatchUp:
    """Reads lists of events that are due, one after another."""

    def __init__(self, *, writer: Database, events: Events, intake: Intake, clock: Clock) -> None:
        self._writer = writer
        self._events = events
        self._intake = intake
        self._clock = clock

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """Reads at once, and then every `interval`."""
        return PeriodicWorker("payouts.catch_up", interval, self.step)

    async def step(self) -> bool:
        """One round."""
        now = self._clock.now()
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            await cursors.begin_new(connection, now - KEPT, now)
            await cursors.hasten(connection, now + ON_ITS_WAY_PAUSE)
        # Only what is due at its beginning, or the platform's list would be read again and again.
        for _ in range(_ROUND // _LEASED_AT_ONCE):
            leased = await self._lease(now)
            for cursor in leased:
                await self._read(cursor)
            if len(leased) < _LEASED_AT_ONCE:
                break
        return False

    async def _lease(self, due: datetime) -> list[EventCursor]:
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            until = self._clock.now() + _LEASE
            return await cursors.lease(connection, due, until, _LEASED_AT_ONCE)

    async def _read(self, cursor: EventCursor) -> None:
        read_until = cursor.read_until
        try:
            read_until = await self._take_all(cursor)
            missed = False
        except KeyRefused as error:
            # Once a day is often enough to ask whether an account came back.
            missed = not error.is_account_gone
        except ProcessorError:
            missed = True
        if missed:
            # What was found is stored, and is found again: the cursor moves only past what was read whole.
            _log.warning("events.not_read", stripe_account_id=cursor.stripe_account_id)
        at_once = missed or cursor.stripe_account_id == PLATFORM_ACCOUNT
        next_read_time = self._clock.now() + (timedelta(0) if at_once else AT_REST_PAUSE)
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            await cursors.advance(connection, cursor, read_until, next_read_time)

    async def _take_all(self, cursor: EventCursor) -> datetime:
        """Store what is listed and concerns us; when the newest event there was made.

        Raises ProcessorError.
        """
        newest = cursor.read_until
        batch: list[ProcessorEvent] = []
        count = 0
        async for listed in self._events.since(cursor.read_until - OVERLAP, cursor.stripe_account_id):
            try:
                # Read on behalf of an account, an event may leave out whose it is.
                event = self._intake.read(
                    {"account": cursor.stripe_account_id or None, **listed}, caught_up=True
                )
            except EventError as error:
                _log.error("event.malformed", event_id=str(listed.get("id")), error=str(error))
                continue
            newest = max(newest, event.create_time)
            if event.state is not EventState.IGNORED:
                batch.append(event)
            if len(batch) == _BATCH:
                count += await self._intake.take_all(batch)
                batch = []
        if batch:
            count += await self._intake.take_all(batch)
        if count:
            _log.info("events.caught_up", stripe_account_id=cursor.stripe_account_id, count=count)
        return newest
