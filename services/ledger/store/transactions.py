"""Reading the journal: single transactions, and the lists of an owner."""

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.errors import NotFound
from services.kit.pages import Page
from services.ledger.domain.accounts import (
    AccountKind,
    AccountRef,
    EarningsBucket,
    Entry,
    PostedEntry,
    Transaction,
    TransactionType,
)

# ruff: noqa: S608 - statements are built from these constants alone
_TRANSACTION_COLUMNS = """
    t.transaction_id, t.partition_id, t.type::text AS type, coalesce(t.charge_id, '') AS charge_id,
    coalesce(t.payout_id, '') AS payout_id, coalesce(t.external_id, '') AS external_id,
    coalesce(t.payout_id, '') AS payout_id, coalesce(t.correction_id, '') AS correction_id,
    t.occur_time, t.create_time, t.reason, t.actor_api_key_id
"""
_ENTRY_COLUMNS = """
    e.transaction_id, e.entry_number, e.owner_id, e.kind::text AS kind, e.currency_code, e.amount,
    e.collected, e.earned_on, e.available_on, e.account_version
"""
_BY_ID = text(
    f"SELECT {_TRANSACTION_COLUMNS} FROM ledger.transaction t WHERE t.transaction_id = :transaction_id"
)
_ENTRIES = text(
    f"SELECT {_ENTRY_COLUMNS} FROM ledger.entry e"
    " WHERE e.transaction_id = ANY (:transaction_ids) ORDER BY e.transaction_id, e.entry_number"
)
# Page by page down the index (owner_id, transaction_id), however few of all transactions the owner has.
_BY_OWNER = text(f"""
    SELECT {_TRANSACTION_COLUMNS}
    FROM (
        SELECT DISTINCT e.transaction_id, e.partition_id
        FROM ledger.entry e
        JOIN ledger.transaction x USING (transaction_id, partition_id)
        WHERE e.owner_id = :owner_id AND e.transaction_id < :before
          AND (CAST(:type AS text) IS NULL OR x.type::text = :type)
        ORDER BY e.transaction_id DESC
        LIMIT :limit
    ) AS page
    JOIN ledger.transaction t USING (transaction_id, partition_id)
    ORDER BY t.transaction_id DESC
""")
_ENTRIES_BY_OWNER = text(f"""
    SELECT {_ENTRY_COLUMNS}, t.type::text AS type, coalesce(t.charge_id, '') AS charge_id,
           coalesce(t.payout_id, '') AS payout_id, coalesce(t.correction_id, '') AS correction_id,
           t.create_time
    FROM ledger.entry e
    JOIN ledger.transaction t USING (transaction_id, partition_id)
    WHERE e.owner_id = :owner_id
      AND (e.transaction_id, e.entry_number) < (:before_id, CAST(:before_number AS integer))
      AND (CAST(:kind AS text) IS NULL OR e.kind::text = :kind)
      AND (CAST(:currency_code AS text) IS NULL OR e.currency_code = :currency_code)
    ORDER BY e.transaction_id DESC, e.entry_number DESC
    LIMIT :limit
""")
# Sorts behind every transaction id: where the first page of a list that goes back in time begins.
_NOW = "txn~"


async def get_transaction(connection: AsyncConnection, transaction_id: str) -> Transaction:
    """A transaction with the entries that the connection's tenants may see; raises NotFound if none."""
    rows = (await connection.execute(_BY_ID, {"transaction_id": transaction_id})).mappings().all()
    if not rows:
        raise NotFound(
            f"transaction {transaction_id} does not exist",
            reason="TRANSACTION_NOT_FOUND",
            metadata={"transaction_id": transaction_id},
        )
    return (await _with_entries(connection, rows))[0]


async def list_transactions(
    connection: AsyncConnection, owner_id: str, type: TransactionType | None, page: Page
) -> list[Transaction]:
    """The transactions that touch an owner, newest first, up to `page.limit`."""
    rows = await connection.execute(
        _BY_OWNER,
        {
            "owner_id": owner_id,
            "type": type,
            "before": page.after[0] if page.after else _NOW,
            "limit": page.limit,
        },
    )
    return await _with_entries(connection, rows.mappings().all())


async def list_entries(
    connection: AsyncConnection,
    owner_id: str,
    kind: AccountKind | None,
    currency_code: str | None,
    page: Page,
) -> list[PostedEntry]:
    """The entries of an owner, newest first, up to `page.limit`."""
    before_id, before_number = page.after or (_NOW, 0)
    rows = await connection.execute(
        _ENTRIES_BY_OWNER,
        {
            "owner_id": owner_id,
            "kind": kind,
            "currency_code": currency_code,
            "before_id": before_id,
            "before_number": before_number,
            "limit": page.limit,
        },
    )
    return [
        PostedEntry(
            transaction_id=row["transaction_id"],
            type=TransactionType(row["type"]),
            charge_id=row["charge_id"],
            payout_id=row["payout_id"],
            correction_id=row["correction_id"],
            create_time=row["create_time"],
            entry=_entry(row),
        )
        for row in rows.mappings()
    ]


async def _with_entries(connection: AsyncConnection, transactions: Sequence[RowMapping]) -> list[Transaction]:
    entries: defaultdict[str, list[Entry]] = defaultdict(list)
    if transactions:
        found = await connection.execute(
            _ENTRIES, {"transaction_ids": [row["transaction_id"] for row in transactions]}
        )
        for row in found.mappings():
            entries[row["transaction_id"]].append(_entry(row))
    return [
        Transaction(
            transaction_id=row["transaction_id"],
            partition_id=row["partition_id"],
            type=TransactionType(row["type"]),
            charge_id=row["charge_id"],
            payout_id=row["payout_id"],
            external_id=row["external_id"],
            correction_id=row["correction_id"],
            occur_time=row["occur_time"],
            create_time=row["create_time"],
            reason=row["reason"],
            actor_api_key_id=row["actor_api_key_id"],
            entries=tuple(entries[row["transaction_id"]]),
        )
        for row in transactions
    ]


def _entry(row: RowMapping) -> Entry:
    return Entry(
        entry_number=row["entry_number"],
        account=AccountRef(row["owner_id"], AccountKind(row["kind"]), row["currency_code"]),
        amount=row["amount"],
        bucket=None
        if row["collected"] is None
        else EarningsBucket(row["collected"], row["earned_on"], row["available_on"]),
        account_version=row["account_version"],
    )
