"""Taking in events of the payment processor, whichever way they come."""

from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import Counter

from services.kit.clock import Clock
from services.kit.coalesce import Coalescer
from services.kit.db import Database, retry_transaction
from services.payouts.domain.event import EventState, Handlers, ProcessorEvent, arrived, parse_event
from services.payouts.store import events

_RECEIVED: Final = Counter("tallystick_events_received", "New events of the payment processor.", ["source"])


class Intake:
    """Stores each event once, to be handled by the inbox."""

    def __init__(
        self,
        *,
        writer: Database,
        handlers: Handlers,
        livemode: bool,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is told when there are new events to handle."""
        self._writer = writer
        self._handlers = handlers
        self._livemode = livemode
        self._clock = clock
        self._wake = wake
        self._gathered: Coalescer[ProcessorEvent, None] = Coalescer(self._take_sent)

    def read(self, content: object, *, caught_up: bool = False) -> ProcessorEvent:
        """The event in decoded JSON, as it is to be stored. Raises EventError."""
        event = parse_event(content, now=self._clock.now(), caught_up=caught_up)
        return arrived(event, self._handlers, livemode=self._livemode)

    async def take(self, event: ProcessorEvent) -> None:
        """Store one that was sent to us, together with others that come at the same time.

        It is committed when this returns. Raises TallystickError.
        """
        await self._gathered.submit(event)

    async def take_all(self, listed: Sequence[ProcessorEvent]) -> int:
        """Store those that are new of what was found in the list of events; how many were."""
        return await self._store(listed, "list")

    async def _take_sent(self, sent: list[ProcessorEvent]) -> list[None]:
        await self._store(sent, "webhook")
        return [None] * len(sent)

    async def _store(self, found: Sequence[ProcessorEvent], source: str) -> int:
        async def attempt() -> int:
            async with self._writer.call() as connection:
                return await events.receive(connection, found)

        # Repeated after a lost connection: what was stored by then is there already.
        new_count = await retry_transaction(attempt, idempotent=True)
        _RECEIVED.labels(source).inc(new_count)
        # Of what is ignored there is nothing to handle, and a look for it costs more than to store it.
        if new_count and any(event.state is EventState.PENDING for event in found):
            self._wake()
        return new_count
