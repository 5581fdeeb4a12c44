"""Usage events: recording them, and finding one again."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row
from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection as Connection

from services.metering.domain.claim import Claim
from services.metering.domain.compiled_price import NO_TERMS
from services.metering.domain.price_counter import Counted
from services.metering.domain.usage_event import EventKey
from services.metering.domain.usage_record import IntendedCharge, KnownUsage, UsageRecord
from services.metering.store import counted_format, outcome_format
from services.metering.store.tables import recorded_usage

# Parameters travel in binary form (%b): the driver takes a twentieth of the time to write times, bytes and
# JSON in it.
_RECORD_USAGE = """
SELECT * FROM metering.record_usage(
    %b::text[], %b::text[], %b::integer[], %b::text[], %b::text[], %b::timestamptz[], %b::bytea[], %b::text[],
    %b::bytea[], %b::text[], %b::text[], %b::bigint[], %b::text[]::jsonb[],
    %b::text[], %b::bigint[], %b::bigint[], %b::timestamptz[], %b::text::jsonb, %b,
    %b::text[]::jsonb[], %b::timestamptz[], %b::text[]::jsonb[], %b::text[]::jsonb[]
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
            [outcome_format.lines_to_json(record.lines) for record in records],
            *_claim_columns([charge.claim for charge in charges]),
            outcome_format.to_json([record.deferred for record in records if record.deferred is not None]),
            recovery_delay,
            _terms_column(records),
            *_counted_columns([record.counted for record in records]),
        ),
    )
    known = [to_known_usage(row) for row in await cursor.fetchall()]
    return {one.record.charge.key: one for one in known}


async def look_up(connection: AsyncConnection[TupleRow], keys: Sequence[EventKey]) -> list[KnownUsage]:
    """Usage events by their keys, whoever they belong to, oldest first; unknown keys are passed over."""
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute(
        "SELECT * FROM metering.find_usage(%b::text[], %b::text[], %b::integer[])",
        (
            [key.customer_id for key in keys],
            [key.workflow_id for key in keys],
            [key.ordinal for key in keys],
        ),
    )
    return [to_known_usage(row) for row in await cursor.fetchall()]


async def find(connection: Connection, key: EventKey) -> KnownUsage | None:
    """A usage event, if the connection's tenants may see it."""
    return await _find(
        connection,
        recorded_usage.c.customer_id == key.customer_id,
        recorded_usage.c.workflow_id == key.workflow_id,
        recorded_usage.c.ordinal == key.ordinal,
    )


async def find_by_outcome(connection: Connection, outcome_id: str) -> KnownUsage | None:
    """The usage event of a deferred outcome, if the connection's tenants may see it."""
    return await _find(connection, recorded_usage.c.outcome_id == outcome_id)


async def _find(connection: Connection, *conditions: ColumnElement[bool]) -> KnownUsage | None:
    row = (await connection.execute(select(recorded_usage).where(*conditions))).one_or_none()
    return None if row is None else to_known_usage(row)


def to_known_usage(row: Any) -> KnownUsage:
    """The usage event in a row of metering.recorded_usage."""
    key = EventKey(row.customer_id, row.workflow_id, row.ordinal)
    deferred = None if row.outcome_id is None else outcome_format.to_deferred_outcome(row, key)
    record = UsageRecord(
        charge=IntendedCharge(
            key=key,
            organization_id=row.organization_id,
            agent_id=row.agent_id,
            occur_time=row.occur_time,
            currency_code=row.currency_code,
            amount_micros=row.amount_micros,
            price_version_id=row.price_version_id,
            evidence_hash=row.evidence_hash,
            claim=None if row.reservation_id is None else _to_claim(row),
            outcome_hold=None if deferred is None else deferred.hold,
        ),
        content=row.content,
        evidence_ref=row.evidence_ref,
        lines=outcome_format.to_lines(row.lines),
        deferred=deferred,
        contract_terms=counted_format.to_terms(row.contract_terms),
        counted=None if row.opening is None else Counted(row.period_start, row.opening, row.closing),
    )
    return KnownUsage(record, row.pending, row.outcome_pending)


def _claim_columns(claims: Sequence[Claim | None]) -> tuple[list[Any] | None, ...]:
    """Reservation ids, epochs, amounts and expire times; no arrays at all where nothing was reserved."""
    if not any(claims):
        return (None,) * 4
    columns = zip(
        *(
            (None,) * 4
            if claim is None
            else (claim.reservation_id, claim.lease_epoch, claim.amount_micros, claim.expire_time)
            for claim in claims
        ),
        strict=True,
    )
    return tuple(map(list, columns))


def _terms_column(records: Sequence[UsageRecord]) -> list[str | None] | None:
    """What contracts added; no array at all where none did."""
    if all(record.contract_terms is NO_TERMS for record in records):
        return None
    return [counted_format.terms_to_json(record.contract_terms) for record in records]


def _counted_columns(counted: Sequence[Counted | None]) -> tuple[list[Any] | None, ...]:
    """Period starts, opening and closing counters; no arrays at all where no price depended on any."""
    if not any(counted):
        return (None,) * 3
    columns = zip(
        *(
            (None,) * 3
            if one is None
            else (
                one.period_start,
                counted_format.counters_to_json(one.opening),
                counted_format.counters_to_json(one.closing),
            )
            for one in counted
        ),
        strict=True,
    )
    return tuple(map(list, columns))


def _to_claim(row: Any) -> Claim:
    return Claim(
        reservation_id=row.reservation_id,
        lease_epoch=row.lease_epoch,
        amount_micros=row.reserved_micros,
        currency_code=row.currency_code,
        expire_time=row.reservation_expire_time,
        price_version_id=row.price_version_id,
    )
