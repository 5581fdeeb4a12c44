"""Reading balances. The connection's tenants bound what is found."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.pages import Page
from services.ledger.domain.accounts import (
    Account,
    AccountKind,
    AccountRef,
    CustomerBalance,
    EarningsBalance,
    HeldCredits,
)
from services.ledger.store.charges import unknown_party

_OWNER = text("""
    SELECT FROM ledger.customer WHERE customer_id = :owner_id
    UNION ALL
    SELECT FROM ledger.organization WHERE organization_id = :owner_id
    UNION ALL
    SELECT WHERE :owner_id = 'platform' AND ledger.visible('platform')
""")


async def check_owner(connection: AsyncConnection, owner_id: str) -> None:
    """Raise NotFound unless the owner of accounts is there, and the connection's tenants may see it."""
    if (await connection.execute(_OWNER, {"owner_id": owner_id})).first() is None:
        raise unknown_party(owner_id)


# One statement, so that what is held is what leases and holds keep. Groups by the customer, so that one who
# is not there, or not visible, gives no row rather than zeros.
_CUSTOMER_BALANCE = text("""
    SELECT coalesce(sum(credits - debits - held) FILTER (WHERE kind = 'customer_credits'), 0)::bigint
               AS available,
           coalesce(sum(held) FILTER (WHERE kind = 'customer_credits'), 0)::bigint AS held,
           coalesce(sum(debits - credits) FILTER (WHERE kind = 'customer_receivable'), 0)::bigint
               AS receivable,
           coalesce(sum(debits - credits) FILTER (WHERE kind = 'customer_unpaid'), 0)::bigint AS unpaid,
           coalesce(sum(credit_limit) FILTER (WHERE kind = 'customer_receivable'), 0)::bigint AS credit_limit,
           coalesce(sum(held) FILTER (WHERE kind = 'customer_receivable'), 0)::bigint AS held_receivable,
           coalesce(sum(debits - credits) FILTER (WHERE kind = 'customer_chargebacks'), 0)::bigint
               AS chargebacks,
           c.freeze_time IS NOT NULL AS frozen,
           l.leased, l.lease_epoch, l.draining, h.runs, h.outcomes
    FROM ledger.customer c
    LEFT JOIN ledger.account a ON a.owner_id = c.customer_id AND a.currency_code = :currency_code
    CROSS JOIN (
        SELECT coalesce(sum(remaining) FILTER (WHERE NOT draining), 0)::bigint AS leased,
               coalesce(max(epoch) FILTER (WHERE NOT draining AND NOT closed), 0) AS lease_epoch,
               coalesce(sum(remaining) FILTER (WHERE draining), 0)::bigint AS draining
        FROM ledger.credit_lease WHERE customer_id = :owner_id AND currency_code = :currency_code
    ) AS l
    CROSS JOIN (
        SELECT coalesce(sum(credits) FILTER (WHERE purpose = 'run'), 0)::bigint AS runs,
               coalesce(sum(credits) FILTER (WHERE purpose = 'outcome'), 0)::bigint AS outcomes
        FROM ledger.hold
        WHERE customer_id = :owner_id AND currency_code = :currency_code AND state = 'held'
    ) AS h
    WHERE c.customer_id = :owner_id
    GROUP BY c.customer_id, l.leased, l.lease_epoch, l.draining, h.runs, h.outcomes
""")


async def customer_balance(
    connection: AsyncConnection, customer_id: str, currency_code: str
) -> CustomerBalance:
    """A customer's balance, all zero if the currency was never used; raises NotFound."""
    found = await connection.execute(
        _CUSTOMER_BALANCE, {"owner_id": customer_id, "currency_code": currency_code}
    )
    row = found.one_or_none()
    if row is None:
        raise unknown_party(customer_id)
    return CustomerBalance(
        customer_id=customer_id,
        currency_code=currency_code,
        available=row.available,
        held=row.held,
        receivable=row.receivable,
        unpaid=row.unpaid,
        credit_limit=row.credit_limit,
        held_receivable=row.held_receivable,
        chargebacks=row.chargebacks,
        frozen=row.frozen,
        held_credits=HeldCredits(row.leased, row.lease_epoch, row.draining, row.runs, row.outcomes),
    )


