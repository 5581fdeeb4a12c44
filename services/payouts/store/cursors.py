"""How far the payment processor's list of events was read, account by account."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import case, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.payouts.domain.payout import BankStatus
from services.payouts.store.tables import connected_account, event_cursor, payout

# The list of the platform's own events.
PLATFORM_ACCOUNT: Final = ""


@dataclass(frozen=True, slots=True)
class EventCursor:
    """A row of payouts.event_cursor."""

    stripe_account_id: str
    read_until: datetime
    next_read_time: datetime


async def begin_new(connection: AsyncConnection, start: datetime, now: datetime) -> None:
    """Have lists that were never read, of connected accounts and the platform, read from `start` on."""
    accounts = select(connected_account.c.stripe_account_id).where(
        connected_account.c.stripe_account_id.is_not(None),
        ~select(event_cursor)
        .where(event_cursor.c.stripe_account_id == connected_account.c.stripe_account_id)
        .exists(),
    )
    lists = accounts.union_all(select(literal(PLATFORM_ACCOUNT))).subquery()
    await connection.execute(
        insert(event_cursor)
        .from_select(
            ["stripe_account_id", "read_until", "next_read_time"],
            select(lists.c[0], literal(start), literal(now)),
        )
        .on_conflict_do_nothing()
    )


async def hasten(connection: AsyncConnection, latest: datetime) -> None:
    """Have the lists of accounts whose money is on its way to a bank read at `latest`, if not earlier."""
    on_its_way = (
        select(payout)
        .where(
            payout.c.stripe_account_id == event_cursor.c.stripe_account_id,
            # As in the index.
            payout.c.bank_status.in_((BankStatus.PENDING, BankStatus.IN_TRANSIT)),
        )
        .exists()
    )
    await connection.execute(
        update(event_cursor)
        .where(event_cursor.c.next_read_time > latest, on_its_way)
        .values(next_read_time=latest)
    )


async def lease(connection: AsyncConnection, now: datetime, until: datetime, limit: int) -> list[EventCursor]:
    """Take up to `limit` lists that are due, the platform's first and then those due for longest; nobody else
    takes them before `until`.

    Rows that another worker is taking are skipped, and not waited for. Accounts that left are not read.
    """
    gone = (
        select(connected_account)
        .where(
            connected_account.c.stripe_account_id == event_cursor.c.stripe_account_id,
            connected_account.c.deauthorized,
        )
        .exists()
    )
    due = (
        select(event_cursor.c.stripe_account_id)
        .where(event_cursor.c.next_read_time <= now, ~gone)
        .order_by(event_cursor.c.stripe_account_id != PLATFORM_ACCOUNT, event_cursor.c.next_read_time)
        .limit(limit)
        .with_for_update(skip_locked=True, of=event_cursor)
        .cte("due")
    )
    taken = await connection.execute(
        update(event_cursor)
        .where(event_cursor.c.stripe_account_id == due.c.stripe_account_id)
        .values(next_read_time=until)
        .returning(event_cursor)
    )
    return [EventCursor(*row) for row in taken]


async def advance(
    connection: AsyncConnection, leased: EventCursor, read_until: datetime, next_read_time: datetime
) -> None:
    """A list was read until then; the cursor never goes back. Unless the lease was lost meanwhile, it is read
    next at `next_read_time`.
    """
    held = event_cursor.c.next_read_time == leased.next_read_time
    await connection.execute(
        update(event_cursor)
        .where(event_cursor.c.stripe_account_id == leased.stripe_account_id)
        .values(
            # Also without the lease: a list that takes longer than that must not begin anew for ever.
            read_until=func.greatest(event_cursor.c.read_until, read_until),
            next_read_time=case((held, next_read_time), else_=event_cursor.c.next_read_time),
        )
    )
