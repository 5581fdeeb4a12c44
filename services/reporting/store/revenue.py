"""What organizations earned: sums of rollups, and what is left of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.reporting.domain.revenue import (
    Ranking,
    Revenue,
    RevenueGroup,
    RevenueGrouping,
    RevenueParts,
    Standing,
)
from services.reporting.store.spans import ROLLUP_PIECES, ROW_PIECES, Span, span_parameters


@dataclass(frozen=True, slots=True)
class Earner:
    """An organization's revenue in one currency, in one projection."""

    projection_id: int
    organization_id: str
    currency_code: str

    def parameters(self) -> dict[str, Any]:
        return {
            "projection_id": self.projection_id,
            "organization_id": self.organization_id,
            "currency_code": self.currency_code,
        }


_KEYS: Final = {
    RevenueGrouping.NONE: "''::text",
    RevenueGrouping.AGENT: "agent_id",
    # As people write it; ids of agents have no "@".
    RevenueGrouping.AGENT_VERSION: (
        "agent_id || CASE agent_version WHEN '' THEN '' ELSE '@' || agent_version END"
    ),
    RevenueGrouping.CUSTOMER: "customer_id",
    RevenueGrouping.ACTION: "action_type",
}
_SUMS: Final = """sum(platform_fee_micros)::bigint AS platform_fees,
               sum(processing_fee_micros)::bigint AS processing_fees,
               sum(net_micros)::bigint AS net,
               sum(charge_count)::bigint AS charge_count"""
# What each span has of each key: from sums of one table, and from rows. Names and keys are of this module,
# never a caller's.
_SUM_FACTS: Final = """
    SELECT p.number, f.*
    FROM {pieces}
    CROSS JOIN LATERAL (
        SELECT {key} AS key,
               {sums}
        FROM reporting.{table}
        WHERE projection_id = :projection_id AND organization_id = :organization_id
          AND currency_code = :currency_code AND {rows}
          AND grain = p.grain AND start_time >= p.start_time AND start_time < p.end_time
        GROUP BY 1
    ) AS f
    WHERE {grains}
"""
_ROW_FACTS: Final = """
    SELECT p.number, f.*
    FROM {pieces}
    CROSS JOIN LATERAL (
        SELECT {key} AS key,
               {sums}
        FROM reporting.revenue
        WHERE projection_id = :projection_id AND organization_id = :organization_id
          AND currency_code = :currency_code AND {rows}
          AND occur_time >= p.start_time AND occur_time < p.end_time
        GROUP BY 1
    ) AS f
"""


def _sums_of(dimension: str, grains: str = "true") -> str:
    """Facts from the sums that tell one thing apart; `grains` says which pieces."""
    return _SUM_FACTS.format(
        pieces=ROLLUP_PIECES,
        key="key",
        sums=_SUMS,
        table="revenue_sum",
        rows=f"dimension = '{dimension}'",
        grains=grains,
    )


def _rollups_by(key: str, grains: str = "true") -> str:
    """Facts from the sums that tell everything apart."""
    return _SUM_FACTS.format(
        pieces=ROLLUP_PIECES, key=key, sums=_SUMS, table="revenue_rollup", rows="true", grains=grains
    )


# The smallest sums that tell a grouping apart. By quarter hours there are none of customers.
_SOURCES: Final = {
    RevenueGrouping.NONE: (_sums_of("all"),),
    RevenueGrouping.AGENT: (_sums_of("agent"),),
    RevenueGrouping.AGENT_VERSION: (_rollups_by(_KEYS[RevenueGrouping.AGENT_VERSION]),),
    RevenueGrouping.CUSTOMER: (
        _sums_of("customer", "p.grain <> 'quarter'"),
        _rollups_by("customer_id", "p.grain = 'quarter'"),
    ),
    RevenueGrouping.ACTION: (_rollups_by("action_type"),),
}
_OUTER_SUMS: Final = """sum(platform_fees)::bigint AS platform_fees,
           sum(processing_fees)::bigint AS processing_fees,
           sum(net)::bigint AS net, sum(charge_count)::bigint AS charge_count"""


def _facts(grouping: RevenueGrouping) -> str:
    rows = _ROW_FACTS.format(pieces=ROW_PIECES, key=_KEYS[grouping], sums=_SUMS, rows="true")
    return " UNION ALL ".join((*_SOURCES[grouping], rows))


_TOTALS: Final = text(f"""
    SELECT number, {_OUTER_SUMS} FROM ({_facts(RevenueGrouping.NONE)}) AS fact GROUP BY number
""")  # noqa: S608 - of constants

# What is no work has sums of its own, under the name that it has among actions: see reporting.apply_journal.
_SUBSCRIPTION: Final = "subscription fee"
_PERIOD_CLOSE: Final = "period close"
_KINDS: Final = f"('{_SUBSCRIPTION}', '{_PERIOD_CLOSE}')"
_KIND_ROWS: Final = _ROW_FACTS.format(
    pieces=ROW_PIECES, key="action_type", sums=_SUMS, rows=f"action_type IN {_KINDS}"
)
_PARTS: Final = text(f"""
    SELECT key, {_OUTER_SUMS} FROM ({_sums_of("kind")} UNION ALL {_KIND_ROWS}) AS fact GROUP BY key
""")  # noqa: S608 - of constants

