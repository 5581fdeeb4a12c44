"""Purchases, their history, and what moved their money since."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, exists, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.money import Money
from services.payouts.domain.payout import Call, Step
from services.payouts.domain.purchase import (
    Change,
    Fee,
    Hold,
    Origin,
    Purchase,
    PurchaseState,
    Reversal,
    ReversalKind,
)
from services.payouts.domain.refund import RefundRequest, RefundState
from services.payouts.store.tables import (
    purchase,
    purchase_fee,
    purchase_reversal,
    purchase_step,
    refund_request,
)


async def create(connection: AsyncConnection, new: Purchase, step: Step) -> bool:
    """Create a purchase, and begin its history. False if its id exists."""
    statement = (
        insert(purchase).values(**_values(new)).on_conflict_do_nothing().returning(purchase.c.purchase_id)
    )
    if (await connection.execute(statement)).one_or_none() is None:
        return False
    await _add_step(connection, new, step, new.create_time)
    return True


async def find(connection: AsyncConnection, purchase_id: str) -> Purchase | None:
    """A purchase, if the connection's tenants may see it."""
    return await _one(connection, purchase.c.purchase_id == purchase_id)


async def find_by_payment(connection: AsyncConnection, payment_intent_id: str) -> Purchase | None:
    """The purchase that this payment is known to be of, if the connection's tenants may see it."""
    return await _one(connection, purchase.c.payment_intent_id == payment_intent_id)


async def save(
    connection: AsyncConnection, before: Purchase, change: Change, now: datetime
) -> Purchase | None:
    """Write a change, its step, and what was learnt of the purchase's money, unless somebody else changed the
    purchase since `before`.

    Answers the purchase as it is then, or None: then read it again, and judge again.
    """
    after = dataclasses.replace(change.purchase, version=before.version + 1, update_time=now)
    statement = (
        update(purchase)
        .where(purchase.c.purchase_id == before.purchase_id, purchase.c.version == before.version)
        .values(**_values(after))
        .returning(purchase.c.purchase_id)
    )
    if (await connection.execute(statement)).one_or_none() is None:
        return None
    # The row is locked by its update from here on, so numbers are given one at a time.
    if change.step is not None:
        await _add_step(connection, after, change.step, now)
    for reversal in change.reversals:
        await _add_reversal(connection, after, reversal)
    for fee in change.fees:
        await _add_fee(connection, after, fee)
    return after


