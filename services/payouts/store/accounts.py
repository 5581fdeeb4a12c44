"""Connected accounts, as they were last read at the payment processor."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, case, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.pages import Page
from services.payouts.domain.account import AccountState, ConnectedAccount, Requirement
from services.payouts.store.tables import connected_account


async def create(connection: AsyncConnection, new: ConnectedAccount) -> bool:
    """Create an account that the payment processor does not have yet. False if the organization has one."""
    statement = (
        insert(connected_account)
        .values(**_values(new))
        .on_conflict_do_nothing()
        .returning(connected_account.c.organization_id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def find(connection: AsyncConnection, organization_id: str) -> ConnectedAccount | None:
    """The account of an organization, if the connection's tenants may see it."""
    return await _one(connection, connected_account.c.organization_id == organization_id)


async def find_by_stripe_id(connection: AsyncConnection, stripe_account_id: str) -> ConnectedAccount | None:
    """The account with this id at the payment processor, if the connection's tenants may see it."""
    return await _one(connection, connected_account.c.stripe_account_id == stripe_account_id)


async def save(
    connection: AsyncConnection, before: ConnectedAccount, after: ConnectedAccount
) -> ConnectedAccount | None:
    """Write an account, unless somebody else changed it since `before`.

    Answers it as it is then, or None: then read it again at the payment processor, since what was read may be
    older than what somebody else has written.
    """
    saved = dataclasses.replace(after, version=before.version + 1)
    statement = (
        update(connected_account)
        .where(
            connected_account.c.organization_id == before.organization_id,
            connected_account.c.version == before.version,
        )
        .values(**_values(saved))
        .returning(connected_account.c.organization_id)
    )
    return None if (await connection.execute(statement)).one_or_none() is None else saved


# As ConnectedAccount.state.
_state = case(
    (
        connected_account.c.deauthorized | connected_account.c.disabled_reason.startswith("rejected."),
        AccountState.DISCONNECTED,
    ),
    (connected_account.c.transfers_status == "active", AccountState.ACTIVE),
    (connected_account.c.details_submitted, AccountState.RESTRICTED),
    else_=AccountState.ONBOARDING,
)


async def list_by_organization(
    connection: AsyncConnection, state: AccountState | None, page: Page
) -> Sequence[ConnectedAccount]:
    """One page of accounts, of one state unless it is None, by organization; keyset (organization_id,)."""
    statement = select(connected_account).order_by(connected_account.c.organization_id).limit(page.limit)
    if state is not None:
        statement = statement.where(_state == state)
    if page.after is not None:
        statement = statement.where(connected_account.c.organization_id > page.after[0])
    return [_account(row) for row in await connection.execute(statement)]


async def list_since_refresh(
    connection: AsyncConnection, before: datetime, limit: int
) -> Sequence[ConnectedAccount]:
    """Accounts at the payment processor that were not read since `before`, the longest ago first."""
    statement = (
        select(connected_account)
        .where(connected_account.c.stripe_account_id.is_not(None), connected_account.c.refresh_time < before)
        .order_by(connected_account.c.refresh_time)
        .limit(limit)
    )
    return [_account(row) for row in await connection.execute(statement)]


async def _one(connection: AsyncConnection, test: ColumnElement[bool]) -> ConnectedAccount | None:
    row = (await connection.execute(select(connected_account).where(test))).one_or_none()
    return None if row is None else _account(row)


def _values(of: ConnectedAccount) -> dict[str, Any]:
    return dataclasses.asdict(of)


def _account(row: "Row[Any]") -> ConnectedAccount:
    columns = row._asdict()
    requirements = tuple(Requirement(**one) for one in columns.pop("requirements"))
    return ConnectedAccount(**columns, requirements=requirements)
