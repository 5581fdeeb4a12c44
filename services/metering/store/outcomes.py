"""Deferred outcomes: deciding them, once each."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row

from services.kit.db import single
from services.metering.domain.outcome import Decision, OutcomeState
from services.metering.domain.usage_event import Outcome
from services.metering.domain.usage_record import KnownUsage
from services.metering.store.counted_format import counters_to_json
from services.metering.store.outcome_format import bonuses_to_json
from services.metering.store.usage_events import to_known_usage


class Evidence(NamedTuple):
    """What a resolver brings along: `result` is a serialized google.protobuf.Struct, None for none."""

    ref: str = ""
    hash: bytes = b""
    result: bytes | None = None


NO_EVIDENCE: Final = Evidence()


async def resolve(
    connection: AsyncConnection[TupleRow],
    outcome_id: str,
    outcome: Outcome,
    evidence: Evidence,
    recovery_delay: timedelta,
) -> bool:
    """Decide an outcome, if it is pending and in time, and queue what follows; whether it was decided.

    Not one that is rated when it is decided.
    """
    cursor = await connection.execute(
        "SELECT metering.resolve_outcome(%b, %b, %b, %b, %b, %b)",
        (outcome_id, outcome.value, evidence.ref, evidence.hash, recovery_delay, evidence.result),
    )
    return bool((await single(cursor))[0])


async def lock(connection: AsyncConnection[TupleRow], outcome_id: str) -> KnownUsage | None:
    """Take an outcome that is rated when it is decided, until the transaction ends; its event.

    None if it was decided, or its time is over.
    """
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute("SELECT * FROM metering.lock_outcome(%b)", (outcome_id,))
    row = await cursor.fetchone()
    return None if row is None else to_known_usage(row)


async def lock_due(connection: AsyncConnection[TupleRow], limit: int) -> list[KnownUsage]:
    """Take up to `limit` due outcomes that are rated when they are decided; their events."""
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute("SELECT * FROM metering.lock_due_outcomes(%b::integer)", (limit,))
    return [to_known_usage(row) for row in await cursor.fetchall()]


async def decide(
    connection: AsyncConnection[TupleRow],
    state: OutcomeState,
    decisions: Mapping[str, tuple[Outcome, Decision]],
    recovery_delay: timedelta,
    evidence: Evidence = NO_EVIDENCE,
) -> None:
    """Decide outcomes that this transaction has taken, by their ids, and queue what follows."""
    counted = [decision.counted for _, decision in decisions.values()]
    await connection.execute(
        "SELECT metering.decide_outcomes(%b, %b::text[], %b::text[], %b::text[]::jsonb[],"
        " %b::text[]::jsonb[], %b::text[]::jsonb[], %b, %b, %b, %b)",
        (
            state.value,
            list(decisions),
            [outcome.value for outcome, _ in decisions.values()],
            [
                bonuses_to_json({outcome: decision.bonus} if decision.bonus.total_micros else {})
                for outcome, decision in decisions.values()
            ],
            [None if one is None else counters_to_json(one.opening) for one in counted],
            [None if one is None else counters_to_json(one.closing) for one in counted],
            evidence.ref,
            evidence.hash,
            evidence.result,
            recovery_delay,
        ),
    )


async def expire(
    connection: AsyncConnection[TupleRow], limit: int, recovery_delay: timedelta
) -> list[KnownUsage]:
    """Let up to `limit` due outcomes fall to their defaults, and queue what follows; their events."""
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute("SELECT * FROM metering.expire_outcomes(%s, %s)", (limit, recovery_delay))
    return [to_known_usage(row) for row in await cursor.fetchall()]