async def claim_due(
    connection: AsyncConnection, now: datetime, until: datetime, limit: int
) -> list[Purchase]:
    """Take up to `limit` purchases with something to do, the longest due first, for this caller alone `until`
    then.

    Rows that another worker is taking are skipped, and not waited for. The version stays: who works on one
    without having taken it, as the call that began it does, is not disturbed.
    """
    due = (
        select(purchase.c.purchase_id)
        .where(purchase.c.next_attempt_time <= now)
        .order_by(purchase.c.next_attempt_time)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    taken = await connection.execute(
        update(purchase)
        .where(purchase.c.purchase_id == due.c.purchase_id)
        .values(next_attempt_time=until)
        .returning(purchase)
    )
    # As if it still were due: it is, for who has taken it.
    return [dataclasses.replace(_purchase(row), next_attempt_time=now) for row in taken]


async def list_unposted_fees(connection: AsyncConnection, purchase_id: str) -> list[Fee]:
    """What the processor took, and the ledger has not heard of."""
    rows = await connection.execute(
        select(purchase_fee)
        .where(purchase_fee.c.purchase_id == purchase_id, ~purchase_fee.c.posted)
        .order_by(purchase_fee.c.fee_id)
    )
    return [Fee(row.fee_id, Money(row.currency_code, row.amount_micros), row.reason) for row in rows]


async def mark_fee_posted(connection: AsyncConnection, fee_id: str) -> None:
    """The ledger has this fee."""
    await connection.execute(update(purchase_fee).where(purchase_fee.c.fee_id == fee_id).values(posted=True))


async def list_unposted_reversals(connection: AsyncConnection, purchase_id: str) -> list[Reversal]:
    """What went back, or came again, and the ledger has not heard of; the first one first."""
    table = purchase_reversal.c
    rows = await connection.execute(
        select(purchase_reversal)
        .where(
            table.purchase_id == purchase_id,
            ~table.posted | ((table.reinstatement_id != "") & ~table.reinstatement_posted),
        )
        .order_by(table.create_time, table.reversal_id)
    )
    return [_reversal(row) for row in rows]


async def mark_reversal_posted(connection: AsyncConnection, reversal_id: str) -> None:
    """The ledger has this reversal."""
    await connection.execute(
        update(purchase_reversal).where(purchase_reversal.c.reversal_id == reversal_id).values(posted=True)
    )


async def mark_reinstatement_posted(connection: AsyncConnection, reversal_id: str) -> None:
    """The ledger knows that the money of this reversal came again."""
    await connection.execute(
        update(purchase_reversal)
        .where(purchase_reversal.c.reversal_id == reversal_id)
        .values(reinstatement_posted=True)
    )


# Refunds that were asked for.


async def add_refund(connection: AsyncConnection, new: RefundRequest) -> None:
    """Write down a refund that will be asked for."""
    await connection.execute(insert(refund_request).values(**_refund_values(new)))


async def find_refund(connection: AsyncConnection, refund_request_id: str) -> RefundRequest | None:
    """A refund that was asked for, if the connection's tenants may see it."""
    rows = await connection.execute(
        select(refund_request).where(refund_request.c.refund_request_id == refund_request_id)
    )
    row = rows.one_or_none()
    return None if row is None else _refund(row)


async def list_pending_refunds(connection: AsyncConnection, purchase_id: str) -> list[RefundRequest]:
    """Refunds that are still to be made, the first one first."""
    table = refund_request.c
    rows = await connection.execute(
        select(refund_request)
        .where(table.purchase_id == purchase_id, table.state == RefundState.PENDING)
        .order_by(table.refund_time, table.refund_request_id)
    )
    return [_refund(row) for row in rows]


async def sum_refunds_under_way(connection: AsyncConnection, purchase_id: str) -> int:
    """Micros that will go back, or have, without being among the reversals yet."""
    table = refund_request.c
    known = exists().where(purchase_reversal.c.reversal_id == table.refund_id)
    under_way = await connection.scalar(
        select(func.coalesce(func.sum(table.amount_micros), 0)).where(
            table.purchase_id == purchase_id,
            (table.state == RefundState.PENDING) | ((table.state == RefundState.MADE) & ~known),
        )
    )
    return int(under_way or 0)


async def end_refund(connection: AsyncConnection, ended: RefundRequest, now: datetime) -> None:
    """Write what became of a refund, unless that is known, and have its purchase looked at.

    Raises the purchase's version: who has read it before, and so seen nothing to do, reads it again.
    """
    # The purchase first, as who writes a refund down does.
    await connection.execute(
        update(purchase)
        .where(purchase.c.purchase_id == ended.purchase_id)
        .values(look=True, next_attempt_time=now, version=purchase.c.version + 1)
    )
    await connection.execute(
        update(refund_request)
        .where(
            refund_request.c.refund_request_id == ended.refund_request_id,
            refund_request.c.state == RefundState.PENDING,
        )
        .values(
            state=ended.state,
            refund_id=ended.refund_id,
            failure_code=ended.failure_code,
            failure_reason=ended.failure_reason,
        )
    )


async def end_dead_refunds(connection: AsyncConnection, purchase_id: str, refund_ids: Sequence[str]) -> None:
    """These refunds were made, and failed before they moved any money: it may be asked for again."""
    await connection.execute(
        update(refund_request)
        .where(refund_request.c.purchase_id == purchase_id, refund_request.c.refund_id.in_(refund_ids))
        .values(
            state=RefundState.REFUSED,
            refund_id=None,
            failure_code="refund_failed",
            failure_reason="the payment processor could not make the refund",
        )
    )


@dataclass(frozen=True, slots=True)
class PurchaseFilter:
    """Which purchases a list has; what is empty does not restrict it."""

    customer_id: str = ""
    states: tuple[PurchaseState, ...] = ()


async def list_newest(
    connection: AsyncConnection, wanted: PurchaseFilter, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Purchase]:
    """Up to `limit` purchases after a time of creation and an id, the newest first."""
    tests: list[ColumnElement[bool]] = []
    if wanted.customer_id:
        tests.append(purchase.c.customer_id == wanted.customer_id)
    if wanted.states:
        tests.append(purchase.c.state.in_(wanted.states))
    if after is not None:
        tests.append(tuple_(purchase.c.create_time, purchase.c.purchase_id) < tuple_(*after))
    statement = (
        select(purchase)
        .where(*tests)
        .order_by(purchase.c.create_time.desc(), purchase.c.purchase_id.desc())
        .limit(limit)
    )
    return [_purchase(row) for row in await connection.execute(statement)]


async def _one(connection: AsyncConnection, test: ColumnElement[bool]) -> Purchase | None:
    row = (await connection.execute(select(purchase).where(test))).one_or_none()
    return None if row is None else _purchase(row)


async def _add_step(connection: AsyncConnection, after: Purchase, step: Step, now: datetime) -> None:
    number = (
        select(func.coalesce(func.max(purchase_step.c.number), 0) + 1)
        .where(purchase_step.c.purchase_id == after.purchase_id)
        .scalar_subquery()
    )
    await connection.execute(
        insert(purchase_step).values(
            purchase_id=after.purchase_id,
            number=number,
            customer_id=after.customer_id,
            state=after.state,
            actor=step.actor,
            method=step.method,
            reason=step.reason,
            stripe_id=step.stripe_id,
            create_time=now,
        )
    )


async def _add_reversal(connection: AsyncConnection, of: Purchase, new: Reversal) -> None:
    """Record what went back, once, and, once, what of it came again."""
    facts = dataclasses.asdict(new)
    # Only the ledger's answers set these.
    del facts["posted"], facts["reinstatement_posted"]
    statement = insert(purchase_reversal).values(
        purchase_id=of.purchase_id, customer_id=of.customer_id, **facts
    )
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[purchase_reversal.c.reversal_id],
            set_={
                "reinstatement_id": statement.excluded.reinstatement_id,
                "reinstated_micros": statement.excluded.reinstated_micros,
            },
            # What the ledger was told, or is about to be, never changes.
            where=(purchase_reversal.c.reinstatement_id == "")
            & (purchase_reversal.c.purchase_id == of.purchase_id),
        )
    )


