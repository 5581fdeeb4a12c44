"""Members of organizations. The connection's tenants bound what is found."""

from datetime import datetime

from sqlalchemy import RowMapping, func, select, update

from services.kit.auth import Role
from services.ledger.domain.directory import Member, not_found
from services.ledger.store.directory_rows import Connection, insert_or_find, read_page
from services.ledger.store.directory_tables import api_key, member
from services.ledger.store.organizations import get_organization


async def create_member(connection: Connection, new: Member, request_hash: bytes) -> Member:
    """Add a member, or find the one that the same request added. Raises NotFound for its organization."""
    # Organizations never go away: what is seen here still holds at the insert.
    await get_organization(connection, new.organization_id)
    existing = await insert_or_find(
        connection,
        member,
        {
            "member_id": new.member_id,
            "organization_id": new.organization_id,
            "role": new.role.value,
            "request_hash": request_hash,
            "create_time": new.create_time,
        },
    )
    return new if existing is None else _member(existing)


async def list_members(
    connection: Connection, organization_id: str, *, after: str, limit: int
) -> list[Member]:
    """The members of an organization by id, removed ones too."""
    query = select(member).where(member.c.organization_id == organization_id)
    return await read_page(connection, query, member.c.member_id, after, limit, _member)


async def lock_active_member(connection: Connection, member_id: str, organization_id: str) -> Member:
    """A member that stays until the end of the transaction. Raises NotFound for one that was removed."""
    # FOR SHARE: the removal of the member, which would miss a key not yet committed, waits for us; other keys
    # that are made for the member at the same time do not.
    found = await connection.execute(
        select(member)
        .where(
            member.c.member_id == member_id,
            member.c.organization_id == organization_id,
            member.c.delete_time.is_(None),
        )
        .with_for_update(read=True)
    )
    row = found.mappings().one_or_none()
    if row is None:
        raise not_found("member", member_id)
    return _member(row)


async def delete_member(connection: Connection, member_id: str, now: datetime) -> Member:
    """Remove a member, unless that happened before, and revoke its API keys. Raises NotFound."""
    # The member first: whoever is making a key for it is waited for here, and the next statement sees it.
    deleted = await connection.execute(
        update(member)
        .where(member.c.member_id == member_id)
        .values(delete_time=func.coalesce(member.c.delete_time, now))
        .returning(member)
    )
    row = deleted.mappings().one_or_none()
    if row is None:
        raise not_found("member", member_id)
    await connection.execute(
        update(api_key)
        .where(api_key.c.member_id == member_id, api_key.c.revoke_time.is_(None))
        .values(revoke_time=now)
    )
    return _member(row)


def _member(row: RowMapping) -> Member:
    return Member(
        member_id=row["member_id"],
        organization_id=row["organization_id"],
        role=Role(row["role"]),
        create_time=row["create_time"],
        delete_time=row["delete_time"],
    )
