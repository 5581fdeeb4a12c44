"""Payouts, their history, and what came back of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.money import Money
from services.payouts.domain.payout import (
    BankStatus,
    Call,
    Change,
    Hold,
    Origin,
    Owed,
    Payout,
    PayoutState,
    Reversal,
    Step,
    Transition,
)
from services.payouts.store import work
from services.payouts.store.tables import payout, payout_reversal, payout_transition

# What people never see: the ledger has not said yes.
_UNSEEN: Final = (PayoutState.OPENING, PayoutState.REFUSED)


async def create(connection: AsyncConnection, new: Payout, now: datetime) -> bool:
    """Create a payout, and have it worked on when its `next_attempt_time` comes. False if its id exists."""
    statement = insert(payout).values(**_values(new)).on_conflict_do_nothing().returning(payout.c.payout_id)
    if (await connection.execute(statement)).one_or_none() is None:
        return False
    await work.wake(connection, new.organization_id, new.next_attempt_time or now)
    return True


async def find(connection: AsyncConnection, payout_id: str) -> Payout | None:
    """A payout, whatever its state, if the connection's tenants may see it."""
    row = (await connection.execute(select(payout).where(payout.c.payout_id == payout_id))).one_or_none()
    return None if row is None else _payout(row)


async def find_seen(connection: AsyncConnection, payout_id: str) -> Payout | None:
    """A payout that people may know of, if the connection's tenants may see it."""
    found = await find(connection, payout_id)
    return None if found is None or found.state in _UNSEEN else found


async def save(connection: AsyncConnection, before: Payout, change: Change, now: datetime) -> Payout | None:
    """Write a change, and its step into the history, unless somebody else changed the payout since `before`.

    Answers the payout as it is then, or None: then read it again, and judge again.
    """
    after = dataclasses.replace(change.payout, version=before.version + 1, update_time=now)
    statement = (
        update(payout)
        .where(payout.c.payout_id == before.payout_id, payout.c.version == before.version)
        .values(**_values(after))
        .returning(payout.c.payout_id)
    )
    if (await connection.execute(statement)).one_or_none() is None:
        return None
    # The row is locked by its update from here on, so numbers are given one at a time.
    if change.step is not None:
        await _add_transition(connection, after, change.step, now)
    if after.next_attempt_time is not None:
        await work.wake(connection, after.organization_id, after.next_attempt_time)
    return after


async def release(connection: AsyncConnection, organization_id: str, now: datetime) -> int:
    """Have payouts that stand still for want of a connected account looked at now; how many there are.

    Raises their version, so that who has read one before reads it again. One that comes to stand still at
    this very moment is missed, and looked at when its pause is over.
    """
    held = await connection.execute(
        update(payout)
        .where(payout.c.organization_id == organization_id, payout.c.hold == Hold.ACCOUNT_NOT_READY)
        .values(next_attempt_time=now, version=payout.c.version + 1)
        .returning(payout.c.payout_id)
    )
    released = len(held.all())
    # After the payouts, as `save` does: two who lock both must do so in the same order.
    if released:
        await work.wake(connection, organization_id, now)
    return released


