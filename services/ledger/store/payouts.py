"""What payouts take from organizations' earnings.

Each movement is one call of a database function, which says its locks.
"""

from dataclasses import dataclass
from datetime import date
from typing import Any

from psycopg import AsyncConnection as HotConnection
from psycopg.rows import TupleRow, namedtuple_row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.db import single
from services.kit.pages import Page
from services.ledger.domain.payouts import PayableEarnings, PayoutDebit, PayoutDebitState
from services.ledger.store.refusals import refusals, unknown_payout

# ruff: noqa: S608 - statements are built from this constant alone
_COLUMNS = """
    organization_id, payout_id, currency_code, amount, state::text AS state, reversed, available,
    transaction_id, end_transaction_id, create_time, end_time, freeze_reason
"""


@dataclass(frozen=True, slots=True)
class Answered:
    """A debit as it stands, and whether the call changed nothing because it had come before."""

    debit: PayoutDebit
    duplicate: bool


async def debit_payout(
    connection: HotConnection[TupleRow],
    *,
    organization_id: str,
    payout_id: str,
    currency_code: str,
    amount: int,
    actor_api_key_id: str,
) -> Answered:
    """Take an amount from the available earnings, once per payout id; a refusal is stored too."""
    with refusals(payout_id):
        return await _answered(
            connection,
            "SELECT duplicate, (debit).* FROM ledger.debit_payout(%s, %s, %s, %s, %s)",
            (organization_id, payout_id, currency_code, amount, actor_api_key_id),
        )


async def complete_payout(
    connection: HotConnection[TupleRow], organization_id: str, payout_id: str, actor_api_key_id: str
) -> PayoutDebit:
    """Record that the money left, once."""
    with refusals():
        answered = await _answered(
            connection,
            "SELECT false AS duplicate, debit.* FROM ledger.complete_payout(%s, %s, %s) AS debit",
            (organization_id, payout_id, actor_api_key_id),
        )
    return answered.debit


async def return_payout(
    connection: HotConnection[TupleRow],
    organization_id: str,
    payout_id: str,
    reason: str,
    actor_api_key_id: str,
) -> PayoutDebit:
    """Put the money back that did not leave, once."""
    with refusals():
        answered = await _answered(
            connection,
            "SELECT false AS duplicate, debit.* FROM ledger.return_payout(%s, %s, %s, %s) AS debit",
            (organization_id, payout_id, reason, actor_api_key_id),
        )
    return answered.debit


async def reverse_payout(
    connection: HotConnection[TupleRow],
    *,
    organization_id: str,
    payout_id: str,
    reversal_id: str,
    currency_code: str,
    amount: int,
    reason: str,
    actor_api_key_id: str,
    request_hash: bytes,
) -> Answered:
    """Put back what came back of a completed payout, once per reversal id."""
    with refusals(reversal_id):
        return await _answered(
            connection,
            "SELECT duplicate, (debit).* FROM ledger.reverse_payout(%s, %s, %s, %s, %s, %s, %s, %s)",
            (
                organization_id,
                payout_id,
                f"reversal/{payout_id}/{reversal_id}",
                request_hash,
                currency_code,
                amount,
                reason,
                actor_api_key_id,
            ),
        )


_BY_ID = text(
    f"SELECT {_COLUMNS} FROM ledger.payout_debit"
    " WHERE organization_id = :organization_id AND payout_id = :payout_id"
)


async def get_payout_debit(connection: AsyncConnection, organization_id: str, payout_id: str) -> PayoutDebit:
    """The debit as it stands; raises NotFound."""
    found = await connection.execute(_BY_ID, {"organization_id": organization_id, "payout_id": payout_id})
    row = found.mappings().one_or_none()
    if row is None:
        raise unknown_payout(payout_id)
    return _debit(row)


_LIST = text(f"""
    SELECT {_COLUMNS}
    FROM ledger.payout_debit
    WHERE (CAST(:organization_id AS text) = '' OR organization_id = :organization_id)
      AND (CAST(:state AS text) IS NULL OR state = CAST(:state AS ledger.payout_debit_state))
      AND (CAST(:after_organization AS text) IS NULL
           OR (organization_id, payout_id) > (:after_organization, :after_payout))
    ORDER BY organization_id, payout_id
    LIMIT :limit
""")


async def list_payout_debits(
    connection: AsyncConnection, organization_id: str, state: PayoutDebitState | None, page: Page
) -> list[PayoutDebit]:
    """Debits by (organization, payout), up to `page.limit`.

    Of all organizations for "", in any state for None.
    """
    organization, payout = page.after or (None, None)
    rows = await connection.execute(
        _LIST,
        {
            "organization_id": organization_id,
            "state": state,
            "after_organization": organization,
            "after_payout": payout,
            "limit": page.limit,
        },
    )
    return [_debit(row) for row in rows.mappings()]


# As payouts count it: with what was posted an instant ago, folded or not.
_PAYABLE = text("""
    SELECT currency_code, sum(amount)::bigint AS available,
           coalesce(sum(amount) FILTER (
               WHERE CAST(:earned_before AS date) IS NULL OR earned_on < :earned_before), 0)::bigint
               AS payable
    FROM (
        SELECT currency_code, earned_on, credits - debits AS amount FROM ledger.earnings_bucket
        WHERE owner_id = :organization_id AND collected AND available_on <= ledger.today()
        UNION ALL
        SELECT currency_code, earned_on, credits - debits FROM ledger.balance_delta
        WHERE owner_id = :organization_id AND kind = 'organization_payable' AND collected
          AND available_on <= ledger.today()
    ) AS part
    WHERE currency_code > :after
    GROUP BY currency_code
    ORDER BY currency_code
    LIMIT :limit
""")


async def list_payable_earnings(
    connection: AsyncConnection, organization_id: str, earned_before: date | None, page: Page
) -> list[PayableEarnings]:
    """What could be paid out now of what was earned before a date, by currency, up to `page.limit`."""
    rows = await connection.execute(
        _PAYABLE,
        {
            "organization_id": organization_id,
            "earned_before": earned_before,
            "after": page.after[0] if page.after else "",
            "limit": page.limit,
        },
    )
    return [
        # A later day may be short, after a clawback: then the earlier ones do not pay out in full either.
        PayableEarnings(row.currency_code, max(min(row.payable, row.available), 0), row.available)
        for row in rows
    ]


async def _answered(connection: HotConnection[TupleRow], statement: str, values: tuple[Any, ...]) -> Answered:
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute(statement.encode(), values)
    row: Any = await single(cursor)
    columns = row._asdict()
    duplicate = columns.pop("duplicate")
    return Answered(_debit(columns), duplicate)


def _debit(row: Any) -> PayoutDebit:
    return PayoutDebit(**{**row, "state": PayoutDebitState(row["state"])})
