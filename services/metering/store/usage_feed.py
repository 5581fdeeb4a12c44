"""Usage in the order in which it became known.

Read models read all of it, so events come as rows, on a plain connection: objects made of them first would
take as long again. Outcomes that are decided later are fewer.
"""

from collections.abc import Sequence
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row

from services.kit.db import single
from services.kit.feeds import FeedSlice, check_log
from services.metering.domain.outcome import DeferredOutcome
from services.metering.domain.usage_event import EventKey
from services.metering.store import outcome_format

_LOG: Final = "SELECT log_id, last_position FROM metering.usage_log ORDER BY create_time DESC LIMIT 1"
_RECORDED: Final = """
    SELECT p.position, u.customer_id, u.workflow_id, u.ordinal, u.organization_id, u.occur_time, u.content,
           u.evidence_ref, u.evidence_hash, u.price_version_id, u.currency_code, u.amount_micros,
           u.lines::text AS lines, u.create_time
    FROM metering.usage_position p
    JOIN metering.usage_event u USING (customer_id, workflow_id, ordinal)
    WHERE p.log_id = %s AND p.position > %s AND p.position <= %s AND p.kind = 'recorded'
    ORDER BY p.position
"""
_DECIDED: Final = """
    SELECT p.position, r.customer_id, r.workflow_id, r.ordinal, r.organization_id, r.agent_id,
           r.currency_code, r.outcome_id, r.api_key_id, r.expired_outcome, r.outcome_expire_time, r.bonuses,
           r.max_bonus_micros, r.outcome_state, r.outcome, r.resolve_time, r.outcome_evidence_ref,
           r.outcome_evidence_hash, r.outcome_result, r.period_start, r.outcome_opening, r.outcome_closing
    FROM metering.usage_position p
    JOIN metering.recorded_usage r USING (customer_id, workflow_id, ordinal)
    WHERE p.log_id = %s AND p.position > %s AND p.position <= %s AND p.kind = 'decided'
    ORDER BY p.position
"""


class DecidedUsage(NamedTuple):
    """A deferred outcome that was decided, and whose event it belongs to."""

    position: int
    organization_id: str
    deferred: DeferredOutcome


class UsageRows(NamedTuple):
    """Events that were recorded, as rows, and outcomes that were decided, each in the order of positions.

    The lines of a row are JSON in the form of store/outcome_format.py.
    """

    recorded: Sequence[Any]
    decided: Sequence[DecidedUsage]


async def sequence(connection: AsyncConnection[TupleRow], limit: int) -> int:
    """Give up to `limit` of what waits its position in the log; how many."""
    cursor = await connection.execute("SELECT metering.sequence_usage(%s)", (limit,))
    return int((await single(cursor))[0])


async def read_usage(
    connection: AsyncConnection[TupleRow], log_id: str, after: int, size: int
) -> FeedSlice[UsageRows]:
    """What stands at the next `size` positions behind `after`."""
    current, head = await single(await connection.execute(_LOG))
    check_log(log_id, current)
    until = min(after + size, head)
    if until <= after:
        return FeedSlice(current, UsageRows((), ()), after, head)
    between = (current, after, until)
    recorded = await _rows(connection, _RECORDED, between)
    decided = [_decided(row) for row in await _rows(connection, _DECIDED, between)]
    return FeedSlice(current, UsageRows(recorded, decided), until, head)


async def _rows(
    connection: AsyncConnection[TupleRow], statement: LiteralString, between: tuple[str, int, int]
) -> list[Any]:
    cursor = connection.cursor(row_factory=namedtuple_row, binary=True)
    await cursor.execute(statement, between)
    return await cursor.fetchall()


def _decided(row: Any) -> DecidedUsage:
    key = EventKey(row.customer_id, row.workflow_id, row.ordinal)
    return DecidedUsage(row.position, row.organization_id, outcome_format.to_deferred_outcome(row, key))
