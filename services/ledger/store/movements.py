"""Movements of money that are not charges: grants, collections and adjustments.

Each is one call of a database function, which says its locks and their order.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from services.kit.db import single
from services.kit.errors import AlreadyExists, FailedPrecondition, PreconditionViolation
from services.ledger.domain.accounts import AccountRef, TransactionType
from services.ledger.store.charges import unknown_party

# SQLSTATEs of our own, raised by the functions of migration 0002.
_KEY_REUSED = "TL001"
_UNKNOWN_PARTY = "TL002"
_INSUFFICIENT_BALANCE = "TL003"


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


@contextmanager
def _refusals(key: str) -> Iterator[None]:
    """Turn what the functions refuse into errors with a meaning."""
    try:
        yield
    except psycopg.Error as error:
        detail = error.diag.message_detail or ""
        if error.sqlstate == _KEY_REUSED:
            raise AlreadyExists(
                "this idempotency key was used before with another request",
                reason="IDEMPOTENCY_KEY_REUSED",
                metadata={"key": key},
            ) from None
        if error.sqlstate == _UNKNOWN_PARTY:
            raise unknown_party(detail) from None
        if error.sqlstate == _INSUFFICIENT_BALANCE:
            account: dict[str, str] = json.loads(detail)
            raise FailedPrecondition(
                "the account does not hold that much",
                reason="INSUFFICIENT_BALANCE",
                metadata=account,
                precondition_violations=[
                    PreconditionViolation(
                        "BALANCE",
                        f"{account['owner_id']}/{account['account']}/{account['currency_code']}",
                        f"{account['available_micros']} micros are available,"
                        f" {account['requested_micros']} were asked for",
                    )
                ],
            ) from None
        raise


async def grant_credits(
    connection: AsyncConnection[TupleRow],
    *,
    customer_id: str,
    currency_code: str,
    amount: int,
    type: TransactionType,
    reason: str,
    actor_api_key_id: str,
    key: str,
    request_hash: bytes,
) -> Posted:
    """Add credits to a customer, once per key."""
    with _refusals(key):
        cursor = await connection.execute(
            "SELECT transaction_id, duplicate FROM ledger.grant_credits(%s, %s, %s, %s, %s, %s, %s, %s)",
            (
                customer_id,
                currency_code,
                amount,
                type,
                reason,
                actor_api_key_id,
                f"grant/{key}",
                request_hash,
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


async def adjust(
    connection: AsyncConnection[TupleRow],
    *,
    postings: Sequence[tuple[AccountRef, int]],
    reason: str,
    actor_api_key_id: str,
    key: str,
    request_hash: bytes,
) -> Posted:
    """Post an operator's adjustment, once per key."""
    with _refusals(key):
        cursor = await connection.execute(
            "SELECT transaction_id, duplicate FROM"
            " ledger.adjust(%s::text[], %s::ledger.account_kind[], %s::text[], %s::bigint[], %s, %s, %s, %s)",
            (
                [account.owner_id for account, _ in postings],
                [str(account.kind) for account, _ in postings],
                [account.currency_code for account, _ in postings],
                [amount for _, amount in postings],
                reason,
                actor_api_key_id,
                f"adjustment/{key}",
                request_hash,
            ),
        )
        return Posted(*await single(cursor))
