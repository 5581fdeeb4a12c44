"""Taking charges that the ledger has confirmed from the queue, behind the callers' backs."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from typing import Final

from prometheus_client import Counter

from services.kit import log
from services.kit.db import Database, retry_transaction
from services.metering.domain.usage_record import ChargeKey
from services.metering.store import pending_charges

# So long keys gather. A statement for each run of single events took a tenth of what the run cost;
# recovery looks at a charge only after seconds.
_GATHER_SECONDS: Final = 0.05
_BATCH: Final = 5_000
_MAX_WAITING: Final = 100_000
_LOST = Counter(
    "tallystick_lost_confirmations", "Confirmed charges that stayed in the queue and are posted once more."
)
_log = log.get_logger()


class Confirmations:
    """Confirms in the background, one statement at a time, whatever gathered meanwhile.

    A caller need not wait for this: a confirmation that is lost, in a crash or because too many wait, costs
    no more than recovery posting the charge again, which changes nothing.
    """

    def __init__(self, writer: Database) -> None:
        self._writer = writer
        # As a set in order of arrival.
        self._waiting: dict[ChargeKey, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def add(self, keys: Sequence[ChargeKey]) -> None:
        """Confirm these charges soon."""
        room = _MAX_WAITING - len(self._waiting)
        self._waiting.update(dict.fromkeys(keys[:room]))
        _LOST.inc(len(keys[room:]))
        if self._waiting and self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self, grace: timedelta = timedelta(seconds=5)) -> None:
        """Confirm what has gathered, and wait for it."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=grace.total_seconds())

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                keys = list(islice(self._waiting, _BATCH))
                await self._confirm(keys)
                for key in keys:
                    del self._waiting[key]
        finally:
            self._task = None

    async def _gather(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), _GATHER_SECONDS)

    async def _confirm(self, keys: Sequence[ChargeKey]) -> None:
        async def confirm() -> None:
            async with self._writer.call() as connection:
                await pending_charges.confirm(connection, keys)

        try:
            await retry_transaction(confirm, idempotent=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, recovery posts them once more
            _LOST.inc(len(keys))
            _log.warning(
                "charges.not_confirmed", count=len(keys), error=type(error).__name__, detail=str(error)
            )
