"""Budgets: keeping them, counting what is spent, and reserving against them while Valkey is away.

A period start of None, for budgets that never start again, is '-infinity' in the tables.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from sqlalchemy import ColumnElement, DateTime, Row, Table, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert

from services.kit.db import Connection, single
from services.metering.domain.budget import Alert, Budget, BudgetPeriod, CounterKey
from services.metering.store.budget_tables import (
    budget,
    budget_alert,
    budget_change,
    budget_counter,
    budget_reservation,
)

_FOR_EVER = literal_column("'-infinity'::timestamptz", DateTime(timezone=True))


class Spend(NamedTuple):
    """What one charge adds to one counter."""

    key: CounterKey
    amount_micros: int


class CountedSpend(NamedTuple):
    """What counters came to, and the thresholds that were newly reached."""

    spent: Mapping[CounterKey, int]
    alerts: Sequence[Alert]


class OpenReservation(NamedTuple):
    """What is reserved against a counter for a run under way, until it expires."""

    reservation_id: str
    amount: int
    expire_time: datetime


class CounterState(NamedTuple):
    """What a counter holds."""

    spent: int
    open: tuple[OpenReservation, ...]


class Refusal(NamedTuple):
    """A counter without room for a reservation: what was spent, and what others have reserved."""

    key: CounterKey
    spent: int
    reserved: int


async def count_spend(connection: AsyncConnection[TupleRow], spends: Sequence[Spend]) -> CountedSpend:
    """Add what was charged to its counters, in the transaction that records the usage as new.

    Deleted budgets are passed over. Announce the alerts after the commit.
    """
    if not spends:
        return CountedSpend({}, ())
    cursor = await connection.execute(
        "SELECT * FROM metering.count_spend(%b::text[], %s::timestamptz[], %b::text[], %b::bigint[])",
        (*_columns([spend.key for spend in spends]), [spend.amount_micros for spend in spends]),
    )
    counted: dict[CounterKey, int] = {}
    alerts: list[Alert] = []
    for *parts, spent, currency_code, limit_micros, thresholds, count_time in await cursor.fetchall():
        key = CounterKey(*parts)
        counted[key] = spent
        alerts += (
            Alert(*key, threshold, currency_code, spent, limit_micros, count_time) for threshold in thresholds
        )
    return CountedSpend(counted, alerts)


async def reserve_budgets(
    connection: AsyncConnection[TupleRow],
    reservation_id: str,
    limits: Mapping[CounterKey, int],
    amount_micros: int,
    expire_time: datetime,
    *,
    freeze: bool = False,
) -> Refusal | None:
    """Reserve an amount against all of these counters, whose limits are given, or against none.

    None if all had room; otherwise the first that has none. The same reservation again keeps the higher
    amount and the later expiry, if they fit; after a refusal with `freeze` it is refused again.
    """
    cursor = await connection.execute(
        "SELECT * FROM metering.reserve_budgets("
        "%b, %b::text[], %s::timestamptz[], %b::text[], %b::bigint[], %b::bigint, %b, %b)",
        (reservation_id, *_columns(list(limits)), list(limits.values()), amount_micros, expire_time, freeze),
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    *key, spent, reserved = row
    return Refusal(CounterKey(*key), spent, reserved)


async def end_budgets(connection: AsyncConnection[TupleRow], reservation_ids: Sequence[str]) -> None:
    """End reservations; unknown ones are fine. A transaction that also counts does that first."""
    await connection.execute("SELECT metering.end_budgets(%b::text[])", (list(reservation_ids),))


async def purge_budget_reservations(connection: AsyncConnection[TupleRow], limit: int) -> int:
    """Delete up to `limit` reservations that have expired; how many it did."""
    cursor = await connection.execute("SELECT metering.purge_budget_reservations(%b::integer)", (limit,))
    return int((await single(cursor))[0])


async def load_counters(
    connection: AsyncConnection[TupleRow], keys: Collection[CounterKey]
) -> dict[CounterKey, CounterState]:
    """What each of these counters holds, zero for one that has counted nothing; all in one snapshot."""
    if not keys:
        return {}
    cursor = await connection.execute(
        "SELECT * FROM metering.load_budget_counters(%b::text[], %s::timestamptz[], %b::text[])",
        _columns(list(keys)),
    )
    return {
        CounterKey(*key): CounterState(
            spent, tuple(map(OpenReservation, reservation_ids, amounts, expire_times))
        )
        for *key, spent, reservation_ids, amounts, expire_times in await cursor.fetchall()
    }


async def create(connection: Connection, new: Budget) -> bool:
    """Create a budget. False if its id is taken."""
    statement = (
        insert(budget)
        .values({**asdict(new), "alert_thresholds": list(new.alert_thresholds)})
        .on_conflict_do_nothing()
        .returning(budget.c.budget_id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def find(connection: Connection, budget_id: str) -> Budget | None:
    """A budget, if the connection's tenants may see it; one that was deleted, too."""
    row = (await connection.execute(select(budget).where(budget.c.budget_id == budget_id))).one_or_none()
    return None if row is None else _to_budget(row)


async def count_alike(connection: Connection, wanted: Budget) -> int:
    """How many budgets the same owner has that count what this one counts."""
    query = select(func.count()).where(
        budget.c.owner_id == wanted.owner_id,
        budget.c.customer_id == wanted.customer_id,
        budget.c.agent_id == wanted.agent_id,
        budget.c.api_key_id == wanted.api_key_id,
        budget.c.currency_code == wanted.currency_code,
        budget.c.delete_time.is_(None),
    )
    return (await connection.execute(query)).scalar_one()


