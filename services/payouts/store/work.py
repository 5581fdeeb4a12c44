"""Which organizations have payouts with something to do, and who works on them."""

from datetime import datetime

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.payouts.store.tables import payout, payout_work


async def wake(connection: AsyncConnection, organization_id: str, due: datetime) -> None:
    """Have an organization's payouts worked on at `due`, or earlier if that was planned."""
    statement = insert(payout_work).values(organization_id=organization_id, due_time=due)
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[payout_work.c.organization_id],
            set_={"due_time": func.least(payout_work.c.due_time, statement.excluded.due_time)},
        )
    )


async def lease(
    connection: AsyncConnection, lease_id: str, now: datetime, until: datetime, limit: int
) -> list[str]:
    """Take up to `limit` organizations that are due and that nobody works on, the longest due first.

    Rows that another worker is taking are skipped, and not waited for.
    """
    free = (
        select(payout_work.c.organization_id)
        .where(
            payout_work.c.due_time <= now,
            or_(payout_work.c.lease_until.is_(None), payout_work.c.lease_until <= now),
        )
        .order_by(payout_work.c.due_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    taken = await connection.execute(
        update(payout_work)
        .where(payout_work.c.organization_id == free.c.organization_id)
        .values(lease_id=lease_id, lease_until=until)
        .returning(payout_work.c.organization_id)
    )
    return [row.organization_id for row in taken]


async def extend(connection: AsyncConnection, organization_id: str, lease_id: str, until: datetime) -> bool:
    """Keep an organization for longer. False if the lease was lost: somebody else works on it."""
    kept = await connection.execute(
        update(payout_work)
        .where(payout_work.c.organization_id == organization_id, payout_work.c.lease_id == lease_id)
        .values(lease_until=until)
        .returning(payout_work.c.organization_id)
    )
    return kept.one_or_none() is not None


async def give_back(connection: AsyncConnection, organization_id: str, lease_id: str) -> None:
    """End a lease: the organization is due when the first of its payouts is, and forgotten if none ever is.

    The row is locked before payouts are looked at. Who gives a payout something to do wakes the organization
    in the same transaction: either that is seen here, or it waits for the lock and makes the row due again.
    """
    held = await connection.execute(
        select(payout_work.c.organization_id)
        .where(payout_work.c.organization_id == organization_id, payout_work.c.lease_id == lease_id)
        .with_for_update()
    )
    if held.one_or_none() is None:
        return
    due = await connection.scalar(
        select(func.min(payout.c.next_attempt_time)).where(payout.c.organization_id == organization_id)
    )
    here = payout_work.c.organization_id == organization_id
    if due is None:
        await connection.execute(delete(payout_work).where(here))
    else:
        await connection.execute(
            update(payout_work).where(here).values(due_time=due, lease_id=None, lease_until=None)
        )


async def drop_lease(connection: AsyncConnection, organization_id: str, lease_id: str) -> None:
    """Let somebody else have an organization at once."""
    await connection.execute(
        update(payout_work)
        .where(payout_work.c.organization_id == organization_id, payout_work.c.lease_id == lease_id)
        .values(lease_id=None, lease_until=None)
    )
