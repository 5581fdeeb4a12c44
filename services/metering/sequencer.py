"""The sequencer: gives what was metered its gap-free positions in the usage feed."""

from datetime import timedelta
from typing import Final

from services.kit.db import Database, retry_transaction
from services.kit.worker import PeriodicWorker
from services.metering.store import usage_feed

# Rows per transaction: enough to keep up, few enough to be over in milliseconds.
_LIMIT: Final = 5000


class Sequencer:
    """Sequences usage. Any number of replicas may run one."""

    def __init__(self, writer: Database) -> None:
        self._writer = writer

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """The worker that does this for as long as the process lives."""
        return PeriodicWorker("metering.sequence", interval, self.step)

    async def step(self) -> bool:
        """Sequence some of what waits; whether more may be waiting."""

        async def sequence() -> int:
            async with self._writer.call() as connection:
                return await usage_feed.sequence(connection, _LIMIT)

        # Idempotent in that a second run goes on where the first one ended.
        return await retry_transaction(sequence, idempotent=True) == _LIMIT