async def count_own(connection: Connection, owner_id: str) -> int:
    """How many budgets an owner has."""
    query = select(func.count()).where(budget.c.owner_id == owner_id, budget.c.delete_time.is_(None))
    return (await connection.execute(query)).scalar_one()


async def change(connection: Connection, changed: Budget) -> Budget | None:
    """Change what may change of a budget, or delete it; as it is then. None if there is none, or no more."""
    statement = (
        update(budget)
        .where(budget.c.budget_id == changed.budget_id, budget.c.delete_time.is_(None))
        .values(
            display_name=changed.display_name,
            limit_micros=changed.limit_micros,
            hard=changed.hard,
            alert_thresholds=list(changed.alert_thresholds),
            update_time=changed.update_time,
            delete_time=changed.delete_time,
        )
        .returning(budget)
    )
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else _to_budget(row)


async def list_budgets(
    connection: Connection, *, owner_ids: Sequence[str] | None, after: str, limit: int
) -> list[Budget]:
    """Budgets by id, from the first one behind `after`; those of these owners, or, for None, of all."""
    query = select(budget).where(budget.c.budget_id > after, budget.c.delete_time.is_(None))
    query = query.where(*_of(budget, owner_ids)).order_by(budget.c.budget_id).limit(limit)
    return [_to_budget(row) for row in await connection.execute(query)]


async def last_change(connection: Connection) -> int:
    """The number of the last change of any budget."""
    number: int = (await connection.execute(select(budget_change.c.change_number))).scalar_one()
    return number


async def list_changes(connection: Connection, *, after: int) -> tuple[list[Budget], int]:
    """The budgets that were created, changed or deleted since change `after`, and the last such change."""
    query = select(budget).where(budget.c.change_number > after).order_by(budget.c.change_number)
    rows = (await connection.execute(query)).all()
    return [_to_budget(row) for row in rows], rows[-1].change_number if rows else after


async def spent_of(connection: Connection, key: CounterKey) -> int:
    """What a counter has counted, if the connection's tenants may see it."""
    query = select(budget_counter.c.spent).where(*_is(budget_counter, key))
    return (await connection.execute(query)).scalar_one_or_none() or 0


async def reserved_of(connection: Connection, key: CounterKey) -> int:
    """What is reserved against a counter in PostgreSQL, if the connection's tenants may see it."""
    query = select(func.coalesce(func.sum(budget_reservation.c.amount), 0)).where(
        *_is(budget_reservation, key), budget_reservation.c.expire_time > func.clock_timestamp()
    )
    return int((await connection.execute(query)).scalar_one())


async def list_alerts(
    connection: Connection,
    *,
    owner_ids: Sequence[str] | None,
    budget_id: str,
    before: int | None,
    limit: int,
) -> list[tuple[int, Alert]]:
    """Alerts with their numbers, newest first, from the first one older than number `before`; those of these
    owners, or, for None, of all; of one budget, unless `budget_id` is empty.
    """
    conditions = _of(budget_alert, owner_ids)
    if budget_id:
        conditions.append(budget_alert.c.budget_id == budget_id)
    if before is not None:
        conditions.append(budget_alert.c.alert_number < before)
    period_start = func.nullif(budget_alert.c.period_start, _FOR_EVER).label("start")
    columns = [column for column in budget_alert.c if column.name != "period_start"]
    query = select(*columns, period_start).where(*conditions)
    query = query.order_by(budget_alert.c.alert_number.desc()).limit(limit)
    return [(row.alert_number, _to_alert(row)) for row in await connection.execute(query)]


def _columns(keys: Sequence[CounterKey]) -> tuple[list[str], list[datetime | None], list[str]]:
    return (
        [key.budget_id for key in keys],
        [key.period_start for key in keys],
        [key.workflow_id for key in keys],
    )


def _is(table: Table, key: CounterKey) -> list[ColumnElement[bool]]:
    """The conditions for rows of this counter."""
    start = _FOR_EVER if key.period_start is None else key.period_start
    return [
        table.c.budget_id == key.budget_id,
        table.c.period_start == start,
        table.c.workflow_id == key.workflow_id,
    ]


def _of(table: Table, owner_ids: Sequence[str] | None) -> list[ColumnElement[bool]]:
    # The policies see to it anyway; this lets an index find the few rows of one tenant.
    return [] if owner_ids is None else [table.c.owner_id.in_(owner_ids)]


def _to_budget(row: Row[Any]) -> Budget:
    return Budget(
        budget_id=row.budget_id,
        owner_id=row.owner_id,
        display_name=row.display_name,
        customer_id=row.customer_id,
        agent_id=row.agent_id,
        api_key_id=row.api_key_id,
        per_workflow=row.per_workflow,
        period=BudgetPeriod(row.period),
        time_zone=row.time_zone,
        currency_code=row.currency_code,
        limit_micros=row.limit_micros,
        hard=row.hard,
        alert_thresholds=tuple(row.alert_thresholds),
        create_time=row.create_time,
        update_time=row.update_time,
        delete_time=row.delete_time,
    )


def _to_alert(row: Any) -> Alert:
    return Alert(
        budget_id=row.budget_id,
        period_start=row.start,
        workflow_id=row.workflow_id,
        threshold=row.threshold,
        currency_code=row.currency_code,
        spent_micros=row.spent,
        limit_micros=row.limit_micros,
        create_time=row.create_time,
    )
