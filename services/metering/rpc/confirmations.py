"""Taking charges that the ledger has confirmed from the queue, behind the callers' backs."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain
from typing import Final

from prometheus_client import Counter

from services.kit.coalesce import Coalescer
from services.kit.db import Database, retry_transaction
from services.kit.errors import TallystickError
from services.metering.domain.usage_record import ChargeKey
from services.metering.store import pending_charges

_MAX_BATCHES_WAITING: Final = 256
_LOST = Counter(
    "tallystick_lost_confirmations", "Confirmed charges that stayed in the queue and are posted once more."
)


class Confirmations:
    """Confirms in the background, one statement at a time, whatever gathered meanwhile.

    A caller need not wait for this: a confirmation that is lost, in a crash or because too many wait, costs
    no more than recovery posting the charge again, which changes nothing.
    """

    def __init__(self, writer: Database) -> None:
        self._writer = writer
        self._coalescer = Coalescer[Sequence[ChargeKey], None](
            self._confirm, max_batch=64, max_queue=_MAX_BATCHES_WAITING
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, keys: Sequence[ChargeKey]) -> None:
        """Confirm these charges soon."""
        if keys:
            task = asyncio.create_task(self._submit(keys))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self, grace: timedelta = timedelta(seconds=5)) -> None:
        """Wait for what is under way."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace.total_seconds())

    async def _submit(self, keys: Sequence[ChargeKey]) -> None:
        try:
            await self._coalescer.submit(keys)
        except TallystickError:
            # The coalescer has logged it, unless there was just too much.
            _LOST.inc(len(keys))

    async def _confirm(self, batches: list[Sequence[ChargeKey]]) -> list[None]:
        keys = list(chain.from_iterable(batches))

        async def confirm() -> None:
            async with self._writer.call() as connection:
                await pending_charges.confirm(connection, keys)

        await retry_transaction(confirm, idempotent=True)
        return [None] * len(batches)