# Bytewise order among equals, so that answers do not depend on how rows lie.
_RANKINGS: Final = {
    grouping: text(f"""
    WITH grouped AS (
        SELECT key, {_OUTER_SUMS},
               sum(platform_fees + processing_fees + net)::bigint AS gross
        FROM ({_facts(grouping)}) AS fact GROUP BY key
    )
    SELECT key, platform_fees, processing_fees, net, charge_count,
           (sum(platform_fees) OVER ())::bigint AS all_platform_fees,
           (sum(processing_fees) OVER ())::bigint AS all_processing_fees,
           (sum(net) OVER ())::bigint AS all_net,
           (sum(charge_count) OVER ())::bigint AS all_charge_count,
           count(*) OVER () AS group_count,
           sum(greatest(gross, 0)) OVER () AS positive_sum,
           sum(greatest(gross, 0)::numeric * greatest(gross, 0)) OVER () AS square_sum
    FROM grouped
    ORDER BY gross DESC, key COLLATE "C"
    LIMIT :limit
""")  # noqa: S608 - of constants
    for grouping in RevenueGrouping
}

# NULL is everything that has no series of its own.
_SERIES: Final = {
    grouping: text(f"""
    SELECT number, CASE WHEN key = ANY (CAST(:shown AS text[])) THEN key END AS key, {_OUTER_SUMS}
    FROM ({_facts(grouping)}) AS fact
    GROUP BY 1, 2
""")  # noqa: S608 - of constants
    for grouping in RevenueGrouping
}

# Sums of months hold everything that was ever earned.
_LIFETIME: Final = text(f"""
    SELECT {_SUMS}
    FROM reporting.revenue_sum
    WHERE projection_id = :projection_id AND organization_id = :organization_id
      AND currency_code = :currency_code AND dimension = 'all' AND grain = 'month'
    HAVING count(*) > 0
""")  # noqa: S608 - of constants

# The day is PostgreSQL's, as it is in the ledger: both take the same buckets for available. What is in
# transit is all that its account was ever moved by.
_STANDING: Final = text("""
    SELECT coalesce(sum(amount_micros) FILTER (
               WHERE collected AND available_on <= (now() AT TIME ZONE 'UTC')::date), 0)::bigint AS available,
           coalesce(sum(amount_micros), 0)::bigint AS total,
           coalesce(sum(amount_micros) FILTER (WHERE NOT collected), 0)::bigint AS uncollected,
           (SELECT coalesce(sum(amount_micros), 0)::bigint
            FROM reporting.movement_day
            WHERE projection_id = :projection_id AND owner_id = :organization_id
              AND currency_code = :currency_code AND kind = 'payouts_in_transit') AS in_transit
    FROM reporting.payable_bucket
    WHERE projection_id = :projection_id AND organization_id = :organization_id
      AND currency_code = :currency_code
""")


async def sum_spans(connection: AsyncConnection, earner: Earner, spans: Sequence[Span]) -> list[Revenue]:
    """The revenue of each span."""
    rows = await connection.execute(_TOTALS, {**earner.parameters(), **span_parameters(spans)})
    found = {row.number: _revenue(row) for row in rows}
    return [found.get(number, Revenue()) for number in range(len(spans))]


async def parts(connection: AsyncConnection, earner: Earner, span: Span, total: Revenue) -> RevenueParts:
    """The revenue of a span, which is `total` in all, by what it was charged for."""
    rows = await connection.execute(_PARTS, {**earner.parameters(), **span_parameters([span])})
    found = {row.key: _revenue(row) for row in rows}
    subscriptions = found.get(_SUBSCRIPTION, Revenue())
    closings = found.get(_PERIOD_CLOSE, Revenue())
    return RevenueParts(total - subscriptions - closings, subscriptions, closings)


async def lifetime(connection: AsyncConnection, earner: Earner) -> Revenue:
    """All that was earned so far."""
    row = (await connection.execute(_LIFETIME, earner.parameters())).one_or_none()
    return Revenue() if row is None else _revenue(row)


async def rank(
    connection: AsyncConnection, earner: Earner, span: Span, grouping: RevenueGrouping, limit: int
) -> Ranking:
    """The groups with the highest gross revenue in a span, up to `limit`, and sums over all of them."""
    rows = (
        await connection.execute(
            _RANKINGS[grouping], {**earner.parameters(), **span_parameters([span]), "limit": limit}
        )
    ).all()
    if not rows:
        return Ranking((), Revenue(), 0, 0, 0)
    first = rows[0]
    return Ranking(
        groups=[RevenueGroup(row.key, _revenue(row)) for row in rows],
        total=Revenue(
            first.all_platform_fees, first.all_processing_fees, first.all_net, first.all_charge_count
        ),
        group_count=first.group_count,
        positive_sum=int(first.positive_sum),
        square_sum=int(first.square_sum),
    )


async def series(
    connection: AsyncConnection,
    earner: Earner,
    spans: Sequence[Span],
    grouping: RevenueGrouping,
    shown: Sequence[str],
) -> dict[str | None, dict[int, Revenue]]:
    """The revenue of spans by key and number of the span, as far as there is any; None is all other keys."""
    rows = await connection.execute(
        _SERIES[grouping], {**earner.parameters(), **span_parameters(spans), "shown": list(shown)}
    )
    found: dict[str | None, dict[int, Revenue]] = {}
    for row in rows:
        found.setdefault(row.key, {})[row.number] = _revenue(row)
    return found


async def standing(connection: AsyncConnection, earner: Earner) -> Standing:
    """What can be paid out today, and what not yet."""
    row = (await connection.execute(_STANDING, earner.parameters())).one()
    return Standing(row.available, row.total - row.available, row.uncollected, row.in_transit)


def _revenue(row: Row[Any]) -> Revenue:
    return Revenue(row.platform_fees, row.processing_fees, row.net, row.charge_count)
