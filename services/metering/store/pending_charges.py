"""The queue of charges that the ledger has not confirmed."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row, scalar_row

from services.metering.domain.usage_event import EventKey
from services.metering.domain.usage_record import ChargeKey, Component, IntendedCharge, outcome_charge
from services.metering.store import usage_events


class FailedCharge(NamedTuple):
    """An attempt of recovery that failed; `refused` if trying again cannot help."""

    key: ChargeKey
    error: str
    refused: bool


async def confirm(connection: AsyncConnection[TupleRow], keys: Sequence[ChargeKey]) -> None:
    """Take charges that the ledger has confirmed from the queue; unknown keys are fine."""
    await connection.execute(
        "SELECT metering.confirm_charges(%b::text[], %b::text[], %b::integer[], %b::text[])", _columns(keys)
    )


async def take(
    connection: AsyncConnection[TupleRow], limit: int, *, first_delay: timedelta, longest_delay: timedelta
) -> list[IntendedCharge]:
    """Up to `limit` charges that are due, those of the oldest work first. Nobody else gets them before their
    next attempt: `first_delay` from now, doubling with each attempt up to `longest_delay`.
    """
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute(
        "SELECT * FROM metering.take_pending_charges(%s, %s, %s)", (limit, first_delay, longest_delay)
    )
    rows: list[Any] = await cursor.fetchall()
    components = {
        EventKey(row.customer_id, row.workflow_id, row.ordinal): Component(row.component) for row in rows
    }
    if not components:
        return []
    # Credits pay for charges in this order. There is one of each event: its outcome's waits for its base.
    records = [known.record for known in await usage_events.look_up(connection, list(components))]
    return [
        record.charge if components[record.charge.key] is Component.BASE else outcome_charge(record)
        for record in records
    ]


async def note_failed(connection: AsyncConnection[TupleRow], failed: Sequence[FailedCharge]) -> None:
    """Keep why attempts failed; refused charges stay in the queue and are not tried again."""
    await connection.execute(
        "SELECT metering.note_failed_charges("
        "%b::text[], %b::text[], %b::integer[], %b::text[], %b::text[], %b::boolean[])",
        (
            *_columns([one.key for one in failed]),
            [one.error for one in failed],
            [one.refused for one in failed],
        ),
    )


async def count_refused(connection: AsyncConnection[TupleRow]) -> int:
    """How many charges the ledger has refused for good."""
    cursor = connection.cursor(row_factory=scalar_row)
    await cursor.execute("SELECT metering.count_refused_charges()")
    return int(await cursor.fetchone() or 0)


def _columns(keys: Sequence[ChargeKey]) -> tuple[list[str], list[str], list[int], list[str]]:
    return (
        [key.customer_id for key in keys],
        [key.workflow_id for key in keys],
        [key.ordinal for key in keys],
        [key.component.value for key in keys],
    )
