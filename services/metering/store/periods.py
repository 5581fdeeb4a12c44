"""Billing periods in which something was counted, and their closings. Contents are serialized messages."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Interval,
    and_,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from services.kit.db import Connection
from services.metering.domain.price_counter import CounterPeriod
from services.metering.store.period_tables import counted_period, period_closing
from services.metering.store.tables import recorded_usage

_PERIOD_KEY: Final = (
    counted_period.c.customer_id,
    counted_period.c.organization_id,
    counted_period.c.currency_code,
    counted_period.c.period_start,
)


class StoredPeriod(NamedTuple):
    """A billing period, how often it was closed, and what that came to."""

    key: CounterPeriod
    create_time: datetime
    closing_count: int
    closed_micros: int


class LatestWork(NamedTuple):
    """The latest work of a period."""

    agent_id: str
    occur_time: datetime


class StoredClosing(NamedTuple):
    """A closing, with what its charge is made of."""

    period_closing_id: str
    customer_id: str
    organization_id: str
    currency_code: str
    period_start: datetime
    agent_id: str
    price_version_id: str
    workflow_id: str
    ordinal: int
    occur_time: datetime
    from_credit_micros: int
    amount_micros: int
    content: bytes
    create_time: datetime


class ListedClosing(NamedTuple):
    """A closing in a list, and whether its charge is in the ledger, if there is to be one."""

    period_closing_id: str
    content: bytes
    posted: bool
    last_error: str


async def take_due(
    connection: Connection, now: datetime, limit: int, retry_after: timedelta
) -> list[CounterPeriod]:
    """Periods that are to be looked at. Nobody else gets them for `retry_after`."""
    due = (
        select(*_PERIOD_KEY)
        .where(counted_period.c.next_check_time <= now)
        .order_by(counted_period.c.next_check_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    statement = (
        update(counted_period)
        .where(*(column == due.c[column.name] for column in _PERIOD_KEY))
        .values(next_check_time=now + retry_after)
        .returning(*_PERIOD_KEY)
    )
    # Credit pays for closings in this order.
    return sorted(CounterPeriod(*row) for row in await connection.execute(statement))


async def lock(connection: Connection, key: CounterPeriod) -> StoredPeriod:
    """Lock a period that exists until the transaction ends: closings of it come one after the other."""
    query = select(counted_period).where(tuple_(*_PERIOD_KEY) == tuple_(*key)).with_for_update()
    return _to_period((await connection.execute(query)).one())


async def find_at(
    connection: Connection, customer_id: str, organization_id: str, currency_code: str, at: datetime
) -> StoredPeriod | None:
    """The last period that began until then, if the connection's tenants may see it."""
    query = select(counted_period).where(
        counted_period.c.customer_id == customer_id,
        counted_period.c.organization_id == organization_id,
        counted_period.c.currency_code == currency_code,
        counted_period.c.period_start <= at,
    )
    row = (
        await connection.execute(query.order_by(counted_period.c.period_start.desc()).limit(1))
    ).one_or_none()
    return None if row is None else _to_period(row)


async def check_next(connection: Connection, key: CounterPeriod, at: datetime | None) -> None:
    """Say when a period is looked at again: never for None."""
    await connection.execute(
        update(counted_period).where(tuple_(*_PERIOD_KEY) == tuple_(*key)).values(next_check_time=at)
    )


async def counted_since(
    connection: Connection, customer_id: str, organization_id: str, currency_code: str, since: datetime
) -> list[tuple[str, datetime, datetime]]:
    """In which periods work was counted since then, with an organization or, for "", with any: for each the
    organization, when the period began, and when the latest such work was done.
    """
    usage, counted = recorded_usage.c, counted_period.c
    # A look-up of each period: a customer may have millions of events.
    latest = (
        select(usage.occur_time)
        .where(
            usage.customer_id == counted.customer_id,
            usage.organization_id == counted.organization_id,
            usage.currency_code == counted.currency_code,
            usage.period_start == counted.period_start,
        )
        .order_by(usage.occur_time.desc())
        .limit(1)
        .scalar_subquery()
    )
    conditions = [counted.customer_id == customer_id, counted.currency_code == currency_code]
    if organization_id:
        conditions.append(counted.organization_id == organization_id)
    found = select(counted.organization_id, counted.period_start, latest.label("latest")).where(*conditions)
    periods = found.subquery()
    query = select(periods).where(periods.c.latest >= since).order_by(periods.c.period_start)
    return [(row.organization_id, row.period_start, row.latest) for row in await connection.execute(query)]


async def look_again(
    connection: Connection, customer_id: str, organization_id: str, currency_code: str
) -> None:
    """Have the periods of a customer looked at soon, with an organization or, for "", with all: they may end
    at another time than before. Not before every replica knows of that.
    """
    conditions = [
        counted_period.c.customer_id == customer_id,
        counted_period.c.currency_code == currency_code,
        counted_period.c.next_check_time > func.now() + timedelta(seconds=5),
    ]
    if organization_id:
        conditions.append(counted_period.c.organization_id == organization_id)
    soon = func.now() + timedelta(seconds=5)
    await connection.execute(update(counted_period).where(*conditions).values(next_check_time=soon))


