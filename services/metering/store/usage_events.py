"""Usage events: recording them, and finding one again."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row
from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncConnection as Connection

from services.metering.domain.price_book import UnitPrice
from services.metering.domain.rating import RatedLine
from services.metering.domain.usage_event import EventKey
from services.metering.domain.usage_record import KnownUsage, UsageRecord
from services.metering.store.pending_charges import to_intended_charge
from services.metering.store.tables import pending_charge, usage_event

# Parameters travel in binary form (%b): the driver takes a twentieth of the time to write times, bytes and
# JSON in it.
_RECORD_USAGE = """
SELECT * FROM metering.record_usage(
    %b::text[], %b::text[], %b::integer[], %b::text[], %b::text[], %b::timestamptz[], %b::bytea[], %b::text[],
    %b::bytea[], %b::text[], %b::text[], %b::bigint[], %b::text[]::jsonb[], %b
)
"""


async def record(
    connection: AsyncConnection[TupleRow], records: Sequence[UsageRecord], recovery_delay: timedelta
) -> dict[EventKey, KnownUsage]:
    """Record usage events and queue their charges; answers those that had been recorded before.

    Keys must be distinct. Recovery leaves the charges alone for `recovery_delay`. One statement: see
    metering.record_usage for its order of steps.
    """
    charges = [record.charge for record in records]
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute(
        _RECORD_USAGE,
        (
            [charge.key.customer_id for charge in charges],
            [charge.key.workflow_id for charge in charges],
            [charge.key.ordinal for charge in charges],
            [charge.organization_id for charge in charges],
            [charge.agent_id for charge in charges],
            [charge.occur_time for charge in charges],
            [record.content for record in records],
            [record.evidence_ref for record in records],
            [charge.evidence_hash for charge in charges],
            [charge.price_version_id for charge in charges],
            [charge.currency_code for charge in charges],
            [charge.amount_micros for charge in charges],
            [_lines_to_json(record.lines) for record in records],
            recovery_delay,
        ),
    )
    known = [_known_usage(row) for row in await cursor.fetchall()]
    return {one.record.charge.key: one for one in known}


async def find(connection: Connection, key: EventKey) -> KnownUsage | None:
    """A usage event, if the connection's tenants may see it."""
    is_pending = exists().where(
        pending_charge.c.customer_id == usage_event.c.customer_id,
        pending_charge.c.workflow_id == usage_event.c.workflow_id,
        pending_charge.c.ordinal == usage_event.c.ordinal,
    )
    query = select(usage_event, is_pending.label("pending")).where(
        usage_event.c.customer_id == key.customer_id,
        usage_event.c.workflow_id == key.workflow_id,
        usage_event.c.ordinal == key.ordinal,
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _known_usage(row)


def _known_usage(row: Any) -> KnownUsage:
    record = UsageRecord(
        charge=to_intended_charge(row),
        content=row.content,
        evidence_ref=row.evidence_ref,
        lines=tuple(
            RatedLine(name, quantity, UnitPrice(amount, per_units), micros)
            for name, quantity, amount, per_units, micros in row.lines
        ),
    )
    return KnownUsage(record, row.pending)


def _lines_to_json(lines: Sequence[RatedLine]) -> str:
    # Put together by hand, which takes a third of the time of json.dumps: names and decimals were checked
    # when the price was stored and hold nothing that JSON would escape.
    return f"[{','.join(map(_line_to_json, lines))}]"


def _line_to_json(line: RatedLine) -> str:
    name, quantity, price, micros = line
    return f'["{name}",{quantity},"{price.amount}",{price.per_units},{micros}]'
