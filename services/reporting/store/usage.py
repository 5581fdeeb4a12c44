"""What agents did, and what it cost: sums of rollups, and rows where runs are told apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.reporting.domain.owner import Owner, OwnerKind
from services.reporting.domain.usage import (
    Margin,
    MarginGrouping,
    Usage,
    UsageGroup,
    UsageGrouping,
    UsageRanking,
)
from services.reporting.store.spans import ROLLUP_PIECES, ROW_PIECES, Span, span_parameters


@dataclass(frozen=True, slots=True)
class User:
    """The usage of an organization's agents, or of a customer, in one currency and one projection."""

    projection_id: int
    owner: Owner
    currency_code: str

    def parameters(self) -> dict[str, Any]:
        return {
            "projection_id": self.projection_id,
            "owner_id": self.owner.id,
            "currency_code": self.currency_code,
        }


_OWNER_COLUMN: Final = {OwnerKind.ORGANIZATION: "organization_id", OwnerKind.CUSTOMER: "customer_id"}
_VERSION_KEY: Final = "agent_id || CASE agent_version WHEN '' THEN '' ELSE '@' || agent_version END"
_KEYS: Final = {
    UsageGrouping.NONE: "''::text",
    UsageGrouping.AGENT: "agent_id",
    UsageGrouping.AGENT_VERSION: _VERSION_KEY,
    UsageGrouping.CUSTOMER: "customer_id",
    UsageGrouping.ACTION: "action_type",
    UsageGrouping.MODEL: "model",
}
_MARGIN_KEYS: Final = {
    MarginGrouping.NONE: "''::text",
    MarginGrouping.AGENT: "agent_id",
    MarginGrouping.MODEL: "model",
    MarginGrouping.CUSTOMER: "customer_id",
    # Customers name their runs as they like; ids of customers have no slash.
    MarginGrouping.RUN: "customer_id || '/' || workflow_id",
}

_USAGE_NAMES: Final = (
    "execution_count",
    "input_tokens",
    "output_tokens",
    "cost",
    "success",
    "failure",
    "partial",
    "unknown",
    "pending",
)
# What fits into an amount of the contract. Prices and tokens are what others say: no number of them, however
# large, may keep a report from being made. (The functions that add to rollups end there, too.)
_MOST: Final = 2**63 - 1


def _most(sum_: str) -> str:
    """`sum_`, which is not NULL, as an amount."""
    return f"least({sum_}, {_MOST})::bigint"


_USAGE_SUMS: Final = f"""sum(execution_count)::bigint AS execution_count,
               {_most("sum(input_tokens)")} AS input_tokens, {_most("sum(output_tokens)")} AS output_tokens,
               {_most("sum(cost_micros)")} AS cost,
               sum(success_count)::bigint AS success, sum(failure_count)::bigint AS failure,
               sum(partial_count)::bigint AS partial, sum(unknown_count)::bigint AS unknown,
               sum(pending_count)::bigint AS pending"""
_USAGE_ROW_SUMS: Final = f"""count(*) AS execution_count,
               {_most("sum(input_tokens)")} AS input_tokens, {_most("sum(output_tokens)")} AS output_tokens,
               {_most("sum(price_micros + bonus_micros)")} AS cost,
               count(*) FILTER (WHERE outcome = 'success') AS success,
               count(*) FILTER (WHERE outcome = 'failure') AS failure,
               count(*) FILTER (WHERE outcome = 'partial') AS partial,
               count(*) FILTER (WHERE outcome = 'unknown') AS unknown,
               count(*) FILTER (WHERE outcome = 'pending') AS pending"""
_MARGIN_NAMES: Final = ("gross", "gross_of_known", "model_cost_usd", "known_count", "event_count")
_MARGIN_SUMS: Final = f"""{_most("sum(cost_micros)")} AS gross,
               {_most("sum(priced_cost_micros)")} AS gross_of_known,
               sum(model_cost_usd) AS model_cost_usd, sum(priced_count)::bigint AS known_count,
               sum(execution_count)::bigint AS event_count"""
_SUM_OF_KNOWN: Final = "sum(price_micros + bonus_micros) FILTER (WHERE model_cost_usd IS NOT NULL)"
_MARGIN_ROW_SUMS: Final = f"""{_most("sum(price_micros + bonus_micros)")} AS gross,
               {_most(f"coalesce({_SUM_OF_KNOWN}, 0)")} AS gross_of_known,
               coalesce(sum(model_cost_usd), 0) AS model_cost_usd, count(model_cost_usd) AS known_count,
               count(*) AS event_count"""

# What each span has of each key. Names of columns and keys are of this module, never of a caller.
_ROLLUP_FACTS: Final = """
    SELECT p.number, f.*
    FROM {pieces}
    CROSS JOIN LATERAL (
        SELECT {key} AS key,
               {sums}
        FROM reporting.usage_rollup
        WHERE projection_id = :projection_id AND {owner} = :owner_id AND currency_code = :currency_code
          AND grain = p.grain AND start_time >= p.start_time AND start_time < p.end_time
        GROUP BY 1
    ) AS f
"""
_ROW_FACTS: Final = """
    SELECT p.number, f.*
    FROM {pieces}
    CROSS JOIN LATERAL (
        SELECT {key} AS key,
               {sums}
        FROM reporting.usage
        WHERE projection_id = :projection_id AND {owner} = :owner_id AND currency_code = :currency_code
          AND occur_time >= p.start_time AND occur_time < p.end_time
        GROUP BY 1
    ) AS f
"""
# Runs are not told apart in rollups.
_RUN_PIECE: Final = """(
        VALUES (0, CAST(:start_time AS timestamptz), CAST(:end_time AS timestamptz))
    ) AS p (number, start_time, end_time)"""


