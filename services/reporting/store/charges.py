"""Charges with the usage that they are for, as an organization and as a customer sees them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.reporting.domain.charge import Charge, UsageDetail
from services.reporting.domain.owner import Owner
from services.reporting.store.spans import Span


@dataclass(frozen=True, slots=True)
class ChargeFilter:
    """Which charges a list has; what is empty does not restrict it."""

    owner: Owner
    span: Span
    currency_code: str = ""
    agent_id: str = ""
    charge_id: str = ""


_USAGE_COLUMNS: Final = """u.agent_id AS usage_agent_id, u.agent_version, u.action_type, u.model,
           u.input_tokens, u.output_tokens, u.outcome,
           CASE c.component WHEN 'outcome' THEN u.bonus_lines ELSE u.price_lines END AS lines"""
# Of an event, that is: an outcome's charge has the event's number.
_USAGE: Final = """LEFT JOIN reporting.usage AS u
      ON u.projection_id = :projection_id AND u.customer_id = c.customer_id AND u.workflow_id = c.workflow_id
         AND u.ordinal = c.ordinal"""
# Newest first, a page has one upper bound: of two, PostgreSQL may begin its index scan at the wrong one.
_FILTER: Final = """
          AND occur_time >= :start_time
          AND (CAST(:currency_code AS text) = '' OR currency_code = :currency_code)
          AND (CAST(:charge_id AS text) = '' OR charge_id = :charge_id)
          AND (occur_time, charge_id) < (CAST(:before_time AS timestamptz), :before_id)"""

# An organization's share is in `revenue`; which run it is of, only the charge says, of which it sees no more
# than that. What is earned of a charge comes with it, and with what was collected and taken back later.
_OF_ORGANIZATION: Final = text(f"""
    WITH page AS (
        SELECT charge_id, customer_id, agent_id, currency_code, billed_micros, net_micros, occur_time,
               create_time
        FROM reporting.revenue
        WHERE projection_id = :projection_id AND organization_id = :owner_id AND type = 'charge'
          AND (CAST(:agent_id AS text) = '' OR agent_id = :agent_id)
          {_FILTER}
        ORDER BY occur_time DESC, charge_id DESC
        LIMIT :limit
    )
    SELECT page.charge_id, page.customer_id, c.workflow_id, c.component, c.ordinal, page.currency_code,
           page.billed_micros AS gross, s.corrected, page.net_micros + s.net AS net, page.agent_id,
           {_USAGE_COLUMNS},
           c.price_version_id, page.occur_time, page.create_time
    FROM page
    JOIN reporting.charge_identities(:projection_id, ARRAY(SELECT charge_id FROM page)) AS c USING (charge_id)
    CROSS JOIN LATERAL (
        SELECT coalesce(-sum(billed_micros) FILTER (WHERE type = 'correction'), 0)::bigint AS corrected,
               coalesce(sum(net_micros), 0)::bigint AS net
        FROM reporting.revenue AS r
        WHERE r.projection_id = :projection_id AND r.charge_id = page.charge_id AND r.type <> 'charge'
          AND r.organization_id = :owner_id
    ) AS s
    {_USAGE}
    ORDER BY page.occur_time DESC, page.charge_id DESC
""")  # noqa: S608 - of constants

_OF_CUSTOMER: Final = text(f"""
    WITH page AS (
        SELECT *
        FROM reporting.charge AS charge
        WHERE projection_id = :projection_id AND customer_id = :owner_id
          AND (CAST(:agent_id AS text) = '' OR EXISTS (
              SELECT FROM reporting.usage AS event
              WHERE event.projection_id = :projection_id AND event.customer_id = charge.customer_id
                AND event.workflow_id = charge.workflow_id AND event.ordinal = charge.ordinal
                AND event.agent_id = :agent_id))
          {_FILTER}
        ORDER BY occur_time DESC, charge_id DESC
        LIMIT :limit
    )
    SELECT c.charge_id, c.customer_id, c.workflow_id, c.component, c.ordinal, c.currency_code,
           c.gross_micros AS gross, c.corrected_micros AS corrected, NULL::bigint AS net,
           coalesce(u.agent_id, '') AS agent_id,
           {_USAGE_COLUMNS},
           c.price_version_id, c.occur_time, c.create_time
    FROM page AS c
    {_USAGE}
    ORDER BY c.occur_time DESC, c.charge_id DESC
""")  # noqa: S608 - of constants

_PAYER: Final = text("""
    SELECT customer_id,
           (SELECT agent_id FROM reporting.revenue AS r
            WHERE r.projection_id = :projection_id AND r.position = charge.position
            ORDER BY organization_id LIMIT 1) AS agent_id
    FROM reporting.charge AS charge
    WHERE projection_id = :projection_id AND charge_id = :charge_id
""")


async def list_newest(
    connection: AsyncConnection,
    projection_id: int,
    wanted: ChargeFilter,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[Charge]:
    """Up to `limit` charges before a time of work and an id, the newest work first."""
    start, end = wanted.span
    # The first page begins where the time ends, as does one whose token was made up.
    before_time, before_id = min(before or (end, ""), (end, ""))
    rows = await connection.execute(
        _OF_CUSTOMER if wanted.owner.is_customer else _OF_ORGANIZATION,
        {
            "projection_id": projection_id,
            "owner_id": wanted.owner.id,
            "start_time": start,
            "currency_code": wanted.currency_code,
            "agent_id": wanted.agent_id,
            "charge_id": wanted.charge_id,
            "before_time": before_time,
            "before_id": before_id,
            "limit": limit,
        },
    )
    return [_charge(row) for row in rows]


async def find_payer(
    connection: AsyncConnection, projection_id: int, charge_id: str
) -> tuple[str, str] | None:
    """Who pays a charge, and the agent of its first payee, if the connection's tenants may see it."""
    row = (
        await connection.execute(_PAYER, {"projection_id": projection_id, "charge_id": charge_id})
    ).one_or_none()
    return None if row is None else (row.customer_id, row.agent_id or "")


def _charge(row: Row[Any]) -> Charge:
    return Charge(
        charge_id=row.charge_id,
        customer_id=row.customer_id,
        workflow_id=row.workflow_id,
        component=row.component,
        ordinal=row.ordinal,
        currency_code=row.currency_code,
        gross=row.gross,
        corrected=row.corrected,
        net=row.net,
        agent_id=row.agent_id,
        usage=usage_detail(row),
        price_version_id=row.price_version_id,
        occur_time=row.occur_time,
        create_time=row.create_time,
    )


def usage_detail(row: Row[Any]) -> UsageDetail | None:
    """The event of a row that joins usage; None if it has none."""
    if row.usage_agent_id is None:
        return None
    return UsageDetail(
        agent_id=row.usage_agent_id,
        agent_version=row.agent_version,
        action_type=row.action_type,
        model=row.model,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        outcome=row.outcome,
        lines=bytes(row.lines),
    )
