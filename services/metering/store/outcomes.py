"""Deferred outcomes: deciding them, once each."""

from datetime import timedelta

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row

from services.kit.db import single
from services.metering.domain.usage_event import Outcome
from services.metering.domain.usage_record import KnownUsage
from services.metering.store.usage_events import to_known_usage


async def resolve(
    connection: AsyncConnection[TupleRow],
    outcome_id: str,
    outcome: Outcome,
    evidence_ref: str,
    evidence_hash: bytes,
    recovery_delay: timedelta,
) -> bool:
    """Decide an outcome, if it is pending and in time, and queue what follows; whether it was decided."""
    cursor = await connection.execute(
        "SELECT metering.resolve_outcome(%b, %b, %b, %b, %b)",
        (outcome_id, outcome.value, evidence_ref, evidence_hash, recovery_delay),
    )
    return bool((await single(cursor))[0])


async def expire(
    connection: AsyncConnection[TupleRow], limit: int, recovery_delay: timedelta
) -> list[KnownUsage]:
    """Let up to `limit` due outcomes fall to their defaults, and queue what follows; their events."""
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute("SELECT * FROM metering.expire_outcomes(%s, %s)", (limit, recovery_delay))
    return [to_known_usage(row) for row in await cursor.fetchall()]
