"""Shadows: their state, their counters, and what they found."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, namedtuple_row
from psycopg.types.json import Jsonb

from services.kit.db import single
from services.metering.domain.price_book import PriceList
from services.metering.domain.rating import Counters
from services.metering.domain.shadow import (
    CounterKey,
    Divergence,
    DivergenceKey,
    Shadow,
    Shadowing,
)
from services.metering.domain.usage_event import EventKey
from services.metering.store import price_format

_SHADOW: Final = """
    SELECT shadow_id, owner_id, price_version_id, price_book_id, currency_code, price_list, api_key_id,
           create_time, stop_time, log_id, position
    FROM metering.shadow
"""
_HEAD: Final = "SELECT log_id, last_position FROM metering.usage_log ORDER BY create_time DESC LIMIT 1"
_HAPPENED: Final = """
    SELECT p.kind, u.content, u.organization_id, u.occur_time, u.amount_micros, u.contract_terms,
           u.period_start, u.opening, u.closing, d.outcome,
           coalesce((d.bonuses #>> ARRAY[d.outcome, '0'])::bigint, 0) AS bonus_micros,
           d.opening AS decided_opening, d.closing AS decided_closing, d.result
    FROM metering.usage_position p
    JOIN metering.usage_event u USING (customer_id, workflow_id, ordinal)
    LEFT JOIN metering.deferred_outcome d USING (customer_id, workflow_id, ordinal)
    WHERE p.log_id = %s AND p.position > %s AND p.position <= %s AND u.currency_code = %s
      AND (%s::text = 'platform' OR u.organization_id = %s)
    ORDER BY p.position
"""
_ADD: Final = """
    INSERT INTO metering.shadow_divergence AS found
        (shadow_id, customer_id, agent_id, agent_version, organization_id, owner_id, charge_count,
         unpriced_charge_count, differing_charge_count, charged_micros, shadowed_micros)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (shadow_id, customer_id, agent_id, agent_version) DO UPDATE SET
        charge_count = found.charge_count + excluded.charge_count,
        unpriced_charge_count = found.unpriced_charge_count + excluded.unpriced_charge_count,
        differing_charge_count = found.differing_charge_count + excluded.differing_charge_count,
        charged_micros = found.charged_micros + excluded.charged_micros,
        shadowed_micros = found.shadowed_micros + excluded.shadowed_micros
"""
_COUNT: Final = """
    INSERT INTO metering.shadow_counter
        (shadow_id, customer_id, organization_id, period_start, name, value, owner_id)
    VALUES (%s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (shadow_id, customer_id, organization_id, period_start, name)
        DO UPDATE SET value = excluded.value
"""
_SUMS: Final = """
    SELECT coalesce(sum(charge_count), 0)::bigint, coalesce(sum(unpriced_charge_count), 0)::bigint,
           coalesce(sum(differing_charge_count), 0)::bigint, coalesce(sum(charged_micros), 0)::bigint,
           coalesce(sum(shadowed_micros), 0)::bigint
    FROM metering.shadow_divergence WHERE shadow_id = %s
"""

Connection = AsyncConnection[TupleRow]


async def head(connection: Connection) -> tuple[str, int]:
    """The log of the feed, and its last position. Only the platform may look."""
    log_id, position = await single(await connection.execute(_HEAD))
    return log_id, position


async def claim_key(
    connection: Connection, owner_id: str, key: str, request_hash: bytes, outcome: str
) -> tuple[bytes, str] | None:
    """Claim an idempotency key, as store.price_books.claim_key does."""
    cursor = await connection.execute(
        "INSERT INTO metering.idempotency (owner_id, key, request_hash, outcome) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT DO NOTHING RETURNING key",
        (owner_id, key, request_hash, outcome),
    )
    if await cursor.fetchone() is not None:
        return None
    cursor = await connection.execute(
        "SELECT request_hash, outcome FROM metering.idempotency WHERE owner_id = %s AND key = %s",
        (owner_id, key),
    )
    earlier_hash, earlier = await single(cursor)
    return earlier_hash, earlier


async def create(connection: Connection, shadow: Shadow) -> None:
    """Store a new shadow."""
    await connection.execute(
        "INSERT INTO metering.shadow (shadow_id, owner_id, price_version_id, price_book_id, currency_code,"
        " price_list, api_key_id, create_time, log_id, position)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            shadow.shadow_id,
            shadow.owner_id,
            shadow.price_version_id,
            shadow.price_book_id,
            shadow.currency_code,
            Jsonb(_list_to_json(shadow.price_list)),
            shadow.api_key_id,
            shadow.create_time,
            shadow.log_id,
            shadow.position,
        ),
    )


async def find(connection: Connection, shadow_id: str) -> Shadow | None:
    """A shadow, if the connection's tenants may see it."""
    found = await _shadows(connection, "WHERE shadow_id = %s", (shadow_id,))
    return found[0] if found else None


async def list_shadows(connection: Connection, *, before: str, limit: int) -> list[Shadow]:
    """Shadows that the connection's tenants may see, newest first, from the first one older than `before`."""
    where = "WHERE %s::text = '' OR shadow_id < %s ORDER BY shadow_id DESC LIMIT %s"
    return await _shadows(connection, where, (before, before, limit))


async def lock_running(connection: Connection, owner_id: str) -> int:
    """How many shadows of an owner run. Nobody else starts one of this owner until the transaction ends."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('metering.shadow/' || %s, 0))", (owner_id,)
    )
    cursor = await connection.execute(
        "SELECT count(*) FROM metering.shadow WHERE owner_id = %s AND stop_time IS NULL", (owner_id,)
    )
    return int((await single(cursor))[0])


async def stop(connection: Connection, shadow_id: str, moment: datetime) -> None:
    """Stop a shadow, unless it was stopped before."""
    await connection.execute(
        "UPDATE metering.shadow SET stop_time = %s WHERE shadow_id = %s AND stop_time IS NULL",
        (moment, shadow_id),
    )


async def running(connection: Connection) -> list[str]:
    """The shadows that run."""
    cursor = await connection.execute("SELECT shadow_id FROM metering.shadow WHERE stop_time IS NULL")
    return [row[0] for row in await cursor.fetchall()]


async def take(connection: Connection, shadow_id: str) -> Shadow | None:
    """A running shadow, which is then ours until the transaction ends; None if somebody else has it."""
    where = "WHERE shadow_id = %s AND stop_time IS NULL FOR NO KEY UPDATE SKIP LOCKED"
    found = await _shadows(connection, where, (shadow_id,))
    return found[0] if found else None


async def happened(connection: Connection, shadow: Shadow, until: int) -> list[Any]:
    """What concerns a shadow of what happened behind its position: `kind`, `content`, `organization_id`,
    `occur_time`, `amount_micros`, `contract_terms`, `period_start`, `opening`, `closing`; and of the decision
    `outcome`, `bonus_micros`, `decided_opening`, `decided_closing`, `result`.
    """
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute(
        _HAPPENED,
        (shadow.log_id, shadow.position, until, shadow.currency_code, shadow.owner_id, shadow.owner_id),
    )
    return await cursor.fetchall()


async def load_shifts(
    connection: Connection, shadow_id: str, keys: Collection[CounterKey]
) -> dict[CounterKey, dict[str, int]]:
    """By how much the counters of a shadow are off, by whose they are."""
    found: dict[CounterKey, dict[str, int]] = {}
    cursor = await connection.execute(
        "SELECT customer_id, organization_id, period_start, name, value FROM metering.shadow_counter"
        " WHERE shadow_id = %s AND customer_id = ANY (%s)",
        (shadow_id, sorted({key.customer_id for key in keys})),
    )
    for customer_id, organization_id, period_start, name, value in await cursor.fetchall():
        found.setdefault(CounterKey(customer_id, organization_id, period_start), {})[name] = value
    return found


async def load_openings(
    connection: Connection, shadow_id: str, keys: Sequence[EventKey]
) -> dict[EventKey, Counters]:
    """Where the counters stood for events whose outcome was pending."""
    cursor = await connection.execute(
        "SELECT customer_id, workflow_id, ordinal, opening FROM metering.shadow_pending WHERE shadow_id = %s"
        " AND (customer_id, workflow_id, ordinal) IN"
        " (SELECT * FROM unnest(%s::text[], %s::text[], %s::integer[]))",
        (shadow_id, *_columns(keys)),
    )
    return {EventKey(*key): opening for *key, opening in await cursor.fetchall()}


async def advance(
    connection: Connection, shadow: Shadow, log_id: str, position: int, found: Shadowing
) -> None:
    """Add what a shadow found, and move it to where it has looked up to."""
    async with connection.cursor() as cursor:
        await cursor.executemany(
            _ADD,
            [
                (shadow.shadow_id, *key[:3], key.organization_id, shadow.owner_id, *_figures(one))
                for key, one in sorted(found.divergences.items())
                if one.charge_count
            ],
        )
        await cursor.executemany(
            _COUNT,
            [
                (shadow.shadow_id, *key, name, value, shadow.owner_id)
                for key in sorted(found.moved)
                for name, value in sorted(found.shifts[key].items())
            ],
        )
        await cursor.executemany(
            "INSERT INTO metering.shadow_pending"
            " (shadow_id, customer_id, workflow_id, ordinal, opening, owner_id)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [
                (shadow.shadow_id, *key, Jsonb(dict(opening)), shadow.owner_id)
                for key, opening in sorted(found.opened.items())
                if key not in found.closed
            ],
        )
    if found.closed:
        await connection.execute(
            "DELETE FROM metering.shadow_pending WHERE shadow_id = %s"
            " AND (customer_id, workflow_id, ordinal) IN"
            " (SELECT * FROM unnest(%s::text[], %s::text[], %s::integer[]))",
            (shadow.shadow_id, *_columns(sorted(found.closed))),
        )
    await connection.execute(
        "UPDATE metering.shadow SET log_id = %s, position = %s WHERE shadow_id = %s",
        (log_id, position, shadow.shadow_id),
    )


async def sums(connection: Connection, shadow_id: str) -> Divergence:
    """What a shadow found in all."""
    return Divergence(*await single(await connection.execute(_SUMS, (shadow_id,))))


async def list_divergences(
    connection: Connection, shadow_id: str, customer_id: str, *, after: tuple[str, str, str], limit: int
) -> list[tuple[DivergenceKey, Divergence]]:
    """What a shadow found, by customer, agent and release, from the first one behind `after`."""
    cursor = await connection.execute(
        "SELECT customer_id, agent_id, agent_version, organization_id, charge_count, unpriced_charge_count,"
        " differing_charge_count, charged_micros::bigint, shadowed_micros::bigint"
        " FROM metering.shadow_divergence"
        " WHERE shadow_id = %s AND (%s::text = '' OR customer_id = %s)"
        " AND (customer_id, agent_id, agent_version) > (%s, %s, %s)"
        " ORDER BY customer_id, agent_id, agent_version LIMIT %s",
        (shadow_id, customer_id, customer_id, *after, limit),
    )
    return [(DivergenceKey(*row[:4]), Divergence(*row[4:])) for row in await cursor.fetchall()]


async def _shadows(connection: Connection, where: Any, parameters: Sequence[Any]) -> list[Shadow]:
    cursor = connection.cursor(row_factory=namedtuple_row)
    await cursor.execute(_SHADOW + where, parameters)
    rows: list[Any] = await cursor.fetchall()
    return [
        Shadow(
            shadow_id=row.shadow_id,
            owner_id=row.owner_id,
            price_version_id=row.price_version_id,
            price_book_id=row.price_book_id,
            currency_code=row.currency_code,
            price_list=_list_from_json(row.price_list),
            api_key_id=row.api_key_id,
            create_time=row.create_time,
            stop_time=row.stop_time,
            log_id=row.log_id,
            position=row.position,
        )
        for row in rows
    ]


def _figures(one: Divergence) -> tuple[int, ...]:
    return (
        one.charge_count,
        one.unpriced_charge_count,
        one.differing_charge_count,
        one.charged_micros,
        one.shadowed_micros,
    )


def _columns(keys: Iterable[EventKey]) -> tuple[list[str], list[str], list[int]]:
    rows = list(keys)
    return (
        [key.customer_id for key in rows],
        [key.workflow_id for key in rows],
        [key.ordinal for key in rows],
    )


def _list_to_json(price_list: PriceList) -> Mapping[str, Any]:
    return {
        "prices": price_format.to_json(price_list.prices),
        "meters": price_format.meters_to_json(price_list.meters),
        "plans": price_format.plans_to_json(price_list.plans),
    }


def _list_from_json(stored: Mapping[str, Any]) -> PriceList:
    return PriceList(
        prices=price_format.from_json(stored["prices"]),
        meters=price_format.meters_from_json(stored["meters"]),
        plans=price_format.plans_from_json(stored["plans"]),
    )
