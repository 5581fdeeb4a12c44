"""When organizations are paid by themselves."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.payouts.domain.schedule import Interval, Schedule
from services.payouts.store.tables import connected_account, payout_schedule


async def find(connection: AsyncConnection, organization_id: str) -> Schedule | None:
    """The schedule of an organization, if it has one and the connection's tenants may see it."""
    row = (
        await connection.execute(
            select(payout_schedule).where(payout_schedule.c.organization_id == organization_id)
        )
    ).one_or_none()
    return None if row is None else _schedule(row)


async def put(connection: AsyncConnection, schedule: Schedule) -> None:
    """Set the schedule of an organization, whether it has one or not."""
    statement = insert(payout_schedule).values(**_values(schedule))
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[payout_schedule.c.organization_id],
            set_={name: statement.excluded[name] for name in _values(schedule)},
        )
    )


async def add_missing(connection: AsyncConnection, schedule: Schedule) -> None:
    """Give an organization this schedule, unless it has one."""
    await connection.execute(insert(payout_schedule).values(**_values(schedule)).on_conflict_do_nothing())


async def list_without(connection: AsyncConnection, limit: int) -> Sequence[str]:
    """Organizations with a connected account and no schedule."""
    rows = await connection.execute(
        select(connected_account.c.organization_id)
        .where(
            ~select(payout_schedule.c.organization_id)
            .where(payout_schedule.c.organization_id == connected_account.c.organization_id)
            .exists()
        )
        .order_by(connected_account.c.organization_id)
        .limit(limit)
    )
    return [row.organization_id for row in rows]


async def list_due(connection: AsyncConnection, now: datetime, limit: int) -> Sequence[Schedule]:
    """Schedules with a run that is due, the longest due first."""
    rows = await connection.execute(
        select(payout_schedule)
        .where(payout_schedule.c.next_run_time <= now)
        .order_by(payout_schedule.c.next_run_time)
        .limit(limit)
    )
    return [_schedule(row) for row in rows]


async def advance(connection: AsyncConnection, schedule: Schedule, next_run_time: datetime) -> bool:
    """A run is done. False if somebody else did it, or the schedule was set anew since it was read."""
    statement = (
        update(payout_schedule)
        .where(
            payout_schedule.c.organization_id == schedule.organization_id,
            payout_schedule.c.next_run_time == schedule.next_run_time,
            payout_schedule.c.payout_interval == schedule.interval,
        )
        .values(next_run_time=next_run_time)
        .returning(payout_schedule.c.organization_id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


def _values(of: Schedule) -> dict[str, Any]:
    return {
        "organization_id": of.organization_id,
        "payout_interval": of.interval,
        "time_zone": of.time_zone,
        "minimums": dict(of.minimums),
        "next_run_time": of.next_run_time,
        "update_time": of.update_time,
    }


def _schedule(row: "Row[Any]") -> Schedule:
    return Schedule(
        organization_id=row.organization_id,
        interval=Interval(row.payout_interval),
        time_zone=row.time_zone,
        minimums=row.minimums,
        next_run_time=row.next_run_time,
        update_time=row.update_time,
    )
