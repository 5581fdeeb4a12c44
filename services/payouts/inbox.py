"""The worker that handles what the payment processor said happened, by reading what is there now.

Any number of processes may run it: an event is leased, and handling it twice has one effect.
"""

import asyncio
from datetime import timedelta
from typing import Final

from prometheus_client import Counter

from services.kit import log
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import Code
from services.kit.status import translate
from services.kit.tenancy import PLATFORM, scope
from services.kit.worker import PeriodicWorker
from services.payouts.domain.event import (
    EventState,
    Handlers,
    Outcome,
    ProcessorEvent,
    ended,
    failing,
    ignored,
    quarantined,
)
from services.payouts.processor.errors import KeyRefused, ProcessorError, Refused
from services.payouts.store import events

# Longer than an event takes, unless the payment processor hangs in every call.
LEASE: Final = timedelta(minutes=2)

_HANDLED: Final = Counter(
    "tallystick_events_handled", "Attempts to handle events, by what came of them.", ["state"]
)
_log = log.get_logger()


class Inbox:
    """Handles events that are due, at most `concurrency` at once in this process. A Worker."""

    def __init__(
        self,
        *,
        writer: Database,
        handlers: Handlers,
        clock: Clock,
        concurrency: int,
        interval: timedelta,
    ) -> None:
        self._writer = writer
        self._handlers = handlers
        self._clock = clock
        self._concurrency = concurrency
        self._running: set[asyncio.Task[None]] = set()
        self._worker = PeriodicWorker("payouts.inbox", interval, self.step)

    def start(self) -> None:
        self._worker.start()

    def wake(self) -> None:
        """Events have come."""
        self._worker.wake()

    async def stop(self, grace: timedelta) -> None:
        deadline = asyncio.get_running_loop().time() + grace.total_seconds()
        await self._worker.stop(grace)
        if self._running:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            _, late = await asyncio.wait(self._running, timeout=left)
            for task in late:
                # Its lease ends by itself, and somebody else handles the event.
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def step(self) -> bool:
        """Begin with events that are due, as many as there is room for. Answers whether there may be more.

        It does not wait for them: one that takes long holds up nobody but itself.
        """
        room = self._concurrency - len(self._running)
        leased = await self._lease(room)
        for event in leased:
            task = asyncio.create_task(self._handle(event))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        if len(self._running) >= self._concurrency:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        return len(leased) == room

    async def _lease(self, limit: int) -> list[ProcessorEvent]:
        now = self._clock.now()
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            return await events.lease(connection, now, now + LEASE, limit)

    async def _handle(self, event: ProcessorEvent) -> None:
        outcome = await self._outcome(event)
        try:
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                after = ended(event, outcome, self._clock.now())
                if not await events.finish(connection, event, after):
                    return
        except Exception as error:  # noqa: BLE001 - whatever it is, the event is handled again after its lease
            _log.warning("event.not_finished", event_id=event.event_id, error=type(error).__name__)
            return
        _tell_operators(event, outcome)

    async def _outcome(self, event: ProcessorEvent) -> Outcome:
        handler = self._handlers.find(event.type)
        if handler is None:
            return ignored("of a type that does not concern us")
        try:
            return await handler(event)
        except Refused as error:
            return quarantined(f"the payment processor does not show it: {error.message}")
        except KeyRefused as error:
            if error.is_account_gone:
                return quarantined(f"the account is not ours to read: {error.message}")
            return failing(f"our API key is refused: {error.message}")
        except ProcessorError as error:
            return failing(f"{type(error).__name__}: {error.code or error.message}")
        except Exception as error:  # noqa: BLE001 - logged here; one event must not stop the others
            answer = translate(error)
            if answer.code is Code.INTERNAL:
                _log.error("event.crashed", event_id=event.event_id, type=event.type, exc_info=error)
            return failing(f"{answer.reason}: {answer.message}")


def _tell_operators(event: ProcessorEvent, outcome: Outcome) -> None:
    """Log and count what became of an event."""
    _HANDLED.labels(outcome.state).inc()
    about = {
        "event_id": event.event_id,
        "type": event.type,
        "stripe_account_id": event.stripe_account_id,
        "object_id": event.object_id,
        "note": outcome.note,
        "attempts": event.attempt_count,
    }
    if outcome.state is EventState.QUARANTINED:
        _log.error("event.quarantined", **about)
    elif outcome.state is EventState.FAILING:
        _log.warning("event.failing", **about)
    else:
        _log.info(f"event.{outcome.state}", **about)
