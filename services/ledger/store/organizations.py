"""Organizations and their revenue share agreements. The connection's tenants bound what is found."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Select, func, literal_column, select, text
from sqlalchemy.dialects.postgresql import insert

from services.ledger.domain.directory import Freeze, Organization, RevenueShareAgreement, not_found
from services.ledger.store.directory_rows import Connection, insert_or_find, read_page
from services.ledger.store.directory_tables import organization, revenue_share_agreement

_FREEZE_PAYOUTS = text("SELECT ledger.freeze_payouts(:organization_id, :frozen, :reason, :actor_api_key_id)")


async def create_organization(
    connection: Connection, new: Organization, first: RevenueShareAgreement, request_hash: bytes
) -> tuple[Organization, RevenueShareAgreement]:
    """Create an organization with its first agreement, or find those that the same request created."""
    existing = await insert_or_find(
        connection,
        organization,
        {
            "organization_id": new.organization_id,
            "display_name": new.display_name,
            "request_hash": request_hash,
            "create_time": new.create_time,
        },
    )
    if existing is None:
        await insert_agreement(connection, first)
        return new, first
    found = await connection.execute(
        _AGREEMENT.where(
            revenue_share_agreement.c.organization_id == new.organization_id,
            revenue_share_agreement.c.effective_time == _BEGINNING,
        )
    )
    return _organization(existing), _agreement(found.mappings().one())


async def get_organization(connection: Connection, organization_id: str) -> Organization:
    """Raises NotFound."""
    found = await connection.execute(
        select(organization).where(organization.c.organization_id == organization_id)
    )
    row = found.mappings().one_or_none()
    if row is None:
        raise not_found("organization", organization_id)
    return _organization(row)


async def list_organizations(
    connection: Connection, *, only: str | None, after: str, limit: int
) -> list[Organization]:
    """By id. `only` one organization where no other is visible, which spares reading the others."""
    query = select(organization)
    if only is not None:
        query = query.where(organization.c.organization_id == only)
    return await read_page(connection, query, organization.c.organization_id, after, limit, _organization)


async def lock_organization(connection: Connection, organization_id: str) -> None:
    """Make whoever else locks the organization wait until the end of the transaction. Raises NotFound."""
    # FOR NO KEY UPDATE: those who only refer to the row, as a new agent does, do not wait.
    found = await connection.execute(
        select(organization.c.organization_id)
        .where(organization.c.organization_id == organization_id)
        .with_for_update(key_share=True)
    )
    if found.one_or_none() is None:
        raise not_found("organization", organization_id)


async def freeze_payouts(
    connection: Connection, organization_id: str, *, frozen: bool, reason: str, actor_api_key_id: str
) -> Organization:
    """Freeze an organization's payouts or let them go on, unless that is so already. Raises NotFound."""
    # Organizations never go away: what is seen here still holds when it is frozen.
    await get_organization(connection, organization_id)
    await connection.execute(
        _FREEZE_PAYOUTS,
        {
            "organization_id": organization_id,
            "frozen": frozen,
            "reason": reason,
            "actor_api_key_id": actor_api_key_id,
        },
    )
    return await get_organization(connection, organization_id)


# Python has no datetime for -infinity: it is spelled in SQL here, and None in the domain.
_BEGINNING: ColumnElement[datetime] = literal_column("'-infinity'::timestamptz")
_AGREEMENT: Select[Any] = select(
    *(column for column in revenue_share_agreement.c if column.name != "effective_time"),
    func.nullif(revenue_share_agreement.c.effective_time, _BEGINNING).label("effective_time"),
)


async def insert_agreement(connection: Connection, new: RevenueShareAgreement) -> None:
    """Record an agreement. The caller, who made or locked the organization, knows that it is the newest."""
    await connection.execute(
        insert(revenue_share_agreement)
        .values(
            organization_id=new.organization_id,
            effective_time=_BEGINNING if new.effective_time is None else new.effective_time,
            platform_fee_bps=new.platform_fee_bps,
            processing_fee_bps=new.processing_fee_bps,
            settlement_hold_days=new.settlement_hold_days,
            dispute_window_days=new.dispute_window_days,
            agreement_id=new.agreement_id,
            create_time=new.create_time,
        )
        # Or the primary key would be returned, and Python cannot hold -infinity.
        .inline()
    )


async def get_agreement(connection: Connection, agreement_id: str) -> RevenueShareAgreement:
    """An agreement that is known to exist."""
    found = await connection.execute(_AGREEMENT.where(revenue_share_agreement.c.agreement_id == agreement_id))
    return _agreement(found.mappings().one())


async def list_agreements(
    connection: Connection, organization_id: str, *, before: datetime | None, limit: int
) -> list[RevenueShareAgreement]:
    """Newest first, of those that start before `before`."""
    query = _AGREEMENT.where(revenue_share_agreement.c.organization_id == organization_id)
    if before is not None:
        query = query.where(revenue_share_agreement.c.effective_time < before)
    rows = await connection.execute(
        query.order_by(revenue_share_agreement.c.effective_time.desc()).limit(limit)
    )
    return [_agreement(row) for row in rows.mappings()]


def _organization(row: RowMapping) -> Organization:
    return Organization(
        organization_id=row["organization_id"],
        display_name=row["display_name"],
        create_time=row["create_time"],
        payouts_freeze=None
        if row["payouts_freeze_time"] is None
        else Freeze(row["payouts_freeze_reason"], row["payouts_freeze_time"]),
    )


def _agreement(row: RowMapping) -> RevenueShareAgreement:
    return RevenueShareAgreement(
        agreement_id=row["agreement_id"],
        organization_id=row["organization_id"],
        platform_fee_bps=row["platform_fee_bps"],
        processing_fee_bps=row["processing_fee_bps"],
        settlement_hold_days=row["settlement_hold_days"],
        dispute_window_days=row["dispute_window_days"],
        effective_time=row["effective_time"],
        create_time=row["create_time"],
    )