async def _add_fee(connection: AsyncConnection, of: Purchase, new: Fee) -> None:
    if new.money.amount_micros == 0:
        return
    await connection.execute(
        insert(purchase_fee)
        .values(
            fee_id=new.fee_id,
            purchase_id=of.purchase_id,
            customer_id=of.customer_id,
            currency_code=new.money.currency_code,
            amount_micros=new.money.amount_micros,
            reason=new.reason,
        )
        .on_conflict_do_nothing()
    )


# Fields that are named as their columns, and hold what these do.
_PLAIN: Final = tuple(
    field.name for field in dataclasses.fields(Purchase) if field.name not in ("money", "intent", "hold")
)
_PLAIN_REFUND: Final = tuple(
    field.name for field in dataclasses.fields(RefundRequest) if field.name != "refund"
)


def _values(of: Purchase) -> dict[str, Any]:
    """The columns of a purchase."""
    return {
        **{name: getattr(of, name) for name in _PLAIN},
        "intent_body": of.intent.body,
        "intent_key": of.intent.key,
        "intent_time": of.intent.time,
        "currency_code": of.money.currency_code,
        "amount_micros": of.money.amount_micros,
        "hold": of.hold or "",
    }


def _purchase(row: "Row[Any]") -> Purchase:
    columns = row._asdict()
    enums = {"state": PurchaseState(row.state), "origin": Origin(row.origin)}
    return Purchase(
        **{**{name: columns[name] for name in _PLAIN}, **enums},
        money=Money(row.currency_code, row.amount_micros),
        intent=Call(row.intent_body, row.intent_key, row.intent_time),
        hold=Hold(row.hold) if row.hold else None,
    )


def _reversal(row: "Row[Any]") -> Reversal:
    columns = row._asdict()
    names = (field.name for field in dataclasses.fields(Reversal))
    return Reversal(**{**{name: columns[name] for name in names}, "kind": ReversalKind(row.kind)})


def _refund_values(of: RefundRequest) -> dict[str, Any]:
    return {
        **{name: getattr(of, name) for name in _PLAIN_REFUND},
        "refund_body": of.refund.body,
        "refund_key": of.refund.key,
        "refund_time": of.refund.time,
    }


def _refund(row: "Row[Any]") -> RefundRequest:
    columns = row._asdict()
    return RefundRequest(
        **{**{name: columns[name] for name in _PLAIN_REFUND}, "state": RefundState(row.state)},
        refund=Call(row.refund_body, row.refund_key, row.refund_time),
    )
