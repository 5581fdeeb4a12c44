"""What the tables of the directory have in common. The connection's tenants bound what is found."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Column, RowMapping, Select, Table, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.domain.directory import already_exists

# The name by which the rpc edge, which does not know SQLAlchemy, speaks of a connection.
Connection: TypeAlias = AsyncConnection

R = TypeVar("R")


async def insert_or_find(
    connection: Connection, table: Table, values: Mapping[str, object]
) -> RowMapping | None:
    """Insert a row with an id that the caller may have chosen; None if it was new.

    Otherwise the row of that id, if the same request made it; raises AlreadyExists if another one did.
    Inserted first and read then: a concurrent insert of the same id is waited for, and the next statement
    sees its row.
    """
    (key,) = table.primary_key.columns
    inserted = await connection.execute(
        insert(table).values(values).on_conflict_do_nothing(index_elements=[key]).returning(key)
    )
    if inserted.one_or_none() is not None:
        return None
    row = (await connection.execute(select(table).where(key == values[key.name]))).mappings().one_or_none()
    # No row: the id is another tenant's. That it is taken cannot be hidden.
    if row is None or row["request_hash"] != values["request_hash"]:
        raise already_exists(str(values[key.name]))
    return row


async def read_page(
    connection: Connection,
    query: Select[Any],
    key: Column[Any],
    after: str,
    limit: int,
    to_domain: Callable[[RowMapping], R],
) -> list[R]:
    """Up to `limit` rows of `query` by `key`, behind `after` ("" for the first)."""
    rows = await connection.execute(query.where(key > after).order_by(key).limit(limit))
    return [to_domain(row) for row in rows.mappings()]
