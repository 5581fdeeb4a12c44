"""What money at the payment processor does by itself: purchases that come back, and fees.

Each movement is one call of a database function, which says its locks.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection as HotConnection
from psycopg.rows import TupleRow, namedtuple_row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.db import single
from services.kit.pages import Page
from services.ledger.domain.accounts import TransactionType
from services.ledger.domain.funding import ClearingMovement, Purchase, PurchaseReversal, ReversalKind
from services.ledger.store.movements import Posted
from services.ledger.store.refusals import purchase_not_found, refusals

_REVERSAL_COLUMNS = """
    customer_id, reversal_id, purchase_key, type::text AS kind, currency_code, amount,
    from_credits, from_expired, transaction_id, create_time, reinstated, reinstatement_id,
    reinstatement_transaction_id
"""


@dataclass(frozen=True, slots=True)
class Answered:
    """A reversal as it stands, and whether the call changed nothing because it had come before."""

    reversal: PurchaseReversal
    duplicate: bool


async def reverse_purchase(
    connection: HotConnection[TupleRow],
    *,
    purchase: Purchase,
    reversal_id: str,
    kind: ReversalKind,
    amount: int,
    reason: str,
    actor_api_key_id: str,
    request_hash: bytes,
) -> Answered:
    """Post what went back of a purchase, once per reversal id."""
    with refusals(reversal_id):
        return await _answered(
            connection,
            "SELECT duplicate, (reversal).* FROM ledger.reverse_purchase(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                purchase.customer_id,
                purchase.purchase_key,
                reversal_id,
                kind,
                purchase.currency_code,
                amount,
                reason,
                actor_api_key_id,
                request_hash,
            ),
        )


async def reinstate_purchase(
    connection: HotConnection[TupleRow],
    *,
    customer_id: str,
    reversal_id: str,
    reinstatement_id: str,
    amount: int | None,
    reason: str,
    actor_api_key_id: str,
    request_hash: bytes,
) -> Answered:
    """Post what came again of a reversal, once; all of it for None."""
    with refusals(reinstatement_id):
        return await _answered(
            connection,
            "SELECT duplicate, (reversal).* FROM ledger.reinstate_purchase(%s, %s, %s, %s, %s, %s, %s)",
            (customer_id, reversal_id, reinstatement_id, amount, reason, actor_api_key_id, request_hash),
        )


async def record_processor_fee(
    connection: HotConnection[TupleRow],
    *,
    fee_id: str,
    currency_code: str,
    amount: int,
    reason: str,
    actor_api_key_id: str,
    request_hash: bytes,
) -> Posted:
    """Post what the processor took, or gave back for a negative amount, once per fee id."""
    with refusals(fee_id):
        cursor = await connection.execute(
            "SELECT transaction_id, duplicate FROM ledger.record_processor_fee(%s, %s, %s, %s, %s, %s)",
            (fee_id, currency_code, amount, reason, actor_api_key_id, request_hash),
        )
        return Posted(*await single(cursor))


_PURCHASE = text("""
    SELECT e.currency_code, e.amount
    FROM ledger.idempotency k
    JOIN ledger.transaction t
        ON t.transaction_id = k.outcome AND t.partition_id = k.owner_id AND t.type = 'purchase'
    JOIN ledger.entry e
        ON e.transaction_id = t.transaction_id AND e.partition_id = t.partition_id
       AND e.kind = 'customer_credits'
    WHERE k.owner_id = :customer_id AND k.key = 'grant/' || :purchase_key
""")


async def get_purchase(connection: AsyncConnection, customer_id: str, purchase_key: str) -> Purchase:
    """A purchase, which never changes; raises NotFound."""
    found = await connection.execute(_PURCHASE, {"customer_id": customer_id, "purchase_key": purchase_key})
    row = found.one_or_none()
    if row is None:
        raise purchase_not_found({"purchase_key": purchase_key})
    return Purchase(customer_id, purchase_key, row.currency_code, row.amount)


_REVERSAL = text(f"""
    SELECT {_REVERSAL_COLUMNS} FROM ledger.purchase_reversal
    WHERE customer_id = :customer_id AND reversal_id = :reversal_id
""")  # noqa: S608 - built from the constant above alone


async def get_reversal(connection: AsyncConnection, customer_id: str, reversal_id: str) -> PurchaseReversal:
    """A reversal as it stands; raises NotFound."""
    found = await connection.execute(_REVERSAL, {"customer_id": customer_id, "reversal_id": reversal_id})
    row = found.mappings().one_or_none()
    if row is None:
        raise purchase_not_found({"reversal_id": reversal_id})
    return _reversal(row)


# Down the index of the transactions that can move this account, however many charges lie between them.
_MOVEMENTS = text("""
    SELECT t.transaction_id, e.entry_number, t.type::text AS type, t.partition_id AS owner_id,
           coalesce(t.external_id, '') AS external_id, coalesce(t.payout_id, '') AS payout_id,
           e.currency_code, e.amount, t.create_time
    FROM ledger.transaction t
    JOIN ledger.entry e USING (transaction_id, partition_id)
    WHERE t.type NOT IN ('charge', 'collection')
      AND e.owner_id = 'platform' AND e.kind = 'stripe_clearing'
      AND t.create_time >= :create_time_from AND t.create_time < :create_time_until
      AND (t.create_time, t.transaction_id, e.entry_number) > (
          CAST(:after_time AS timestamptz), :after_id, CAST(:after_number AS integer))
    ORDER BY t.create_time, t.transaction_id, e.entry_number
    LIMIT :limit
""")


async def list_clearing_movements(
    connection: AsyncConnection,
    create_time_from: datetime,
    create_time_until: datetime,
    after: tuple[datetime, str, int] | None,
    page: Page,
) -> list[ClearingMovement]:
    """What was posted to stripe_clearing in [from, until), oldest first, up to `page.limit`.

    `after` is the (create_time, transaction, entry number) behind which the page begins.
    """
    after_time, after_id, after_number = after or (create_time_from, "", 0)
    rows = await connection.execute(
        _MOVEMENTS,
        {
            "create_time_from": create_time_from,
            "create_time_until": create_time_until,
            "after_time": after_time,
            "after_id": after_id,
            "after_number": after_number,
            "limit": page.limit,
        },
    )
    return [ClearingMovement(**{**row, "type": TransactionType(row["type"])}) for row in rows.mappings()]


async def _answered(connection: HotConnection[TupleRow], statement: str, values: tuple[Any, ...]) -> Answered:
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute(statement.encode(), values)
    row: Any = await single(cursor)
    columns = row._asdict()
    duplicate = columns.pop("duplicate")
    columns["kind"] = columns.pop("type")
    return Answered(_reversal(columns), duplicate)


def _reversal(row: Any) -> PurchaseReversal:
    return PurchaseReversal(**{**row, "kind": ReversalKind(row["kind"])})
