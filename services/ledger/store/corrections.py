"""Taking back parts of charges, and reading what was taken back."""

from collections import defaultdict
from dataclasses import dataclass

from psycopg import AsyncConnection as HotConnection
from psycopg.rows import TupleRow
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.db import single
from services.kit.pages import Page
from services.ledger.domain.corrections import CorrectedEarning, Correction, Refund
from services.ledger.store.refusals import refusals


@dataclass(frozen=True, slots=True)
class Corrected:
    """The number of a correction within its charge, and whether it had been posted before."""

    number: int
    duplicate: bool


async def correct_charge(
    connection: HotConnection[TupleRow],
    *,
    charge_id: str,
    correction_id: str,
    currency_code: str,
    amount: int,
    reason: str,
    actor_api_key_id: str,
    request_hash: bytes,
) -> Corrected:
    """Take back a part of a charge, once per correction id.

    One statement: see ledger.correct_charge for its locks and its order of steps.
    """
    with refusals(correction_id):
        cursor = await connection.execute(
            "SELECT (correction).correction_number, duplicate"
            " FROM ledger.correct_charge(%s, %s, %s, %s, %s, %s, %s)",
            (charge_id, correction_id, currency_code, amount, reason, actor_api_key_id, request_hash),
        )
        return Corrected(*await single(cursor))


# The payer and the payees see a correction by different views, the platform by both.
_PAID = text("""
    SELECT * FROM ledger.customer_correction
    WHERE charge_id = :charge_id AND correction_number > :after
    ORDER BY correction_number
    LIMIT :limit
""")
# A page of corrections, which are numbered without gaps, however many payees of each are seen.
_EARNED = text("""
    SELECT * FROM ledger.corrected_earning
    WHERE charge_id = :charge_id
      AND correction_number > :after AND correction_number <= CAST(:after AS bigint) + :limit
    ORDER BY correction_number, payee_number
""")


async def list_corrections(connection: AsyncConnection, charge_id: str, page: Page) -> list[Correction]:
    """The corrections of a charge by number, up to `page.limit`, as the connection's tenants may see them.

    The payer sees what it got, a payee what was taken of its own earning, and the platform both.
    """
    return await _read(connection, charge_id, int(page.after[0]) if page.after else 0, page.limit)


async def get_correction(connection: AsyncConnection, charge_id: str, number: int) -> Correction:
    """One correction of a charge, which is known to be there."""
    (correction,) = await _read(connection, charge_id, number - 1, 1)
    return correction


async def _read(connection: AsyncConnection, charge_id: str, after: int, limit: int) -> list[Correction]:
    values = {"charge_id": charge_id, "after": after, "limit": limit}
    paid = {row["correction_id"]: row for row in (await connection.execute(_PAID, values)).mappings()}
    earned: defaultdict[str, list[RowMapping]] = defaultdict(list)
    for row in (await connection.execute(_EARNED, values)).mappings():
        earned[row["correction_id"]].append(row)
    # For the platform both have the same corrections; one that comes in between is on another page.
    headers = paid or {correction_id: rows[0] for correction_id, rows in earned.items()}
    return [
        _correction(header, paid.get(correction_id), earned[correction_id])
        for correction_id, header in headers.items()
    ]


def _correction(header: RowMapping, paid: RowMapping | None, earned: list[RowMapping]) -> Correction:
    earnings = tuple(
        CorrectedEarning(row["organization_id"], row["net"], row["platform_fee"], row["processing_fee"])
        for row in earned
    )
    return Correction(
        charge_id=header["charge_id"],
        correction_id=header["correction_id"],
        number=header["correction_number"],
        amount=sum(one.gross for one in earnings) if paid is None else paid["amount"],
        refund=None if paid is None else Refund(paid["unpaid"], paid["receivable"], paid["credits"]),
        earnings=earnings,
        reason=header["reason"],
        transaction_id=header["transaction_id"],
        create_time=header["create_time"],
    )
