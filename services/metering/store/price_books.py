"""Price books and their versions."""

from collections.abc import AsyncGenerator, Collection
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.metering.domain.price_book import PriceBook, PriceList, PriceVersion
from services.metering.domain.price_index import PublishedVersion
from services.metering.store import price_format
from services.metering.store.tables import idempotency, price_book, price_version

_FETCHED_AT_ONCE: Final = 8


async def create_book(connection: AsyncConnection, book: PriceBook) -> bool:
    """Create a book. False if one of its id, or of its owner and currency, exists."""
    statement = (
        insert(price_book)
        .values(
            price_book_id=book.price_book_id,
            owner_id=book.owner_id,
            currency_code=book.currency_code,
            display_name=book.display_name,
            create_time=book.create_time,
            for_contracts=book.for_contracts,
        )
        .on_conflict_do_nothing()
        .returning(price_book.c.price_book_id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def find_book(connection: AsyncConnection, price_book_id: str) -> PriceBook | None:
    """A book, if the connection's tenants may see it."""
    return await _book(connection, price_book.c.price_book_id == price_book_id)


async def find_book_of(connection: AsyncConnection, owner_id: str, currency_code: str) -> PriceBook | None:
    """The book of an owner in a currency that is not for contracts, if the tenants may see it."""
    return await _book(
        connection,
        (price_book.c.owner_id == owner_id)
        & (price_book.c.currency_code == currency_code)
        & ~price_book.c.for_contracts,
    )


async def lock_book(connection: AsyncConnection, price_book_id: str) -> None:
    """Make drafting and publishing versions of the book wait until the end of the transaction."""
    query = select(price_book.c.price_book_id).where(price_book.c.price_book_id == price_book_id)
    await connection.execute(query.with_for_update(key_share=True))


async def list_books(connection: AsyncConnection, *, after: str, limit: int) -> list[PriceBook]:
    """Books by id, from the first one behind `after`."""
    query = (
        select(price_book)
        .where(price_book.c.price_book_id > after)
        .order_by(price_book.c.price_book_id)
        .limit(limit)
    )
    return [_to_book(row) for row in await connection.execute(query)]


async def next_version_number(connection: AsyncConnection, price_book_id: str) -> int:
    """Give out the next number in a book.

    Locks the book's row until the end of the transaction, so that every number is given once and in order.
    """
    statement = (
        update(price_book)
        .where(price_book.c.price_book_id == price_book_id)
        .values(version_count=price_book.c.version_count + 1)
        .returning(price_book.c.version_count)
    )
    number: int = (await connection.execute(statement)).scalar_one()
    return number


async def create_version(connection: AsyncConnection, book: PriceBook, version: PriceVersion) -> None:
    """Store a draft."""
    await connection.execute(
        insert(price_version).values(
            price_version_id=version.price_version_id,
            price_book_id=book.price_book_id,
            owner_id=book.owner_id,
            currency_code=book.currency_code,
            version_number=version.version_number,
            **_columns(version.price_list),
            create_time=version.create_time,
            creator_api_key_id=version.creator_api_key_id,
        )
    )


async def find_version(
    connection: AsyncConnection, price_version_id: str, *, lock: bool = False
) -> PriceVersion | None:
    """A version, if the connection's tenants may see it; with `lock`, nobody else changes it meanwhile."""
    query = select(price_version).where(price_version.c.price_version_id == price_version_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    return None if row is None else _to_version(row)


async def last_published(connection: AsyncConnection, price_book_id: str) -> PriceVersion | None:
    """The published version of a book that begins to apply last, if the connection's tenants may see it."""
    query = (
        select(price_version)
        .where(price_version.c.price_book_id == price_book_id, price_version.c.effective_time.is_not(None))
        .order_by(price_version.c.effective_time.desc())
        .limit(1)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _to_version(row)


async def set_price_list(connection: AsyncConnection, price_version_id: str, price_list: PriceList) -> None:
    """Replace all that a draft says. The database refuses to change a published version."""
    await connection.execute(
        update(price_version)
        .where(price_version.c.price_version_id == price_version_id)
        .values(**_columns(price_list))
    )


async def publish(
    connection: AsyncConnection,
    price_version_id: str,
    *,
    effective_time: datetime,
    publish_time: datetime,
    api_key_id: str,
) -> None:
    """Publish a draft."""
    await connection.execute(
        update(price_version)
        .where(price_version.c.price_version_id == price_version_id)
        .values(effective_time=effective_time, publish_time=publish_time, publisher_api_key_id=api_key_id)
    )


async def last_effective_time(connection: AsyncConnection, price_book_id: str) -> datetime | None:
    """When the last published version of a book begins to apply; None if none was published."""
    query = select(func.max(price_version.c.effective_time)).where(
        price_version.c.price_book_id == price_book_id
    )
    last: datetime | None = (await connection.execute(query)).scalar_one()
    return last


async def list_versions(
    connection: AsyncConnection, price_book_id: str, *, before: int | None, limit: int
) -> AsyncGenerator[PriceVersion, None]:
    """Versions of a book, newest first, from the first one older than number `before`."""
    query = select(price_version).where(price_version.c.price_book_id == price_book_id)
    if before is not None:
        query = query.where(price_version.c.version_number < before)
    query = query.order_by(price_version.c.version_number.desc()).limit(limit)
    # A few at a time: a version may weigh more than a megabyte, and the reader stops when it has enough.
    async with connection.stream(query, execution_options={"yield_per": _FETCHED_AT_ONCE}) as rows:
        async for row in rows:
            yield _to_version(row)


async def count_published(connection: AsyncConnection) -> int:
    """How many versions are published: published ones stay, so it grows with each."""
    query = select(func.count()).select_from(price_version).where(price_version.c.publish_time.is_not(None))
    return (await connection.execute(query)).scalar_one()


async def list_published(connection: AsyncConnection) -> list[PublishedVersion]:
    """Every published version, without its prices."""
    query = (
        select(
            price_version.c.owner_id,
            price_version.c.currency_code,
            price_version.c.effective_time,
            price_version.c.price_version_id,
            price_version.c.price_book_id,
            price_book.c.for_contracts,
        )
        .join(price_book, price_book.c.price_book_id == price_version.c.price_book_id)
        .where(price_version.c.publish_time.is_not(None))
    )
    return [PublishedVersion(*row) for row in await connection.execute(query)]


async def find_version_in_force(
    connection: AsyncConnection, price_book_id: str, at: datetime
) -> PriceVersion | None:
    """The version of a book that is in force at that time."""
    query = select(price_version).where(
        price_version.c.price_book_id == price_book_id,
        price_version.c.publish_time.is_not(None),
        price_version.c.effective_time <= at,
    )
    query = query.order_by(price_version.c.effective_time.desc()).limit(1)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _to_version(row)


async def stream_in_force_until(
    connection: AsyncConnection, price_book_id: str, at: datetime
) -> AsyncGenerator[PriceVersion, None]:
    """The versions of a book that were in force until that time, newest first."""
    query = select(price_version).where(
        price_version.c.price_book_id == price_book_id,
        price_version.c.publish_time.is_not(None),
        price_version.c.effective_time <= at,
    )
    query = query.order_by(price_version.c.effective_time.desc())
    async with connection.stream(query, execution_options={"yield_per": _FETCHED_AT_ONCE}) as rows:
        async for row in rows:
            yield _to_version(row)


async def load_versions(
    connection: AsyncConnection, price_version_ids: Collection[str]
) -> dict[str, PriceVersion]:
    """Versions by their ids."""
    query = select(price_version).where(price_version.c.price_version_id.in_(price_version_ids))
    return {row.price_version_id: _to_version(row) for row in await connection.execute(query)}


async def claim_key(
    connection: AsyncConnection, owner_id: str, key: str, request_hash: bytes, outcome: str
) -> tuple[bytes, str] | None:
    """Claim an idempotency key for what this transaction creates.

    None if it was free; otherwise the hash of the request that has it, and what that created. Waits for a
    transaction that is claiming it right now.
    """
    statement = (
        insert(idempotency)
        .values(owner_id=owner_id, key=key, request_hash=request_hash, outcome=outcome)
        .on_conflict_do_nothing()
        .returning(idempotency.c.key)
    )
    if (await connection.execute(statement)).one_or_none() is not None:
        return None
    query = select(idempotency.c.request_hash, idempotency.c.outcome).where(
        idempotency.c.owner_id == owner_id, idempotency.c.key == key
    )
    row = (await connection.execute(query)).one()
    return row.request_hash, row.outcome


async def _book(connection: AsyncConnection, condition: ColumnElement[bool]) -> PriceBook | None:
    row = (await connection.execute(select(price_book).where(condition))).one_or_none()
    return None if row is None else _to_book(row)


def _to_book(row: Row[Any]) -> PriceBook:
    return PriceBook(
        price_book_id=row.price_book_id,
        owner_id=row.owner_id,
        currency_code=row.currency_code,
        display_name=row.display_name,
        create_time=row.create_time,
        for_contracts=row.for_contracts,
    )


def _to_version(row: Row[Any]) -> PriceVersion:
    return PriceVersion(
        price_version_id=row.price_version_id,
        price_book_id=row.price_book_id,
        version_number=row.version_number,
        prices=price_format.from_json(row.prices),
        create_time=row.create_time,
        effective_time=row.effective_time,
        publish_time=row.publish_time,
        publisher_api_key_id=row.publisher_api_key_id or "",
        meters=price_format.meters_from_json(row.meters),
        plans=price_format.plans_from_json(row.plans),
        creator_api_key_id=row.creator_api_key_id,
    )


def _columns(price_list: PriceList) -> dict[str, Any]:
    """What a version says, by column."""
    return {
        "prices": price_format.to_json(price_list.prices),
        "meters": price_format.meters_to_json(price_list.meters),
        "plans": price_format.plans_to_json(price_list.plans),
    }
