"""Ways back from the payment processor's pages, by the hash of their secret."""

from datetime import datetime
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.payouts.store.tables import onboarding_session

# How often one may be used: a person needs it some times, a loop for ever.
_MOST_USES: Final = 50


async def create(
    connection: AsyncConnection, secret_hash: bytes, organization_id: str, expire_time: datetime
) -> None:
    """Let the bearer of a secret come back until `expire_time`."""
    await connection.execute(
        insert(onboarding_session).values(
            secret_hash=secret_hash, organization_id=organization_id, expire_time=expire_time, use_count=0
        )
    )


async def use(connection: AsyncConnection, secret_hash: bytes, now: datetime) -> str | None:
    """The organization for which the bearer of a secret may act now, which is counted; None if it is over.

    Counted by the statement that looks, so that uses at once do not pass the limit together.
    """
    used = await connection.execute(
        update(onboarding_session)
        .where(
            onboarding_session.c.secret_hash == secret_hash,
            onboarding_session.c.expire_time > now,
            onboarding_session.c.use_count < _MOST_USES,
        )
        .values(use_count=onboarding_session.c.use_count + 1)
        .returning(onboarding_session.c.organization_id)
    )
    row = used.one_or_none()
    return None if row is None else row.organization_id


async def is_known(connection: AsyncConnection, secret_hash: bytes) -> bool:
    """Whether there was such a secret, not long ago."""
    found = await connection.execute(
        select(onboarding_session.c.organization_id).where(onboarding_session.c.secret_hash == secret_hash)
    )
    return found.one_or_none() is not None


async def delete_expired(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Forget up to `limit` that ended before; how many."""
    ended = (
        select(onboarding_session.c.secret_hash)
        .where(onboarding_session.c.expire_time < before)
        .order_by(onboarding_session.c.expire_time)
        .limit(limit)
        # Whoever else does the same takes others.
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    deleted = await connection.execute(
        delete(onboarding_session).where(onboarding_session.c.secret_hash.in_(ended))
    )
    return deleted.rowcount
