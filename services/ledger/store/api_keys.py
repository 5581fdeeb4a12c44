"""API keys: whose they are, and finding the bearer of one. The connection's tenants bound what is found."""

from datetime import datetime

from sqlalchemy import RowMapping, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from services.kit.auth import Principal, Role
from services.kit.db import Database
from services.kit.errors import InvalidArgument
from services.kit.tenancy import PLATFORM, scope
from services.ledger.domain.directory import ApiKey, not_found
from services.ledger.store.agents import require_agents
from services.ledger.store.customers import require_customers
from services.ledger.store.directory_rows import Connection, read_page
from services.ledger.store.directory_tables import api_key
from services.ledger.store.members import lock_active_member
from services.ledger.store.organizations import get_organization


class DatabaseKeyResolver:
    """A KeyResolver over the ledger's own database."""

    def __init__(self, reader: Database) -> None:
        self._reader = reader

    async def resolve(self, key_hash: bytes) -> Principal | None:
        """The bearer of the valid key with this hash, if there is one."""
        async with self._reader.begin() as connection:
            # Who is calling is what we are about to find out.
            await scope(connection, PLATFORM)
            found = await find_valid_key(connection, key_hash)
        return None if found is None else found.principal()


async def find_valid_key(connection: Connection, key_hash: bytes) -> ApiKey | None:
    """The key with this hash, unless it is revoked or has expired."""
    found = await connection.execute(
        select(api_key).where(
            api_key.c.key_hash == key_hash,
            api_key.c.revoke_time.is_(None),
            or_(api_key.c.expire_time.is_(None), api_key.c.expire_time > func.now()),
        )
    )
    row = found.mappings().one_or_none()
    return None if row is None else _api_key(row)


async def create_key(
    connection: Connection, new: ApiKey, key_hash: bytes, *, customers_visible: bool
) -> None:
    """Store a new key.

    Raises NotFound for whom it belongs to and for what it is restricted to, InvalidArgument if its role is
    not its member's. Customers that it is restricted to are looked for only where they are visible: an
    organization sees none, and is told nothing about them.
    """
    if new.organization_id is not None:
        await get_organization(connection, new.organization_id)
    if new.customer_id is not None:
        await require_customers(connection, [new.customer_id])
    if new.member_id is not None and new.organization_id is not None:
        member = await lock_active_member(connection, new.member_id, new.organization_id)
        if member.role is not new.role:
            raise InvalidArgument.of("role", f"must be the member's, which is {member.role}")
    if new.agent_ids:
        await require_agents(connection, new.agent_ids, new.organization_id)
    if new.customer_ids and customers_visible:
        await require_customers(connection, new.customer_ids)
    await connection.execute(
        insert(api_key).values(
            api_key_id=new.api_key_id,
            key_hash=key_hash,
            visible_prefix=new.visible_prefix,
            role=new.role.value,
            organization_id=new.organization_id,
            customer_id=new.customer_id,
            member_id=new.member_id,
            agent_ids=list(new.agent_ids),
            customer_ids=list(new.customer_ids),
            description=new.description,
            create_time=new.create_time,
            expire_time=new.expire_time,
        )
    )


async def get_key(connection: Connection, api_key_id: str) -> ApiKey:
    """Raises NotFound."""
    found = await connection.execute(select(api_key).where(api_key.c.api_key_id == api_key_id))
    row = found.mappings().one_or_none()
    if row is None:
        raise not_found("api_key", api_key_id)
    return _api_key(row)


async def list_keys(
    connection: Connection, *, organization_id: str | None, after: str, limit: int
) -> list[ApiKey]:
    """By id, of one organization or all, revoked ones too."""
    query = select(api_key)
    if organization_id is not None:
        query = query.where(api_key.c.organization_id == organization_id)
    return await read_page(connection, query, api_key.c.api_key_id, after, limit, _api_key)


async def revoke_key(connection: Connection, api_key_id: str, now: datetime) -> ApiKey:
    """End a key, unless that happened before. Raises NotFound."""
    revoked = await connection.execute(
        update(api_key)
        .where(api_key.c.api_key_id == api_key_id)
        .values(revoke_time=func.coalesce(api_key.c.revoke_time, now))
        .returning(api_key)
    )
    row = revoked.mappings().one_or_none()
    if row is None:
        raise not_found("api_key", api_key_id)
    return _api_key(row)


def _api_key(row: RowMapping) -> ApiKey:
    return ApiKey(
        api_key_id=row["api_key_id"],
        visible_prefix=row["visible_prefix"],
        role=Role(row["role"]),
        organization_id=row["organization_id"],
        customer_id=row["customer_id"],
        member_id=row["member_id"],
        agent_ids=tuple(row["agent_ids"]),
        customer_ids=tuple(row["customer_ids"]),
        description=row["description"],
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        revoke_time=row["revoke_time"],
    )
