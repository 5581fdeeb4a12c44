"""Movements of money that are not charges: grants and collections.

Each is one call of a database function, which says its locks and their order.
"""

from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from services.kit.db import single
from services.ledger.domain.lots import GrantTerms
from services.ledger.store.refusals import refusals

# Charges collected in one database transaction: it holds the customer's lock, so it is kept short.
COLLECT_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Posted:
    """A transaction, and whether it had been posted before."""

    transaction_id: str
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Collected:
    """How much was collected (micros), and whether more could be."""

    amount: int
    more: bool


async def grant_credits(
    connection: AsyncConnection[TupleRow],
    *,
    customer_id: str,
    currency_code: str,
    amount: int,
    terms: GrantTerms,
    reason: str,
    actor_api_key_id: str,
    key: str,
    request_hash: bytes,
) -> Posted:
    """Add credits to a customer, once per key."""
    with refusals(key):
        cursor = await connection.execute(
            "SELECT transaction_id, duplicate"
            " FROM ledger.grant_credits(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s::smallint, %s)",
            (
                customer_id,
                currency_code,
                amount,
                terms.type,
                reason,
                actor_api_key_id,
                f"grant/{key}",
                request_hash,
                terms.funder_id,
                terms.priority,
                terms.expire_time,
            ),
        )
        return Posted(*await single(cursor))


async def collect(
    connection: AsyncConnection[TupleRow],
    customer_id: str,
    currency_code: str,
    limit: int,
    actor_api_key_id: str,
) -> Collected:
    """Pay what a customer owes from its available credits: at most `limit` charges, oldest first."""
    cursor = await connection.execute(
        "SELECT collected, more FROM ledger.collect(%s, %s, %s, %s)",
        (customer_id, currency_code, limit, actor_api_key_id),
    )
    return Collected(*await single(cursor))