async def latest_work(connection: Connection, key: CounterPeriod) -> LatestWork | None:
    """The work of a period that ended last, if there is any."""
    query = (
        select(recorded_usage.c.agent_id, recorded_usage.c.occur_time)
        .where(
            recorded_usage.c.customer_id == key.customer_id,
            recorded_usage.c.organization_id == key.organization_id,
            recorded_usage.c.currency_code == key.currency_code,
            recorded_usage.c.period_start == key.start,
        )
        .order_by(recorded_usage.c.occur_time.desc(), recorded_usage.c.agent_id)
        .limit(1)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else LatestWork(*row)


async def lock_credit(connection: Connection, key: CounterPeriod) -> int:
    """What closings left as credit of this customer with this organization, in micros; nobody else changes it
    before the transaction ends.
    """
    name = "\n".join(("period_credit", key.customer_id, key.organization_id, key.currency_code))
    # A statement of its own: the next one sees what whoever had the lock has committed.
    await connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
    return await credit_of(connection, key)


async def credit_of(connection: Connection, key: CounterPeriod) -> int:
    """What closings left as credit, in micros, as it is now."""
    query = select(func.coalesce(func.sum(period_closing.c.from_credit_micros), 0)).where(
        period_closing.c.customer_id == key.customer_id,
        period_closing.c.organization_id == key.organization_id,
        period_closing.c.currency_code == key.currency_code,
    )
    return -int((await connection.execute(query)).scalar_one())


async def add_closing(connection: Connection, new: StoredClosing, *, total_micros: int) -> None:
    """Add a closing of a period that is locked, to be posted as soon as it is committed."""
    await connection.execute(
        insert(period_closing).values(
            **new._asdict(), next_attempt_time=func.now() if new.amount_micros else None
        )
    )
    key = (new.customer_id, new.organization_id, new.currency_code, new.period_start)
    await connection.execute(
        update(counted_period)
        .where(tuple_(*_PERIOD_KEY) == tuple_(*key))
        .values(closing_count=new.ordinal + 1, closed_micros=total_micros)
    )


async def find(connection: Connection, period_closing_id: str) -> ListedClosing | None:
    """A closing, if the connection's tenants may see it."""
    query = _listed().where(period_closing.c.period_closing_id == period_closing_id)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else ListedClosing(*row)


async def list_closings(
    connection: Connection,
    *,
    tenant_ids: Sequence[str] | None,
    customer_id: str,
    organization_id: str,
    workflow_id: str,
    after: str,
    limit: int,
) -> list[ListedClosing]:
    """Closings by id, from the first one behind `after`; those of these tenants, or, for None, all. What is
    empty does not restrict them.
    """
    conditions: list[ColumnElement[bool]] = [period_closing.c.period_closing_id > after]
    if tenant_ids is not None:
        conditions.append(
            or_(
                period_closing.c.customer_id.in_(tenant_ids), period_closing.c.organization_id.in_(tenant_ids)
            )
        )
    if customer_id:
        conditions.append(period_closing.c.customer_id == customer_id)
    if organization_id:
        conditions.append(period_closing.c.organization_id == organization_id)
    if workflow_id:
        conditions.append(period_closing.c.workflow_id == workflow_id)
    query = _listed().where(*conditions).order_by(period_closing.c.period_closing_id).limit(limit)
    return [ListedClosing(*row) for row in await connection.execute(query)]


async def take_closings(
    connection: Connection, limit: int, *, first_delay: timedelta, longest_delay: timedelta
) -> list[StoredClosing]:
    """Closings that are due to be posted. Nobody else gets them before their next attempt."""
    due = (
        select(period_closing.c.period_closing_id)
        .where(period_closing.c.next_attempt_time <= func.now())
        .order_by(period_closing.c.next_attempt_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    doublings = func.power(2, func.least(period_closing.c.attempt_count, 20))
    seconds = func.least(first_delay.total_seconds() * doublings, longest_delay.total_seconds())
    delay = func.make_interval(0, 0, 0, 0, 0, 0, seconds, type_=Interval)
    statement = (
        update(period_closing)
        .where(period_closing.c.period_closing_id == due.c.period_closing_id)
        .values(
            next_attempt_time=func.now() + delay,
            attempt_count=period_closing.c.attempt_count + 1,
        )
        .returning(*(period_closing.c[name] for name in StoredClosing._fields))
    )
    taken = [StoredClosing(*row) for row in await connection.execute(statement)]
    # Credits pay for charges in this order.
    return sorted(taken, key=lambda closing: (closing.occur_time, closing.workflow_id, closing.ordinal))


async def count_refused(connection: Connection) -> int:
    """How many closings the ledger refuses."""
    query = select(func.count()).where(period_closing.c.refused)
    return (await connection.execute(query)).scalar_one()


async def note_posted(connection: Connection, closings: Sequence[StoredClosing]) -> None:
    """The ledger has the charges of these closings."""
    if closings:
        await connection.execute(
            update(period_closing)
            .where(period_closing.c.period_closing_id.in_([one.period_closing_id for one in closings]))
            .values(next_attempt_time=None, last_error="", refused=False)
        )


async def note_failed(
    connection: Connection, errors: Mapping[StoredClosing, tuple[str, bool]], *, refused_delay: timedelta
) -> None:
    """Keep why attempts failed; those that are refused are tried again after `refused_delay`."""
    for closing, (error, refused) in errors.items():
        values: dict[str, Any] = {"last_error": error}
        if refused:
            values |= {"refused": True, "next_attempt_time": func.now() + refused_delay}
        await connection.execute(
            update(period_closing)
            .where(period_closing.c.period_closing_id == closing.period_closing_id)
            .values(**values)
        )


def _listed() -> Any:
    posted = and_(period_closing.c.amount_micros > 0, period_closing.c.next_attempt_time.is_(None))
    return select(
        period_closing.c.period_closing_id,
        period_closing.c.content,
        posted.label("posted"),
        period_closing.c.last_error,
    )


def _to_period(row: Any) -> StoredPeriod:
    key = CounterPeriod(row.customer_id, row.organization_id, row.currency_code, row.period_start)
    return StoredPeriod(key, row.create_time, row.closing_count, row.closed_micros)
