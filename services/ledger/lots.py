"""Credit lots beside the calls: allocates what was spent, expires what time ends, settles promotions.

Any number of replicas may run all of it.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from prometheus_client import Counter
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from services.kit.db import Database, retry_transaction
from services.kit.worker import PeriodicWorker
from services.ledger.config import LedgerConfig
from services.ledger.store import lots

# Positions of the log per transaction. It locks nobody's money, so it may take more than the others.
_ALLOCATE_LIMIT = 5000
# These hold the locks of the customers that they are about: over in milliseconds.
_EXPIRE_LIMIT = 200
_SETTLE_LIMIT = 50

_EXPIRED = Counter(
    "tallystick_expired_lots", "Credit lots that expired, in whole or in part.", ["currency_code"]
)
_EXPIRED_MICROS = Counter(
    "tallystick_expired_credits_micros", "Credits that expired, in micros.", ["currency_code"]
)

Done = TypeVar("Done")


def workers(config: LedgerConfig, writer: Database) -> list[PeriodicWorker]:
    """The allocator, the one that expires, and the one that settles promotions."""

    async def allocate() -> bool:
        return await _step(writer, lots.allocate, _ALLOCATE_LIMIT) == _ALLOCATE_LIMIT

    async def settle() -> bool:
        return await _step(writer, lots.settle_promotions, _SETTLE_LIMIT) == _SETTLE_LIMIT

    async def expire() -> bool:
        expired = await _step(writer, lots.expire, _EXPIRE_LIMIT)
        for one in expired:
            _EXPIRED.labels(one.currency_code).inc(one.lots)
            _EXPIRED_MICROS.labels(one.currency_code).inc(one.credits)
        # What is due but held comes again after a pause of its own.
        return any(one.lots for one in expired)

    return [
        PeriodicWorker("ledger.allocate_lots", config.lot_interval, allocate),
        PeriodicWorker("ledger.settle_promotions", config.lot_interval, settle),
        PeriodicWorker("ledger.expire_lots", config.reap_interval, expire),
    ]


async def _step(
    writer: Database, step: Callable[[AsyncConnection[TupleRow], int], Awaitable[Done]], limit: int
) -> Done:
    """One bounded transaction of a step. What it did is not done again by a second attempt."""

    async def attempt() -> Done:
        async with writer.call() as connection:
            return await step(connection, limit)

    return await retry_transaction(attempt, idempotent=True)
