"""Adjustments: proposing, deciding and reading them. Each step is one call of a database function."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from psycopg import AsyncConnection as HotConnection
from psycopg.rows import TupleRow
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.db import single
from services.kit.pages import Page
from services.ledger.domain.accounts import AccountKind, AccountRef
from services.ledger.domain.adjustments import Adjustment, AdjustmentState
from services.ledger.store import movements
from services.ledger.store.refusals import refusals, unknown_adjustment


@dataclass(frozen=True, slots=True)
class Proposed:
    """An adjustment, the transaction that posted it if it is posted, and whether its key had come before.

    Of what was posted before there were proposals there is no adjustment: its id is empty.
    """

    adjustment_id: str
    transaction_id: str | None
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Approved:
    """Whether this call posted the adjustment, and its transaction."""

    posted_now: bool
    transaction_id: str


async def propose(
    connection: HotConnection[TupleRow],
    *,
    postings: Sequence[tuple[AccountRef, int]],
    reason: str,
    actor_api_key_id: str,
    key: str,
    request_hash: bytes,
    lasts: timedelta,
    needs_approval: bool,
) -> Proposed:
    """Record a proposal, once per key; post it at once unless it needs approval."""
    with refusals(key):
        cursor = await connection.execute(
            "SELECT adjustment_id, transaction_id, duplicate FROM ledger.propose_adjustment("
            "%s::text[], %s::ledger.account_kind[], %s::text[], %s::bigint[], %s, %s, %s, %s, %s, %s)",
            (
                [account.owner_id for account, _ in postings],
                [str(account.kind) for account, _ in postings],
                [account.currency_code for account, _ in postings],
                [amount for _, amount in postings],
                reason,
                actor_api_key_id,
                key,
                request_hash,
                lasts,
                needs_approval,
            ),
        )
        return Proposed(*await single(cursor))


async def approve(connection: HotConnection[TupleRow], adjustment_id: str, actor_api_key_id: str) -> Approved:
    """Post a proposed adjustment, once."""
    with refusals(adjustment_id):
        cursor = await connection.execute(
            "SELECT posted_now, transaction_id FROM ledger.approve_adjustment(%s, %s)",
            (adjustment_id, actor_api_key_id),
        )
        return Approved(*await single(cursor))


async def reject(
    connection: HotConnection[TupleRow], adjustment_id: str, actor_api_key_id: str, reason: str
) -> None:
    """End a proposal without posting it."""
    with refusals(adjustment_id):
        await connection.execute(
            "SELECT ledger.reject_adjustment(%s, %s, %s)", (adjustment_id, actor_api_key_id, reason)
        )


async def collect_credited(
    connection: HotConnection[TupleRow], postings: Sequence[tuple[AccountRef, int]], actor_api_key_id: str
) -> None:
    """What a customer that got credits owes comes first, as with a grant; the worker collects the rest."""
    for account, amount in postings:
        if account.kind is AccountKind.CUSTOMER_CREDITS and amount > 0:
            await movements.collect(
                connection,
                account.owner_id,
                account.currency_code,
                movements.COLLECT_LIMIT,
                actor_api_key_id,
            )


_ADJUSTMENT = """
    SELECT a.adjustment_id, a.owner_ids, a.kinds::text[] AS kinds, a.currency_codes, a.amounts, a.reason,
           a.proposer_api_key_id, a.create_time, a.expire_time, s.state,
           coalesce(d.actor_api_key_id, '') AS decider_api_key_id, d.create_time AS decide_time,
           coalesce(d.reason, '') AS decision_reason, coalesce(d.transaction_id, '') AS transaction_id
    FROM ledger.adjustment a
    LEFT JOIN ledger.decided_adjustment d USING (adjustment_id)
    CROSS JOIN LATERAL (
        SELECT coalesce(
            d.decision::text, CASE WHEN a.expire_time <= now() THEN 'expired' ELSE 'proposed' END) AS state
    ) AS s
"""
_ONE = text(f"{_ADJUSTMENT} WHERE a.adjustment_id = :adjustment_id")
_PAGE = text(f"""
    {_ADJUSTMENT}
    WHERE (CAST(:state AS text) = '' OR s.state = :state)
      AND (CAST(:before AS text) = '' OR a.adjustment_id < :before)
    ORDER BY a.adjustment_id DESC
    LIMIT :limit
""")  # built from the constant above alone


async def get_adjustment(connection: AsyncConnection, adjustment_id: str) -> Adjustment:
    """An adjustment as it stands; raises NotFound."""
    found = (await connection.execute(_ONE, {"adjustment_id": adjustment_id})).mappings().one_or_none()
    if found is None:
        raise unknown_adjustment(adjustment_id)
    return _adjustment(found)


async def list_adjustments(
    connection: AsyncConnection, state: AdjustmentState | None, page: Page
) -> list[Adjustment]:
    """Newest first, up to `page.limit`; those that stand so, or all."""
    values = {"state": state or "", "before": page.after[0] if page.after else "", "limit": page.limit}
    return [_adjustment(row) for row in (await connection.execute(_PAGE, values)).mappings()]


def _adjustment(row: RowMapping) -> Adjustment:
    accounts = zip(row["owner_ids"], row["kinds"], row["currency_codes"], strict=True)
    return Adjustment(
        adjustment_id=row["adjustment_id"],
        state=AdjustmentState(row["state"]),
        postings=tuple(
            (AccountRef(owner_id, AccountKind(kind), currency_code), amount)
            for (owner_id, kind, currency_code), amount in zip(accounts, row["amounts"], strict=True)
        ),
        reason=row["reason"],
        proposer_api_key_id=row["proposer_api_key_id"],
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        decider_api_key_id=row["decider_api_key_id"],
        decide_time=row["decide_time"],
        decision_reason=row["decision_reason"],
        transaction_id=row["transaction_id"],
    )
