"""Ends leases and holds whose time is over, and shows what is held. Any number of replicas may run it."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from prometheus_client import Counter, Gauge
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from services.kit.db import Database, retry_transaction
from services.kit.tenancy import PLATFORM, scope
from services.kit.worker import PeriodicWorker
from services.ledger.config import LedgerConfig
from services.ledger.store import expiry

# Rows per transaction. Ten thousand holds may expire in one instant: so few are over in milliseconds, and
# charges of the same customers come in between.
_LIMIT = 200
_FORGET_LIMIT = 1000
_MEASURE_INTERVAL = timedelta(seconds=15)

_REAPED = Counter(
    "tallystick_reaped", "Leases and holds that ended because their time was over.", ["kind", "currency_code"]
)
_REAPED_MICROS = Counter(
    "tallystick_reaped_micros", "Credits that these gave back, in micros.", ["kind", "currency_code"]
)
_HELD_MICROS = Gauge(
    "tallystick_held_credits_micros",
    "Credits held by leases and holds, in micros.",
    ["kind", "currency_code"],
)

_Reap = Callable[[AsyncConnection[TupleRow], int], Awaitable[list[expiry.Reaped]]]


def workers(config: LedgerConfig, writer: Database, reader: Database) -> list[PeriodicWorker]:
    """The reaper, the one that forgets, and the one that measures."""

    async def reap() -> bool:
        reaped = [await _reap(writer, expiry.reap_leases), await _reap(writer, expiry.reap_holds)]
        return max(reaped) == _LIMIT

    async def forget() -> bool:
        async def attempt() -> int:
            async with writer.hot() as connection:
                return await expiry.forget_ended(connection, _FORGET_LIMIT)

        return await retry_transaction(attempt) >= _FORGET_LIMIT

    async def measure() -> bool:
        async with reader.begin() as connection:
            await scope(connection, PLATFORM)
            held = await expiry.held_credits(connection)
        # What is held no longer has no row.
        _HELD_MICROS.clear()
        for kind, currency_code, credits in held:
            _HELD_MICROS.labels(kind, currency_code).set(credits)
        return False

    return [
        PeriodicWorker("ledger.reap", config.reap_interval, reap),
        PeriodicWorker("ledger.forget", _MEASURE_INTERVAL, forget),
        PeriodicWorker("ledger.measure", _MEASURE_INTERVAL, measure),
    ]


async def _reap(writer: Database, reap: _Reap) -> int:
    """How many were reaped in one transaction."""

    async def attempt() -> list[expiry.Reaped]:
        async with writer.hot() as connection:
            return await reap(connection, _LIMIT)

    found = await retry_transaction(attempt)
    for one in found:
        _REAPED.labels(one.kind, one.currency_code).inc(one.count)
        _REAPED_MICROS.labels(one.kind, one.currency_code).inc(one.credits)
    return sum(one.count for one in found)
