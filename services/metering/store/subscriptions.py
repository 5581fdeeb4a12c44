"""Subscriptions, their segments and their fees. Contents are serialized messages of the contract."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Interval,
    Row,
    and_,
    bindparam,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from services.kit.db import Connection
from services.metering.store.subscription_tables import (
    subscription,
    subscription_change,
    subscription_fee,
    subscription_segment,
)


class StoredSubscription(NamedTuple):
    """A subscription as it is stored."""

    subscription_id: str
    customer_id: str
    organization_id: str
    currency_code: str
    state: str
    start_time: datetime
    renew_time: datetime
    content: bytes


class StoredSegment(NamedTuple):
    """What is subscribed to from a moment on; nothing where there is no content."""

    subscription_id: str
    customer_id: str
    organization_id: str
    currency_code: str
    start_time: datetime
    billing_period: bytes
    content: bytes | None
    api_key_id: str


class StoredFee(NamedTuple):
    """A fee, with what its charge is made of."""

    subscription_id: str
    customer_id: str
    organization_id: str
    agent_id: str
    currency_code: str
    price_version_id: str
    workflow_id: str
    ordinal: int
    occur_time: datetime
    amount_micros: int
    content: bytes
    create_time: datetime


class ListedFee(NamedTuple):
    """A fee in a list: its number, and whether its charge is in the ledger, if there is to be one."""

    fee_number: int
    content: bytes
    posted: bool
    last_error: str


async def create(connection: Connection, new: StoredSubscription) -> bool:
    """Create a subscription. False if there is an active one about the same."""
    statement = (
        insert(subscription)
        .values(**new._asdict())
        .on_conflict_do_nothing()
        .returning(subscription.c.subscription_id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def save(connection: Connection, changed: StoredSubscription) -> None:
    """Change a subscription that is locked."""
    await connection.execute(
        update(subscription)
        .where(subscription.c.subscription_id == changed.subscription_id)
        .values(state=changed.state, renew_time=changed.renew_time, content=changed.content)
    )


async def add_segment(connection: Connection, new: StoredSegment) -> None:
    """Add what is subscribed to from a moment on."""
    number = await _next(connection, new.subscription_id, "segment_count")
    await connection.execute(insert(subscription_segment).values(segment_number=number, **new._asdict()))


async def add_fee(connection: Connection, new: StoredFee) -> None:
    """Add a fee, to be posted as soon as it is committed."""
    number = await _next(connection, new.subscription_id, "fee_total")
    await connection.execute(
        insert(subscription_fee).values(
            fee_number=number,
            **new._asdict(),
            next_attempt_time=func.now() if new.amount_micros else None,
        )
    )


async def find(connection: Connection, subscription_id: str, *, lock: bool = False) -> bytes | None:
    """A subscription, if the tenants may see it; with `lock`, nobody else changes it meanwhile."""
    query = select(subscription.c.content).where(subscription.c.subscription_id == subscription_id)
    content: bytes | None = (
        await connection.execute(query.with_for_update() if lock else query)
    ).scalar_one_or_none()
    return content


async def find_after(
    connection: Connection, customer_id: str, organization_id: str, currency_code: str, start: datetime
) -> str | None:
    """A subscription about the same that is active, or ended after `start`."""
    query = select(subscription.c.subscription_id).where(
        subscription.c.customer_id == customer_id,
        subscription.c.organization_id == organization_id,
        subscription.c.currency_code == currency_code,
        or_(subscription.c.state == "active", subscription.c.renew_time > start),
    )
    found: str | None = (await connection.execute(query.limit(1))).scalar_one_or_none()
    return found


async def list_active(
    connection: Connection, customer_id: str, organization_id: str, currency_code: str
) -> list[bytes]:
    """The active subscriptions of a customer, of an organization or, for "", of all."""
    conditions = [
        subscription.c.customer_id == customer_id,
        subscription.c.currency_code == currency_code,
        subscription.c.state == "active",
    ]
    if organization_id:
        conditions.append(subscription.c.organization_id == organization_id)
    return list((await connection.execute(select(subscription.c.content).where(*conditions))).scalars())


async def take_due(connection: Connection, now: datetime, limit: int) -> list[tuple[str, bytes]]:
    """Lock active subscriptions whose period has ended, oldest first, by their ids; none that somebody else
    has locked.
    """
    query = (
        select(subscription.c.subscription_id, subscription.c.content)
        .where(subscription.c.state == "active", subscription.c.renew_time <= now)
        .order_by(subscription.c.renew_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [(row.subscription_id, row.content) for row in await connection.execute(query)]


async def list_subscriptions(
    connection: Connection, *, tenant_ids: Sequence[str] | None, customer_id: str, after: str, limit: int
) -> list[tuple[str, bytes]]:
    """Subscriptions by id, from the first one behind `after`; those of these tenants, or, for None, all."""
    conditions: list[ColumnElement[bool]] = [subscription.c.subscription_id > after]
    if tenant_ids is not None:
        conditions.append(
            or_(subscription.c.customer_id.in_(tenant_ids), subscription.c.organization_id.in_(tenant_ids))
        )
    if customer_id:
        conditions.append(subscription.c.customer_id == customer_id)
    query = select(subscription.c.subscription_id, subscription.c.content).where(*conditions)
    query = query.order_by(subscription.c.subscription_id).limit(limit)
    return [(row.subscription_id, row.content) for row in await connection.execute(query)]


async def list_fees(
    connection: Connection, subscription_id: str, *, workflow_id: str, before: int | None, limit: int
) -> list[ListedFee]:
    """Fees of a subscription, newest first, from the first one older than number `before`; those of one run,
    unless it is empty.
    """
    posted = and_(subscription_fee.c.amount_micros > 0, subscription_fee.c.next_attempt_time.is_(None)).label(
        "posted"
    )
    query = select(
        subscription_fee.c.fee_number, subscription_fee.c.content, posted, subscription_fee.c.last_error
    ).where(subscription_fee.c.subscription_id == subscription_id)
    if workflow_id:
        query = query.where(subscription_fee.c.workflow_id == workflow_id)
    if before is not None:
        query = query.where(subscription_fee.c.fee_number < before)
    query = query.order_by(subscription_fee.c.fee_number.desc()).limit(limit)
    return [ListedFee(*row) for row in await connection.execute(query)]


async def last_change(connection: Connection) -> int:
    """The number of the last segment of any subscription."""
    number: int = (await connection.execute(select(subscription_change.c.change_number))).scalar_one()
    return number


async def list_changes(connection: Connection, *, after: int) -> tuple[list[tuple[int, StoredSegment]], int]:
    """The segments with their numbers that were made since change `after`, and the last such change."""
    query = select(subscription_segment).where(subscription_segment.c.change_number > after)
    rows = (await connection.execute(query.order_by(subscription_segment.c.change_number))).all()
    segments = [(row.segment_number, _of(row, StoredSegment)) for row in rows]
    return segments, rows[-1].change_number if rows else after


async def take_fees(
    connection: Connection, limit: int, *, first_delay: timedelta, longest_delay: timedelta
) -> list[StoredFee]:
    """Fees that are due to be posted. Nobody else gets them before their next attempt."""
    due = (
        select(subscription_fee.c.subscription_id, subscription_fee.c.fee_number)
        .where(subscription_fee.c.next_attempt_time <= func.now())
        .order_by(subscription_fee.c.next_attempt_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    doublings = func.power(2, func.least(subscription_fee.c.attempt_count, 20))
    seconds = func.least(first_delay.total_seconds() * doublings, longest_delay.total_seconds())
    delay = func.make_interval(0, 0, 0, 0, 0, 0, seconds, type_=Interval)
    statement = (
        update(subscription_fee)
        .where(
            and_(
                subscription_fee.c.subscription_id == due.c.subscription_id,
                subscription_fee.c.fee_number == due.c.fee_number,
            )
        )
        .values(
            next_attempt_time=func.now() + delay,
            attempt_count=subscription_fee.c.attempt_count + 1,
        )
        .returning(*(subscription_fee.c[name] for name in StoredFee._fields))
    )
    taken = [_of(row, StoredFee) for row in await connection.execute(statement)]
    # Credits pay for charges in this order.
    return sorted(taken, key=lambda fee: (fee.occur_time, fee.workflow_id, fee.ordinal))


async def count_refused(connection: Connection) -> int:
    """How many fees the ledger refuses."""
    query = select(func.count()).where(subscription_fee.c.refused)
    return (await connection.execute(query)).scalar_one()


async def note_posted(connection: Connection, fees: Sequence[StoredFee]) -> None:
    """The ledger has the charges of these fees."""
    if fees:
        await connection.execute(
            _attempted().values(next_attempt_time=None, last_error="", refused=False),
            [_key(fee) for fee in fees],
        )


async def note_failed(
    connection: Connection, errors: Mapping[StoredFee, tuple[str, bool]], *, refused_delay: timedelta
) -> None:
    """Keep why attempts failed; those that are refused are tried again after `refused_delay`."""
    for fee, (error, refused) in errors.items():
        values: dict[str, Any] = {"last_error": error}
        if refused:
            values |= {"refused": True, "next_attempt_time": func.now() + refused_delay}
        await connection.execute(_attempted().values(**values), [_key(fee)])


def _attempted() -> Any:
    return update(subscription_fee).where(
        subscription_fee.c.workflow_id == bindparam("of_workflow"),
        subscription_fee.c.ordinal == bindparam("of_ordinal"),
    )


def _key(fee: StoredFee) -> dict[str, Any]:
    return {"of_workflow": fee.workflow_id, "of_ordinal": fee.ordinal}


async def _next(connection: Connection, subscription_id: str, counter: str) -> int:
    column = subscription.c[counter]
    statement = (
        update(subscription)
        .where(subscription.c.subscription_id == subscription_id)
        .values({counter: column + 1})
        .returning(column)
    )
    number: int = (await connection.execute(statement)).scalar_one()
    return number


def _of(row: Row[Any], kind: Any) -> Any:
    """The named tuple with the fields of a row."""
    return kind(**{name: getattr(row, name) for name in kind._fields})
