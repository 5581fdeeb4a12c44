"""Movements of accounts, and the balances between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.runs import kind_of, service_period
from services.reporting.domain.owner import Owner
from services.reporting.domain.statement import STATEMENT_KINDS, Movement, Total
from services.reporting.store.spans import Span


@dataclass(frozen=True, slots=True)
class Books:
    """The accounts of an owner in one currency, in one projection up to a position of the journal."""

    projection_id: int
    journal_position: int
    owner: Owner
    currency_code: str

    def parameters(self) -> dict[str, Any]:
        return {
            "projection_id": self.projection_id,
            "owner_id": self.owner.id,
            "currency_code": self.currency_code,
            "kinds": list(STATEMENT_KINDS[self.owner.kind]),
        }


# The place of a movement in a statement.
Place = tuple[datetime, int, int]

_OPENINGS: Final = text("""
    SELECT kind, sum(amount_micros)::bigint AS opening
    FROM (
        SELECT kind, amount_micros
        FROM reporting.movement_day
        WHERE projection_id = :projection_id AND owner_id = :owner_id AND currency_code = :currency_code
          AND kind = ANY (CAST(:kinds AS text[])) AND day < CAST(:day AS date)
        UNION ALL
        SELECT kind, amount_micros
        FROM reporting.movement
        WHERE projection_id = :projection_id AND owner_id = :owner_id AND currency_code = :currency_code
          AND kind = ANY (CAST(:kinds AS text[])) AND create_time >= :day_start AND create_time < :start_time
    ) AS part
    GROUP BY kind
""")

_TOTALS: Final = text("""
    SELECT kind, type, sum(amount_micros)::bigint AS amount, count(*) AS movement_count
    FROM reporting.movement
    WHERE projection_id = :projection_id AND owner_id = :owner_id AND currency_code = :currency_code
      AND kind = ANY (CAST(:kinds AS text[])) AND create_time >= :start_time AND create_time < :end_time
    GROUP BY kind, type
    ORDER BY kind, type
""")

# Of what work its charge is, whoever of both sides reads it: only the charge says.
_PAGE: Final = text("""
    WITH page AS (
        SELECT kind, position, entry_number, transaction_id, type, amount_micros, charge_id, correction_id,
               payout_id, reason, occur_time, create_time
        FROM reporting.movement
        WHERE projection_id = :projection_id AND owner_id = :owner_id AND currency_code = :currency_code
          AND kind = ANY (CAST(:kinds AS text[]))
          AND (create_time, position, entry_number) > (CAST(:after_time AS timestamptz),
              CAST(:after_position AS bigint), CAST(:after_entry AS integer))
          AND create_time < :end_time AND position <= :journal_position
        ORDER BY create_time, position, entry_number
        LIMIT :limit
    )
    SELECT page.*, c.workflow_id, c.work_time
    FROM page
    LEFT JOIN reporting.charge_identities(
        :projection_id, ARRAY(SELECT DISTINCT charge_id FROM page WHERE charge_id <> '')
    ) AS c USING (charge_id)
    ORDER BY page.create_time, position, entry_number
""")

_PAYOUTS: Final = text("""
    SELECT DISTINCT payout_id, type, transaction_id
    FROM reporting.movement
    WHERE projection_id = :projection_id AND payout_id = ANY (CAST(:payout_ids AS text[])) AND payout_id <> ''
      AND owner_id = :owner_id AND type IN ('payout', 'payout_completion', 'payout_return')
""")


async def openings(connection: AsyncConnection, books: Books, moment: datetime) -> dict[str, int]:
    """The balances just before a moment, by kind of account."""
    day = moment.astimezone(UTC).date()
    rows = await connection.execute(
        _OPENINGS,
        {
            **books.parameters(),
            "day": day,
            "day_start": datetime.combine(day, time.min, UTC),
            "start_time": moment,
        },
    )
    return {row.kind: row.opening for row in rows}


async def totals(connection: AsyncConnection, books: Books, span: Span) -> list[Total]:
    """What each type of transaction moved each account by."""
    start, end = span
    rows = await connection.execute(_TOTALS, {**books.parameters(), "start_time": start, "end_time": end})
    return [Total(row.kind, row.type, row.amount, row.movement_count) for row in rows]


async def list_after(
    connection: AsyncConnection, books: Books, span: Span, after: Place | None, limit: int
) -> list[Movement]:
    """Up to `limit` movements of a span after a place, in the order of statements.

    What is at a position does not change, so pages that are read at different times are those of one moment.
    """
    start, end = span
    after_time, after_position, after_entry = after or (start, -1, -1)
    rows = await connection.execute(
        _PAGE,
        {
            **books.parameters(),
            "after_time": after_time,
            "after_position": after_position,
            "after_entry": after_entry,
            "end_time": end,
            "journal_position": books.journal_position,
            "limit": limit,
        },
    )
    return [
        Movement(
            kind=row.kind,
            position=row.position,
            entry_number=row.entry_number,
            transaction_id=row.transaction_id,
            type=row.type,
            amount=row.amount_micros,
            charge_id=row.charge_id,
            correction_id=row.correction_id,
            payout_id=row.payout_id,
            reason=row.reason,
            occur_time=row.occur_time,
            create_time=row.create_time,
            charge_kind=None if row.workflow_id is None else kind_of(row.workflow_id),
            service=None if row.workflow_id is None else service_period(row.workflow_id, row.work_time),
        )
        for row in rows
    ]


async def payout_transactions(
    connection: AsyncConnection, projection_id: int, organization_id: str, payout_ids: Sequence[str]
) -> Mapping[str, Mapping[str, str]]:
    """The transactions that took and ended payouts of an organization, by payout and type."""
    rows = await connection.execute(
        _PAYOUTS,
        {
            "projection_id": projection_id,
            "owner_id": organization_id,
            "payout_ids": list(payout_ids),
        },
    )
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(row.payout_id, {})[row.type] = row.transaction_id
    return found
