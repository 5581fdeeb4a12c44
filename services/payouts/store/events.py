"""The inbox: events of the payment processor, and whose turn it is to handle them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection as HotConnection
from psycopg.rows import TupleRow
from sqlalchemy import Row, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.db import single
from services.payouts.domain.event import EventState, ProcessorEvent
from services.payouts.store.tables import processor_event


async def receive(connection: HotConnection[TupleRow], events: Sequence[ProcessorEvent]) -> int:
    """Store those that are new, in one round trip; how many were."""
    cursor = await connection.execute(
        "SELECT receive_events(%s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[], %s::text[],"
        " %s::text[], %s::boolean[], %s::timestamptz[], %s::timestamptz[])",
        (
            [event.event_id for event in events],
            [event.type for event in events],
            [event.stripe_account_id for event in events],
            [event.object_id for event in events],
            [event.livemode for event in events],
            [event.state.value for event in events],
            [event.note for event in events],
            [event.caught_up for event in events],
            [event.create_time for event in events],
            [event.receive_time for event in events],
        ),
    )
    return int((await single(cursor))[0])


async def lease(
    connection: AsyncConnection, now: datetime, until: datetime, limit: int
) -> list[ProcessorEvent]:
    """Take up to `limit` events that are due, those first that are due for longest; nobody else takes them
    before `until`.

    Rows that another worker is taking are skipped, and not waited for.
    """
    due = (
        select(processor_event.c.event_id)
        .where(processor_event.c.next_attempt_time <= now)
        .order_by(processor_event.c.next_attempt_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    taken = await connection.execute(
        update(processor_event)
        .where(processor_event.c.event_id == due.c.event_id)
        .values(next_attempt_time=until, attempt_count=processor_event.c.attempt_count + 1)
        .returning(processor_event)
    )
    return [_event(row) for row in taken]


async def finish(connection: AsyncConnection, leased: ProcessorEvent, after: ProcessorEvent) -> bool:
    """Write what came of an attempt. False if the lease was lost meanwhile: whoever has it has the say."""
    kept = await connection.execute(
        update(processor_event)
        .where(
            processor_event.c.event_id == leased.event_id,
            processor_event.c.next_attempt_time == leased.next_attempt_time,
        )
        .values(state=after.state, note=after.note, next_attempt_time=after.next_attempt_time)
        .returning(processor_event.c.event_id)
    )
    return kept.one_or_none() is not None


async def try_again(connection: AsyncConnection, event_id: str, now: datetime) -> None:
    """Have an event handled now that is quarantined or failing; any other stays as it is."""
    await connection.execute(
        update(processor_event)
        .where(
            processor_event.c.event_id == event_id,
            processor_event.c.state.in_((EventState.QUARANTINED, EventState.FAILING)),
        )
        .values(state=EventState.PENDING, note="", attempt_count=0, next_attempt_time=now)
    )


async def find(connection: AsyncConnection, event_id: str) -> ProcessorEvent | None:
    """An event, if the connection's tenants may see it."""
    row = (
        await connection.execute(select(processor_event).where(processor_event.c.event_id == event_id))
    ).one_or_none()
    return None if row is None else _event(row)


async def list_newest(
    connection: AsyncConnection, state: EventState | None, before: tuple[datetime, str] | None, limit: int
) -> Sequence[ProcessorEvent]:
    """Up to `limit` events, the last received first, that come after the one with this time of receipt and
    id.
    """
    received = tuple_(processor_event.c.receive_time, processor_event.c.event_id)
    statement = (
        select(processor_event)
        .order_by(processor_event.c.receive_time.desc(), processor_event.c.event_id.desc())
        .limit(limit)
    )
    if state is not None:
        statement = statement.where(processor_event.c.state == state)
    if before is not None:
        statement = statement.where(received < tuple_(*before))
    return [_event(row) for row in await connection.execute(statement)]


def _event(row: "Row[Any]") -> ProcessorEvent:
    columns = row._asdict()
    return ProcessorEvent(**{**columns, "state": EventState(row.state)})
