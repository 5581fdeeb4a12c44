"""Charges, collections and corrections as rows of an export, oldest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.reporting.domain.export_columns import ExportRow, RowKind
from services.reporting.domain.owner import Owner
from services.reporting.store.spans import Span

# When it happened, of which charge it is, and what sets apart what happened to one charge at one time. It is
# the only lower bound of a page: of two, PostgreSQL may begin its index scan at the wrong one.
Place = tuple[datetime, str, str]


@dataclass(frozen=True, slots=True)
class ExportFilter:
    """What is exported of a projection, up to a position of the journal."""

    projection_id: int
    journal_position: int
    owner: Owner
    span: Span
    # All currencies if empty.
    currency_code: str


_USAGE_COLUMNS: Final = """coalesce(u.agent_version, '') AS agent_version,
           coalesce(u.action_type, '') AS action_type, coalesce(u.model, '') AS model,
           coalesce(u.input_tokens, 0) AS input_tokens,
           coalesce(u.output_tokens, 0) AS output_tokens, coalesce(u.outcome, '') AS outcome"""
_USAGE: Final = """LEFT JOIN reporting.usage AS u
      ON u.projection_id = :projection_id AND u.customer_id = c.customer_id AND u.workflow_id = c.workflow_id
         AND u.ordinal = c.ordinal"""

_OF_ORGANIZATION: Final = text(f"""
    WITH page AS (
        SELECT type AS kind, charge_id, correction_id, customer_id, organization_id, agent_id,
               billed_micros, platform_fee_micros, processing_fee_micros, net_micros, currency_code,
               occur_time, create_time, transaction_id
        FROM reporting.revenue
        WHERE projection_id = :projection_id AND organization_id = :owner_id
          AND occur_time < :end_time AND position <= :journal_position
          AND (CAST(:currency_code AS text) = '' OR currency_code = :currency_code)
          AND (occur_time, charge_id, transaction_id)
              > (CAST(:after_time AS timestamptz), :after_charge_id, :after_mark)
        ORDER BY occur_time, charge_id, transaction_id
        LIMIT :limit
    )
    SELECT page.*, transaction_id AS mark, c.workflow_id, c.component, c.ordinal, c.price_version_id,
           c.work_time, c.post_time, {_USAGE_COLUMNS}
    FROM page
    JOIN reporting.charge_identities(:projection_id, ARRAY(SELECT charge_id FROM page)) AS c
      USING (charge_id, customer_id)
    {_USAGE.replace("c.customer_id", "page.customer_id")}
    ORDER BY occur_time, charge_id, transaction_id
""")  # noqa: S608 - of constants

# What a correction gave the customer back is in the entries of the accounts that had paid or owed the charge.
# Each part is a page by itself, of which the first rows of both are the page. Currencies are named, so that
# corrections are found by their time; and only up to the last charge of a page that charges alone would
# fill, or each page would look for them among all movements behind it.
_OF_CUSTOMER: Final = text(f"""
    WITH charged AS (
        SELECT 'charge' AS kind, charge_id, '' AS correction_id, gross_micros AS billed_micros, occur_time,
               create_time, transaction_id
        FROM reporting.charge
        WHERE projection_id = :projection_id AND customer_id = :owner_id
          AND occur_time < :end_time AND position <= :journal_position
          AND (CAST(:currency_code AS text) = '' OR currency_code = :currency_code)
          AND (occur_time, charge_id, '') > (CAST(:after_time AS timestamptz), :after_charge_id, :after_mark)
        ORDER BY occur_time, charge_id
        LIMIT :limit
    ),
    corrected AS (
        SELECT 'correction' AS kind, charge_id, correction_id, -sum(amount_micros)::bigint AS billed_micros,
               create_time AS occur_time, create_time, transaction_id
        FROM reporting.movement
        WHERE projection_id = :projection_id AND owner_id = :owner_id
          AND currency_code = ANY (ARRAY(
              SELECT DISTINCT d.currency_code FROM reporting.movement_day AS d
              WHERE d.projection_id = :projection_id AND d.owner_id = :owner_id
                AND (CAST(:currency_code AS text) = '' OR d.currency_code = :currency_code)))
          AND type = 'correction' AND kind IN ('customer_credits', 'customer_receivable', 'customer_unpaid')
          AND create_time < :end_time
          AND create_time <= (
              SELECT CASE WHEN count(*) = :limit THEN max(occur_time) ELSE 'infinity' END FROM charged)
          AND position <= :journal_position
          AND (create_time, charge_id, correction_id)
              > (CAST(:after_time AS timestamptz), :after_charge_id, :after_mark)
        GROUP BY charge_id, correction_id, create_time, transaction_id
        ORDER BY create_time, charge_id, correction_id
        LIMIT :limit
    ),
    page AS (
        SELECT * FROM charged UNION ALL SELECT * FROM corrected
        ORDER BY occur_time, charge_id, correction_id
        LIMIT :limit
    )
    SELECT page.*, correction_id AS mark, c.customer_id, '' AS organization_id,
           coalesce(u.agent_id, '') AS agent_id,
           NULL::bigint AS platform_fee_micros, NULL::bigint AS processing_fee_micros,
           NULL::bigint AS net_micros, c.currency_code, c.workflow_id, c.component, c.ordinal,
           c.price_version_id, c.occur_time AS work_time, c.create_time AS post_time, {_USAGE_COLUMNS}
    FROM page
    JOIN reporting.charge AS c ON c.projection_id = :projection_id AND c.charge_id = page.charge_id
    {_USAGE}
    ORDER BY page.occur_time, page.charge_id, page.correction_id
""")  # noqa: S608 - of constants


async def list_after(
    connection: AsyncConnection, wanted: ExportFilter, after: Place | None, limit: int
) -> tuple[Sequence[ExportRow], Place | None]:
    """Up to `limit` rows after a place, and the place of the last one; None if there are no more."""
    start, end = wanted.span
    after_time, after_charge_id, after_mark = after or (start, "", "")
    rows = (
        await connection.execute(
            _OF_CUSTOMER if wanted.owner.is_customer else _OF_ORGANIZATION,
            {
                "projection_id": wanted.projection_id,
                "owner_id": wanted.owner.id,
                "journal_position": wanted.journal_position,
                "end_time": end,
                "currency_code": wanted.currency_code,
                "after_time": after_time,
                "after_charge_id": after_charge_id,
                "after_mark": after_mark,
                "limit": limit,
            },
        )
    ).all()
    found = [_row(row) for row in rows]
    if len(rows) < limit:
        return found, None
    last = rows[-1]
    return found, (last.occur_time, last.charge_id, last.mark)


def _row(row: Row[Any]) -> ExportRow:
    return ExportRow(
        kind=RowKind(row.kind),
        charge_id=row.charge_id,
        correction_id=row.correction_id,
        customer_id=row.customer_id,
        organization_id=row.organization_id,
        agent_id=row.agent_id,
        agent_version=row.agent_version,
        action_type=row.action_type,
        model=row.model,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        outcome=row.outcome,
        workflow_id=row.workflow_id,
        component=row.component,
        ordinal=row.ordinal,
        gross_micros=row.billed_micros,
        platform_fee_micros=row.platform_fee_micros,
        processing_fee_micros=row.processing_fee_micros,
        net_micros=row.net_micros,
        currency_code=row.currency_code,
        occur_time=row.occur_time,
        create_time=row.create_time,
        price_version_id=row.price_version_id,
        transaction_id=row.transaction_id,
        charge_time=None if row.kind == RowKind.CHARGE else row.post_time,
        work_time=row.work_time,
    )