# One statement, so that a fold between two reads cannot make money vanish or appear twice.
_EARNINGS_BALANCE = text("""
    SELECT coalesce(sum(amount) FILTER (WHERE folded AND kind = 'organization_payable' AND collected
                                          AND available_on <= ledger.today()), 0)::bigint AS available,
           coalesce(sum(amount) FILTER (WHERE kind = 'organization_payable'), 0)::bigint AS total,
           coalesce(sum(amount) FILTER (WHERE kind = 'organization_payable' AND NOT collected), 0)::bigint
               AS uncollected,
           coalesce(sum(amount) FILTER (WHERE kind = 'platform_fees'), 0)::bigint AS platform_fees,
           coalesce(sum(amount) FILTER (WHERE kind = 'processing_fees'), 0)::bigint AS processing_fees
    FROM (
        SELECT true AS folded, 'organization_payable'::ledger.account_kind AS kind, collected, available_on,
               credits - debits AS amount
        FROM ledger.earnings_bucket WHERE owner_id = :owner_id AND currency_code = :currency_code
        UNION ALL
        SELECT true, kind, NULL, NULL, credits - debits
        FROM ledger.account
        WHERE owner_id = :owner_id AND currency_code = :currency_code
          AND kind IN ('platform_fees', 'processing_fees')
        UNION ALL
        SELECT false, kind, collected, available_on, credits - debits
        FROM ledger.balance_delta WHERE owner_id = :owner_id AND currency_code = :currency_code
    ) AS part
    HAVING EXISTS (SELECT FROM ledger.organization WHERE organization_id = :owner_id)
""")


async def earnings_balance(
    connection: AsyncConnection, organization_id: str, currency_code: str
) -> EarningsBalance:
    """An organization's earnings, all zero if the currency was never used; raises NotFound."""
    found = await connection.execute(
        _EARNINGS_BALANCE, {"owner_id": organization_id, "currency_code": currency_code}
    )
    row = found.mappings().one_or_none()
    if row is None:
        raise unknown_party(organization_id)
    return EarningsBalance(
        organization_id=organization_id,
        currency_code=currency_code,
        available=row["available"],
        pending=row["total"] - row["available"],
        uncollected=row["uncollected"],
        platform_fees=row["platform_fees"],
        processing_fees=row["processing_fees"],
    )


# Deltas count: what was posted an instant ago is in the account, whether folded or not.
_ACCOUNTS = text("""
    SELECT kind::text AS kind, currency_code, sum(credits)::bigint AS credits, sum(debits)::bigint AS debits
    FROM (
        SELECT kind, currency_code, credits, debits FROM ledger.account WHERE owner_id = :owner_id
        UNION ALL
        SELECT kind, currency_code, credits, debits FROM ledger.balance_delta WHERE owner_id = :owner_id
    ) AS part
    WHERE (CAST(:after_kind AS text) IS NULL) OR (kind::text, currency_code) > (:after_kind, :after_currency)
    GROUP BY kind, currency_code
    ORDER BY kind::text, currency_code
    LIMIT :limit
""")


async def list_accounts(connection: AsyncConnection, owner_id: str, page: Page) -> list[Account]:
    """The accounts of an owner by (kind, currency), up to `page.limit`."""
    after_kind, after_currency = page.after or (None, None)
    rows = await connection.execute(
        _ACCOUNTS,
        {
            "owner_id": owner_id,
            "after_kind": after_kind,
            "after_currency": after_currency,
            "limit": page.limit,
        },
    )
    return [
        Account(
            AccountRef(owner_id, AccountKind(row["kind"]), row["currency_code"]),
            row["credits"],
            row["debits"],
        )
        for row in rows.mappings()
    ]
