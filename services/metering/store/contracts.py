"""Contracts and their versions. An end that is not set is 'infinity' in the tables."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, DateTime, Row, Select, func, literal_column, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from services.kit.db import Connection
from services.metering.store.contract_tables import contract, contract_change, contract_version

_NEVER: Final = literal_column("'infinity'::timestamptz", DateTime(timezone=True))


class StoredContract(NamedTuple):
    """A version of a contract as it is stored: `billing_period` and `content` are serialized messages."""

    contract_id: str
    customer_id: str
    organization_id: str
    currency_code: str
    billing_period: bytes | None
    start_time: datetime
    version_number: int
    content: bytes
    effective_time: datetime
    create_time: datetime
    api_key_id: str


async def lock(connection: Connection) -> None:
    """Make other changes of contracts wait until the end of the transaction."""
    await connection.execute(select(func.metering.lock_contracts()))


async def create(connection: Connection, new: StoredContract, *, end_time: datetime | None) -> bool:
    """Create a contract with its first version. False if its id is taken."""
    statement = (
        insert(contract)
        .values(
            contract_id=new.contract_id,
            customer_id=new.customer_id,
            organization_id=new.organization_id,
            currency_code=new.currency_code,
            billing_period=new.billing_period,
            start_time=new.start_time,
            end_time=_end(end_time),
        )
        .on_conflict_do_nothing()
        .returning(contract.c.contract_id)
    )
    if (await connection.execute(statement)).one_or_none() is None:
        return False
    await _add_version(connection, new)
    return True


async def add_version(connection: Connection, new: StoredContract, *, end_time: datetime | None) -> None:
    """Add a version to a contract; its number is one more than that of the newest one."""
    await connection.execute(
        update(contract)
        .where(contract.c.contract_id == new.contract_id)
        .values(version_count=new.version_number, end_time=_end(end_time))
    )
    await _add_version(connection, new)


async def find(connection: Connection, contract_id: str, version_number: int = 0) -> StoredContract | None:
    """A version of a contract, the newest one for 0, if the connection's tenants may see it."""
    number = version_number or contract.c.version_count
    query = _versions().where(
        contract.c.contract_id == contract_id, contract_version.c.version_number == number
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _to_stored(row)


async def find_overlapping(
    connection: Connection, new: StoredContract, *, end_time: datetime | None
) -> StoredContract | None:
    """Another contract about the same, at a time at which this one is in force."""
    query = _newest().where(
        contract.c.customer_id == new.customer_id,
        contract.c.organization_id == new.organization_id,
        contract.c.currency_code == new.currency_code,
        contract.c.contract_id != new.contract_id,
        # Those that end when they start are never in force.
        contract.c.start_time < contract.c.end_time,
        contract.c.start_time < _end(end_time),
        contract.c.end_time > new.start_time,
    )
    row = (await connection.execute(query.order_by(contract.c.start_time).limit(1))).one_or_none()
    return None if row is None else _to_stored(row)


async def list_contracts(
    connection: Connection, *, tenant_ids: Sequence[str] | None, customer_id: str, after: str, limit: int
) -> list[StoredContract]:
    """The newest versions by contract id, from the first one behind `after`; those of these tenants, or, for
    None, of all; of one customer, unless `customer_id` is empty.
    """
    conditions: list[ColumnElement[bool]] = [contract.c.contract_id > after]
    if tenant_ids is not None:
        # The policies see to it anyway; this lets an index find the few rows of one tenant.
        conditions.append(
            or_(contract.c.customer_id.in_(tenant_ids), contract.c.organization_id.in_(tenant_ids))
        )
    if customer_id:
        conditions.append(contract.c.customer_id == customer_id)
    query = _newest().where(*conditions).order_by(contract.c.contract_id).limit(limit)
    return [_to_stored(row) for row in await connection.execute(query)]


async def list_of_customer(connection: Connection, customer_id: str) -> list[StoredContract]:
    """Every version of every contract of a customer."""
    query = _versions().where(contract.c.customer_id == customer_id)
    return [_to_stored(row) for row in await connection.execute(query)]


async def visible(connection: Connection, contract_ids: Collection[str]) -> set[str]:
    """Those of these contracts that the connection's tenants may see."""
    query = select(contract.c.contract_id).where(contract.c.contract_id.in_(contract_ids))
    return set((await connection.execute(query)).scalars())


async def list_versions(
    connection: Connection, contract_id: str, *, before: int | None, limit: int
) -> list[StoredContract]:
    """Versions of a contract, newest first, from the first one older than number `before`."""
    query = _versions().where(contract.c.contract_id == contract_id)
    if before is not None:
        query = query.where(contract_version.c.version_number < before)
    query = query.order_by(contract_version.c.version_number.desc()).limit(limit)
    return [_to_stored(row) for row in await connection.execute(query)]


async def last_change(connection: Connection) -> int:
    """The number of the last version that was made of any contract."""
    number: int = (await connection.execute(select(contract_change.c.change_number))).scalar_one()
    return number


async def list_changes(connection: Connection, *, after: int) -> tuple[list[StoredContract], int]:
    """The versions that were made since change `after`, and the number of the last such change."""
    query = _versions().where(contract_version.c.change_number > after)
    rows = (await connection.execute(query.order_by(contract_version.c.change_number))).all()
    return [_to_stored(row) for row in rows], rows[-1].change_number if rows else after


async def _add_version(connection: Connection, new: StoredContract) -> None:
    await connection.execute(
        insert(contract_version).values(
            contract_id=new.contract_id,
            version_number=new.version_number,
            customer_id=new.customer_id,
            organization_id=new.organization_id,
            content=new.content,
            effective_time=new.effective_time,
            create_time=new.create_time,
            api_key_id=new.api_key_id,
        )
    )


def _versions() -> Select[Any]:
    return select(
        contract.c.contract_id,
        contract.c.customer_id,
        contract.c.organization_id,
        contract.c.currency_code,
        contract.c.billing_period,
        contract.c.start_time,
        contract_version.c.version_number,
        contract_version.c.content,
        contract_version.c.effective_time,
        contract_version.c.create_time,
        contract_version.c.api_key_id,
        contract_version.c.change_number,
    ).join(contract_version, contract_version.c.contract_id == contract.c.contract_id)


def _newest() -> Select[Any]:
    return _versions().where(contract_version.c.version_number == contract.c.version_count)


def _end(end_time: datetime | None) -> datetime | ColumnElement[datetime]:
    return _NEVER if end_time is None else end_time


def _to_stored(row: Row[Any]) -> StoredContract:
    return StoredContract(
        contract_id=row.contract_id,
        customer_id=row.customer_id,
        organization_id=row.organization_id,
        currency_code=row.currency_code,
        billing_period=row.billing_period,
        start_time=row.start_time,
        version_number=row.version_number,
        content=row.content,
        effective_time=row.effective_time,
        create_time=row.create_time,
        api_key_id=row.api_key_id,
    )
