"""Credits that are bought by themselves: what is set, and what was bought."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, case, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.payouts.domain.auto_recharge import AutoRecharge, month_of
from services.payouts.domain.purchase import OPEN, Purchase, PurchaseState
from services.payouts.store.tables import auto_recharge, purchase

_UNDER_WAY = (*OPEN, PurchaseState.PAID)


async def find(connection: AsyncConnection, customer_id: str, currency_code: str) -> AutoRecharge | None:
    """What is set for a customer in a currency, if the connection's tenants may see it."""
    row = (
        await connection.execute(select(auto_recharge).where(_is(customer_id, currency_code)))
    ).one_or_none()
    return None if row is None else AutoRecharge(**row._asdict())


async def set_up(connection: AsyncConnection, new: AutoRecharge) -> AutoRecharge:
    """Set it, and let it try again. What it has bought stays, and so does the pause after that."""
    wanted = {
        "enabled": new.enabled,
        "threshold_micros": new.threshold_micros,
        "amount_micros": new.amount_micros,
        "ceiling_micros": new.ceiling_micros,
        "cool_off_seconds": new.cool_off_seconds,
        "payment_method_id": new.payment_method_id,
        "stopped_reason": "",
        "update_time": new.update_time,
    }
    rows = await connection.execute(
        insert(auto_recharge)
        .values(
            customer_id=new.customer_id, currency_code=new.currency_code, next_time=new.next_time, **wanted
        )
        .on_conflict_do_update(
            index_elements=[auto_recharge.c.customer_id, auto_recharge.c.currency_code], set_=wanted
        )
        .returning(auto_recharge)
    )
    return AutoRecharge(**rows.one()._asdict())


async def take(
    connection: AsyncConnection, seen: AutoRecharge, purchase_id: str, now: datetime
) -> AutoRecharge | None:
    """Take the right to buy once, for a purchase with this id. None if it may not be bought now.

    The one statement decides: of two calls at once the second waits for the row, and then finds another
    `recharge_number` than it has seen. That also makes void what it has read of the balance.
    """
    table = auto_recharge.c
    month = month_of(now)
    bought = case((table.month == month, table.bought_micros), else_=0) + table.amount_micros
    under_way = exists().where(
        purchase.c.purchase_id == table.last_purchase_id, purchase.c.state.in_(_UNDER_WAY)
    )
    rows = await connection.execute(
        update(auto_recharge)
        .where(
            _is(seen.customer_id, seen.currency_code),
            table.enabled,
            table.stopped_reason == "",
            table.recharge_number == seen.recharge_number,
            table.amount_micros == seen.amount_micros,
            table.next_time <= now,
            bought <= table.ceiling_micros,
            ~under_way,
        )
        .values(
            month=month,
            bought_micros=bought,
            recharge_number=table.recharge_number + 1,
            last_purchase_id=purchase_id,
            next_time=now + timedelta(seconds=seen.cool_off_seconds),
        )
        .returning(auto_recharge)
    )
    row = rows.one_or_none()
    return None if row is None else AutoRecharge(**row._asdict())


async def count_again(connection: AsyncConnection, before: Purchase, after: Purchase) -> None:
    """Keep what was bought true if a purchase ends unpaid, or is paid after all; one that failed stops it."""
    unpaid = (PurchaseState.FAILED, PurchaseState.CANCELLED)
    if (before.state in unpaid) == (after.state in unpaid):
        return
    amount = after.money.amount_micros
    table = auto_recharge.c
    change = -amount if after.state in unpaid else amount
    this = _is(after.customer_id, after.money.currency_code)
    await connection.execute(
        update(auto_recharge)
        .where(this, table.month == month_of(after.create_time))
        .values(bought_micros=func.greatest(table.bought_micros + change, 0))
    )
    if after.state is PurchaseState.FAILED:
        # Only its last purchase: who has set it again since has dealt with those before.
        await connection.execute(
            update(auto_recharge)
            .where(this, table.last_purchase_id == after.purchase_id)
            .values(stopped_reason=f"a payment failed: {after.failure_reason or after.failure_code}")
        )


async def stop(connection: AsyncConnection, seen: AutoRecharge, reason: str) -> None:
    """Let it buy no more until it is set again."""
    await connection.execute(
        update(auto_recharge)
        .where(_is(seen.customer_id, seen.currency_code), auto_recharge.c.update_time == seen.update_time)
        .values(stopped_reason=reason)
    )


def _is(customer_id: str, currency_code: str) -> ColumnElement[bool]:
    return and_(auto_recharge.c.customer_id == customer_id, auto_recharge.c.currency_code == currency_code)
