"""Customers at the payment processor, and their saved payment methods."""

import dataclasses
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.payouts.domain.payer import MAX_METHODS, Payer, PaymentMethod
from services.payouts.store.tables import payment_method, stripe_customer


async def begin(connection: AsyncConnection, customer_id: str, now: datetime) -> Payer:
    """The customer, whom the processor may not have yet. Its first call is frozen by this."""
    await connection.execute(
        insert(stripe_customer)
        .values(customer_id=customer_id, call_number=1, call_time=now, create_time=now)
        .on_conflict_do_nothing()
    )
    rows = await connection.execute(
        select(stripe_customer).where(stripe_customer.c.customer_id == customer_id)
    )
    return Payer(**rows.one()._asdict())


async def begin_again(connection: AsyncConnection, before: Payer, now: datetime) -> None:
    """Freeze another call, unless somebody else has, or the customer was made."""
    await connection.execute(
        update(stripe_customer)
        .where(
            stripe_customer.c.customer_id == before.customer_id,
            stripe_customer.c.call_number == before.call_number,
            stripe_customer.c.stripe_customer_id.is_(None),
        )
        .values(call_number=before.call_number + 1, call_time=now)
    )


async def made(connection: AsyncConnection, customer_id: str, stripe_customer_id: str) -> str:
    """The processor has made a customer. Answers the one that counts: the first."""
    await connection.execute(
        update(stripe_customer)
        .where(stripe_customer.c.customer_id == customer_id, stripe_customer.c.stripe_customer_id.is_(None))
        .values(stripe_customer_id=stripe_customer_id)
    )
    counts = await connection.scalar(
        select(stripe_customer.c.stripe_customer_id).where(stripe_customer.c.customer_id == customer_id)
    )
    return str(counts)


async def stripe_id(connection: AsyncConnection, customer_id: str) -> str | None:
    """The processor's id of a customer; None if it has none yet."""
    found: str | None = await connection.scalar(
        select(stripe_customer.c.stripe_customer_id).where(stripe_customer.c.customer_id == customer_id)
    )
    return found


async def add_method(connection: AsyncConnection, new: PaymentMethod) -> PaymentMethod | None:
    """Save a payment method, or what is new of it; the first is the default. None if there are too many."""
    # Of two calls at once the second sees what the first has saved: there is one default, and never too many.
    await connection.execute(
        select(stripe_customer.c.customer_id)
        .where(stripe_customer.c.customer_id == new.customer_id)
        .with_for_update(key_share=True)
    )
    others = [one for one in await list_methods(connection, new.customer_id) if not _same(one, new)]
    if len(others) >= MAX_METHODS:
        return None
    was_default = await connection.scalar(
        select(payment_method.c.is_default).where(payment_method.c.payment_method_id == new.payment_method_id)
    )
    saved = dataclasses.replace(new, is_default=new.is_default or bool(was_default) or not others)
    if saved.is_default:
        await _clear_default(connection, new.customer_id)
    values = dataclasses.asdict(saved)
    await connection.execute(
        insert(payment_method)
        .values(**values)
        .on_conflict_do_update(index_elements=[payment_method.c.payment_method_id], set_=values)
    )
    return saved


async def remove_method(connection: AsyncConnection, customer_id: str, payment_method_id: str) -> None:
    """Forget a payment method. If it was the default, the newest of the others is that from now on."""
    await connection.execute(
        select(stripe_customer.c.customer_id)
        .where(stripe_customer.c.customer_id == customer_id)
        .with_for_update(key_share=True)
    )
    await connection.execute(
        delete(payment_method).where(
            payment_method.c.customer_id == customer_id,
            payment_method.c.payment_method_id == payment_method_id,
        )
    )
    left = await list_methods(connection, customer_id)
    if left and not any(one.is_default for one in left):
        newest = max(left, key=lambda one: (one.create_time, one.payment_method_id))
        await connection.execute(
            update(payment_method)
            .where(payment_method.c.payment_method_id == newest.payment_method_id)
            .values(is_default=True)
        )


async def find_method(
    connection: AsyncConnection, customer_id: str, payment_method_id: str
) -> PaymentMethod | None:
    """A saved payment method of a customer; the default one for ""."""
    test = (
        payment_method.c.payment_method_id == payment_method_id
        if payment_method_id
        else payment_method.c.is_default
    )
    rows = await connection.execute(
        select(payment_method).where(payment_method.c.customer_id == customer_id, test)
    )
    row = rows.one_or_none()
    return None if row is None else _method(row)


async def list_methods(connection: AsyncConnection, customer_id: str) -> list[PaymentMethod]:
    """The saved payment methods of a customer, the default first, then the newest."""
    rows = await connection.execute(
        select(payment_method)
        .where(payment_method.c.customer_id == customer_id)
        .order_by(
            payment_method.c.is_default.desc(),
            payment_method.c.create_time.desc(),
            payment_method.c.payment_method_id,
        )
    )
    return [_method(row) for row in rows]


async def _clear_default(connection: AsyncConnection, customer_id: str) -> None:
    await connection.execute(
        update(payment_method)
        .where(payment_method.c.customer_id == customer_id, payment_method.c.is_default)
        .values(is_default=False)
    )


def _same(one: PaymentMethod, other: PaymentMethod) -> bool:
    return one.payment_method_id == other.payment_method_id


def _method(row: "Row[Any]") -> PaymentMethod:
    return PaymentMethod(**row._asdict())
