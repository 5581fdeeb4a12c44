"""Giving up what will not be paid, and reading what was given up.

Each write-off is one call of a database function, which says its locks.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection as HotConnection
from psycopg.rows import TupleRow
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.db import single
from services.kit.pages import Page
from services.ledger.domain.write_offs import WriteOff, WriteOffKind
from services.ledger.store.refusals import refusals


@dataclass(frozen=True, slots=True)
class Written:
    """The transaction of a write-off and how much it was of, and whether it had been posted before."""

    transaction_id: str
    amount: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks for a write-off, and why. `amount` is None for all that is owed."""

    amount: int | None
    reason: str
    actor_api_key_id: str
    key: str
    request_hash: bytes

    @property
    def values(self) -> tuple[Any, ...]:
        return self.amount, self.reason, self.actor_api_key_id, self.key, self.request_hash


def request_key(key: str) -> str:
    """The idempotency key of what an operator asks for."""
    return f"write-off/{key}"


def age_key(charge_id: str, kind: WriteOffKind) -> str:
    """The idempotency key of what is too old: of each part of a charge once."""
    return f"write-off-age/{charge_id}/{kind}"


async def write_off_charge(
    connection: HotConnection[TupleRow], charge_id: str, kind: WriteOffKind, request: Request
) -> Written:
    """Give up what is unpaid of a charge, or what is owed of it as receivable."""
    return await _written(
        connection, "ledger.write_off_charge(%s, %s, %s, %s, %s, %s, %s)", (charge_id, kind), request
    )


async def write_off_chargebacks(
    connection: HotConnection[TupleRow], customer_id: str, currency_code: str, request: Request
) -> Written:
    """Give up what a customer owes for chargebacks."""
    return await _written(
        connection,
        "ledger.write_off_chargebacks(%s, %s, %s, %s, %s, %s, %s)",
        (customer_id, currency_code),
        request,
    )


async def write_off_clawback(
    connection: HotConnection[TupleRow], organization_id: str, currency_code: str, request: Request
) -> Written:
    """Give up what an organization's available earnings are below zero."""
    return await _written(
        connection,
        "ledger.write_off_clawback(%s, %s, %s, %s, %s, %s, %s)",
        (organization_id, currency_code),
        request,
    )


async def _written(
    connection: HotConnection[TupleRow], function: str, of: tuple[str, str], request: Request
) -> Written:
    with refusals(request.key.partition("/")[2]):
        cursor = await connection.execute(
            f"SELECT (written).transaction_id, (written).amount, duplicate FROM {function}".encode(),  # noqa: S608
            (*of, *request.values),
        )
        return Written(*await single(cursor))


_COLUMNS = """
    w.transaction_id, w.kind::text AS kind, w.owner_id, w.charge_id, w.currency_code, w.amount, t.reason,
    t.actor_api_key_id, w.create_time
"""
_ONE = text(f"""
    SELECT {_COLUMNS}
    FROM ledger.write_off w
    JOIN ledger.transaction t ON t.transaction_id = w.transaction_id AND t.partition_id = w.owner_id
    WHERE w.transaction_id = :transaction_id
""")  # noqa: S608 - built from the constant above alone
_PAGE = text(f"""
    SELECT {_COLUMNS}
    FROM ledger.write_off w
    JOIN ledger.transaction t ON t.transaction_id = w.transaction_id AND t.partition_id = w.owner_id
    WHERE (CAST(:owner_id AS text) = '' OR w.owner_id = :owner_id)
      AND (CAST(:charge_id AS text) = '' OR w.charge_id = :charge_id)
      AND (CAST(:before AS text) = '' OR w.transaction_id < :before)
    ORDER BY w.transaction_id DESC
    LIMIT :limit
""")  # noqa: S608 - built from the constant above alone


async def get_write_off(connection: AsyncConnection, transaction_id: str) -> WriteOff:
    """A write-off that is known to exist."""
    found = await connection.execute(_ONE, {"transaction_id": transaction_id})
    return _write_off(found.mappings().one())


async def list_write_offs(
    connection: AsyncConnection, owner_id: str, charge_id: str, page: Page
) -> list[WriteOff]:
    """Newest first, up to `page.limit`; of one owner or charge unless that is empty."""
    values = {
        "owner_id": owner_id,
        "charge_id": charge_id,
        "before": page.after[0] if page.after else "",
        "limit": page.limit,
    }
    return [_write_off(row) for row in (await connection.execute(_PAGE, values)).mappings()]


def _write_off(row: RowMapping) -> WriteOff:
    return WriteOff(**{**row, "kind": WriteOffKind(row["kind"])})


# The oldest that are open, of whoever: however many younger ones there are, no more than these are looked at.
# Who has credits is not given up on: the collector takes them first.
_TOO_OLD = text("""
    SELECT o.charge_id, o.receivable, o.unpaid
    FROM (SELECT * FROM ledger.open_charge ORDER BY open_number LIMIT :limit) AS o
    JOIN ledger.charge c ON c.charge_id = o.charge_id AND c.customer_id = o.customer_id
    JOIN ledger.account a
      ON a.owner_id = o.customer_id AND a.kind = 'customer_credits' AND a.currency_code = o.currency_code
    WHERE c.create_time <= :posted_until AND a.credits - a.debits - a.held = 0
    ORDER BY o.open_number
""")


async def too_old(
    connection: AsyncConnection, posted_until: datetime, limit: int
) -> list[tuple[str, WriteOffKind]]:
    """What is open of charges that were posted so long ago, the oldest of them: at most `limit` charges."""
    rows = await connection.execute(_TOO_OLD, {"posted_until": posted_until, "limit": limit})
    return [
        (row.charge_id, kind)
        for row in rows
        for kind, owed in ((WriteOffKind.RECEIVABLE, row.receivable), (WriteOffKind.UNPAID, row.unpaid))
        if owed > 0
    ]


_USES = text("""
    SELECT EXISTS (
        SELECT FROM ledger.account
        WHERE owner_id = :customer_id AND kind = 'customer_credits' AND currency_code = :currency_code)
""")


async def uses_currency(connection: AsyncConnection, customer_id: str, currency_code: str) -> bool:
    """Whether the customer has accounts in a currency."""
    found = await connection.execute(_USES, {"customer_id": customer_id, "currency_code": currency_code})
    return bool(found.scalar_one())