async def add_reversal(connection: AsyncConnection, new: Reversal, organization_id: str) -> bool:
    """Record what came back of a payout, for the ledger to be told. False if it was recorded before."""
    values = {**dataclasses.asdict(new), "organization_id": organization_id}
    statement = (
        insert(payout_reversal)
        .values(**values)
        .on_conflict_do_nothing()
        .returning(payout_reversal.c.reversal_id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def mark_posted(connection: AsyncConnection, reversal_id: str) -> None:
    """The ledger has this reversal."""
    await connection.execute(
        update(payout_reversal).where(payout_reversal.c.reversal_id == reversal_id).values(posted=True)
    )


async def list_reversals(
    connection: AsyncConnection, payout_id: str, *, unposted: bool = False
) -> list[Reversal]:
    """What came back of a payout, the first one first."""
    statement = (
        select(payout_reversal)
        .where(payout_reversal.c.payout_id == payout_id)
        .order_by(payout_reversal.c.create_time, payout_reversal.c.reversal_id)
    )
    if unposted:
        statement = statement.where(~payout_reversal.c.posted)
    return [
        Reversal(row.reversal_id, row.payout_id, row.amount_micros, row.posted, row.create_time)
        for row in await connection.execute(statement)
    ]


async def list_transitions(connection: AsyncConnection, payout_id: str) -> list[Transition]:
    """The history of a payout, the first step first."""
    rows = await connection.execute(
        select(payout_transition)
        .where(payout_transition.c.payout_id == payout_id)
        .order_by(payout_transition.c.number)
    )
    return [
        Transition(
            number=row.number,
            state=PayoutState(row.state),
            bank_status=BankStatus(row.bank_status),
            step=Step(row.actor, row.method, row.reason, row.stripe_id),
            create_time=row.create_time,
        )
        for row in rows
    ]


async def list_due(
    connection: AsyncConnection, organization_id: str, now: datetime, limit: int
) -> list[Payout]:
    """Payouts of an organization with something to do now, in the order in which they were requested."""
    rows = await connection.execute(
        select(payout)
        .where(payout.c.organization_id == organization_id, payout.c.next_attempt_time <= now)
        .order_by(payout.c.create_time, payout.c.payout_id)
        .limit(limit)
    )
    return [_payout(row) for row in rows]


@dataclass(frozen=True, slots=True)
class PayoutFilter:
    """Which payouts a list has; what is empty or None does not restrict it."""

    organization_id: str = ""
    states: tuple[PayoutState, ...] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None
    currency_code: str = ""
    held: bool = False


async def list_newest(
    connection: AsyncConnection, wanted: PayoutFilter, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Payout]:
    """Up to `limit` payouts after a time of creation and an id, the newest first."""
    statement = (
        _filtered(wanted).order_by(payout.c.create_time.desc(), payout.c.payout_id.desc()).limit(limit)
    )
    if after is not None:
        statement = statement.where(tuple_(payout.c.create_time, payout.c.payout_id) < tuple_(*after))
    return [_payout(row) for row in await connection.execute(statement)]


async def list_oldest(
    connection: AsyncConnection, wanted: PayoutFilter, after: Payout | None, limit: int
) -> Sequence[Payout]:
    """Up to `limit` payouts after another, the oldest first."""
    statement = _filtered(wanted).order_by(payout.c.create_time, payout.c.payout_id).limit(limit)
    if after is not None:
        statement = statement.where(
            tuple_(payout.c.create_time, payout.c.payout_id) > tuple_(after.create_time, after.payout_id)
        )
    return [_payout(row) for row in await connection.execute(statement)]


def _filtered(wanted: PayoutFilter) -> "Select[Any]":
    tests: list[ColumnElement[bool]] = [payout.c.state.not_in(_UNSEEN)]
    if wanted.organization_id:
        tests.append(payout.c.organization_id == wanted.organization_id)
    if wanted.states:
        tests.append(payout.c.state.in_(wanted.states))
    if wanted.start_time is not None:
        tests.append(payout.c.create_time >= wanted.start_time)
    if wanted.end_time is not None:
        tests.append(payout.c.create_time < wanted.end_time)
    if wanted.currency_code:
        tests.append(payout.c.currency_code == wanted.currency_code)
    if wanted.held:
        tests.append(payout.c.hold != "")
    return select(payout).where(*tests)


async def _add_transition(connection: AsyncConnection, after: Payout, step: Step, now: datetime) -> None:
    number = (
        select(func.coalesce(func.max(payout_transition.c.number), 0) + 1)
        .where(payout_transition.c.payout_id == after.payout_id)
        .scalar_subquery()
    )
    await connection.execute(
        insert(payout_transition).values(
            payout_id=after.payout_id,
            number=number,
            organization_id=after.organization_id,
            state=after.state,
            bank_status=after.bank_status,
            actor=step.actor,
            method=step.method,
            reason=step.reason,
            stripe_id=step.stripe_id,
            create_time=now,
        )
    )


# Fields that are named as their columns, and hold what these do.
_PLAIN: Final = tuple(
    field.name
    for field in dataclasses.fields(Payout)
    if field.name not in ("money", "transfer", "bank_call", "hold")
)


def _values(of: Payout) -> dict[str, Any]:
    """The columns of a payout."""
    return {
        **{name: getattr(of, name) for name in _PLAIN},
        **_call_values("transfer", of.transfer),
        **_call_values("bank", of.bank_call),
        "currency_code": of.money.currency_code,
        "amount_micros": of.money.amount_micros,
        "hold": of.hold or "",
    }


def _payout(row: "Row[Any]") -> Payout:
    columns = row._asdict()
    enums = {
        "state": PayoutState(row.state),
        "origin": Origin(row.origin),
        "owed": None if row.owed is None else Owed(row.owed),
        "bank_status": BankStatus(row.bank_status),
    }
    return Payout(
        **{**{name: columns[name] for name in _PLAIN}, **enums},
        money=Money(row.currency_code, row.amount_micros),
        transfer=_call("transfer", columns),
        bank_call=_call("bank", columns),
        hold=Hold(row.hold) if row.hold else None,
    )


def _call_values(prefix: str, call: Call | None) -> dict[str, Any]:
    return {f"{prefix}_{part}": getattr(call, part, None) for part in ("body", "key", "time")}


def _call(prefix: str, columns: Mapping[str, Any]) -> Call | None:
    body, key, time = (columns[f"{prefix}_{part}"] for part in ("body", "key", "time"))
    return None if body is None else Call(body, key, time)
