"""Runs as they were charged, by the thousand, for rating them again."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from services.kit.tenancy import Tenants, scope_hot

# Rows that are fetched at once: a megabyte or two.
_FETCHED_AT_ONCE: Final = 2_000
_WHERE: Final = """
    FROM metering.usage_event u
    LEFT JOIN metering.deferred_outcome d USING (customer_id, workflow_id, ordinal)
    WHERE u.occur_time >= %(start)s AND u.occur_time < %(end)s
      AND (%(organization_id)s::text = '' OR u.organization_id = %(organization_id)s)
      AND (%(customer_id)s::text = '' OR u.customer_id = %(customer_id)s)
      AND (%(currency_code)s::text = '' OR u.currency_code = %(currency_code)s)
"""
# Who, what and when; what it came to; what its outcome added, if that was decided later; and what both were
# rated with.
_COLUMNS: Final = """
    SELECT u.content, u.organization_id, u.occur_time, u.price_version_id, u.currency_code, u.amount_micros,
           u.lines::text, nullif(d.outcome, 'pending'), d.bonuses #>> ARRAY[d.outcome, '0'],
           d.bonuses #>> ARRAY[d.outcome, '1'], u.contract_terms::text, u.period_start, u.opening::text,
           d.opening::text, d.result
"""


class Selection(NamedTuple):
    """Whose runs, and when they happened; empty texts for all."""

    tenants: Tenants
    start_time: datetime
    end_time: datetime
    organization_id: str
    customer_id: str
    currency_code: str


# content, organization_id, occur_time, price_version_id, currency_code, amount_micros, lines, the outcome
# that was decided, what that added: micros and lines; then what the contract added, the start of the billing
# period, the counters of the event and of the decision, all as JSON but the time, and the result of the
# decision, serialized. All from the outcome on may be None.
Row = tuple[Any, ...]


async def begin(connection: AsyncConnection[TupleRow], selection: Selection) -> None:
    """Let the transaction see what it may, as it is now and for as long as it takes, and change nothing."""
    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    await scope_hot(connection, selection.tenants)
    await connection.execute("SET LOCAL statement_timeout = 0")


class Applied(NamedTuple):
    """What was applied to the runs: versions, and whether contracts added anything to any."""

    versions: Sequence[str]
    has_terms: bool


async def applied(connection: AsyncConnection[TupleRow], selection: Selection) -> Applied:
    """What was applied to the runs."""
    query = sql.SQL("SELECT u.price_version_id, bool_or(u.contract_terms IS NOT NULL) {where} GROUP BY 1")
    cursor = await connection.execute(query.format(where=sql.SQL(_WHERE)), _parameters(selection))
    rows = await cursor.fetchall()
    return Applied([version for version, _ in rows], any(has_terms for _, has_terms in rows))


async def read(
    connection: AsyncConnection[TupleRow], selection: Selection, *, in_order: bool
) -> AsyncGenerator[Sequence[Row], None]:
    """The runs, a few thousand at a time; `in_order` as they were reported, which costs a sort."""
    order = " ORDER BY u.create_time, u.customer_id, u.workflow_id, u.ordinal" if in_order else ""
    query = sql.SQL(_COLUMNS) + sql.SQL(_WHERE) + sql.SQL(order)
    async with connection.cursor("posted_runs", binary=True) as cursor:
        await cursor.execute(query, _parameters(selection), binary=True)
        fetching = asyncio.create_task(cursor.fetchmany(_FETCHED_AT_ONCE))
        try:
            while rows := await fetching:
                # PostgreSQL looks for the next ones while these are rated, once it is asked.
                fetching = asyncio.create_task(cursor.fetchmany(_FETCHED_AT_ONCE))
                await asyncio.sleep(0)
                yield rows
        finally:
            fetching.cancel()
            await asyncio.wait([fetching])


def _parameters(selection: Selection) -> dict[str, Any]:
    return {
        "start": selection.start_time,
        "end": selection.end_time,
        "organization_id": selection.organization_id,
        "customer_id": selection.customer_id,
        "currency_code": selection.currency_code,
    }