def _usage_facts(owner: str, key: str) -> str:
    rollups = _ROLLUP_FACTS.format(pieces=ROLLUP_PIECES, key=key, sums=_USAGE_SUMS, owner=owner)
    rows = _ROW_FACTS.format(pieces=ROW_PIECES, key=key, sums=_USAGE_ROW_SUMS, owner=owner)
    return f"{rollups} UNION ALL {rows}"


def _margin_facts(grouping: MarginGrouping) -> str:
    key, owner = _MARGIN_KEYS[grouping], _OWNER_COLUMN[OwnerKind.ORGANIZATION]
    if grouping is MarginGrouping.RUN:
        return _ROW_FACTS.format(pieces=_RUN_PIECE, key=key, sums=_MARGIN_ROW_SUMS, owner=owner)
    rollups = _ROLLUP_FACTS.format(pieces=ROLLUP_PIECES, key=key, sums=_MARGIN_SUMS, owner=owner)
    rows = _ROW_FACTS.format(pieces=ROW_PIECES, key=key, sums=_MARGIN_ROW_SUMS, owner=owner)
    return f"{rollups} UNION ALL {rows}"


def _outer(names: Sequence[str]) -> str:
    return ", ".join(f"sum({name}) AS {name}" for name in names)


def _over_all(names: Sequence[str]) -> str:
    return ", ".join(f"sum({name}) OVER () AS all_{name}" for name in names)


def _ranking(facts: str, names: Sequence[str], by: str) -> str:
    """The groups of facts that have most of something, and sums over all of them."""
    return f"""
    WITH grouped AS (SELECT key, {_outer(names)} FROM ({facts}) AS fact GROUP BY key)
    SELECT key, {", ".join(names)}, {_over_all(names)}
    FROM grouped
    ORDER BY {by} DESC, key COLLATE "C"
    LIMIT :limit
"""  # noqa: S608 - of constants


_RANKINGS: Final = {
    (kind, grouping): text(_ranking(_usage_facts(owner, key), _USAGE_NAMES, "cost"))
    for kind, owner in _OWNER_COLUMN.items()
    for grouping, key in _KEYS.items()
}
_POINTS: Final = {
    kind: text(f"""
    SELECT number, {_outer(_USAGE_NAMES)} FROM ({_usage_facts(owner, "''::text")}) AS fact GROUP BY number
""")  # noqa: S608 - of constants
    for kind, owner in _OWNER_COLUMN.items()
}
_MARGINS: Final = {
    grouping: text(_ranking(_margin_facts(grouping), _MARGIN_NAMES, "gross")) for grouping in MarginGrouping
}


async def rank(
    connection: AsyncConnection, user: User, span: Span, grouping: UsageGrouping, limit: int
) -> UsageRanking:
    """The groups that cost most in a span, up to `limit`, and the usage of all of them."""
    rows = (
        await connection.execute(
            _RANKINGS[user.owner.kind, grouping],
            {**user.parameters(), **span_parameters([span]), "limit": limit},
        )
    ).all()
    return UsageRanking(
        groups=[UsageGroup(row.key, _usage(row)) for row in rows],
        total=_usage(rows[0], "all_") if rows else Usage(),
    )


async def sum_spans(connection: AsyncConnection, user: User, spans: Sequence[Span]) -> list[Usage]:
    """The usage of each span."""
    rows = await connection.execute(_POINTS[user.owner.kind], {**user.parameters(), **span_parameters(spans)})
    found = {row.number: _usage(row) for row in rows}
    return [found.get(number, Usage()) for number in range(len(spans))]


async def margins(
    connection: AsyncConnection, user: User, span: Span, grouping: MarginGrouping, limit: int
) -> tuple[list[Margin], Margin]:
    """The groups with the highest revenue in a span, up to `limit`, and all of them together."""
    start, end = span
    pieces = (
        {"start_time": start, "end_time": end} if grouping is MarginGrouping.RUN else span_parameters([span])
    )
    rows = (
        await connection.execute(_MARGINS[grouping], {**user.parameters(), **pieces, "limit": limit})
    ).all()
    return [_margin(row) for row in rows], _margin(rows[0], "all_") if rows else Margin()


def _usage(row: Row[Any], prefix: str = "") -> Usage:
    columns = row._mapping
    return Usage(*(_int(columns[prefix + name]) for name in _USAGE_NAMES))


def _margin(row: Row[Any], prefix: str = "") -> Margin:
    columns = row._mapping
    known = int(columns[f"{prefix}known_count"])
    return Margin(
        key="" if prefix else row.key,
        gross=_int(columns[f"{prefix}gross"]),
        gross_of_known=_int(columns[f"{prefix}gross_of_known"]),
        model_cost_usd=columns[f"{prefix}model_cost_usd"],
        known_count=known,
        unknown_count=int(columns[f"{prefix}event_count"]) - known,
    )


def _int(number: Decimal) -> int:
    return min(int(number), _MOST)
