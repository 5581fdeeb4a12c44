"""Idempotency keys of requests that are not charges."""

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.errors import AlreadyExists
from services.ledger.store.directory_tables import idempotency


async def claim(
    connection: AsyncConnection, owner_id: str, operation: str, key: str, request_hash: bytes, outcome: str
) -> str | None:
    """Let `key` of this owner and operation stand for `outcome`: None if it was new.

    Otherwise the outcome of the first such request; raises AlreadyExists if that was another one.

    The claim comes before the effect, in its transaction: a concurrent repetition waits here until that one
    ends, and then finds the claim, or makes it if that one was rolled back.
    """
    stored_key = f"{operation}/{key}"
    claimed = await connection.execute(
        insert(idempotency)
        .values(owner_id=owner_id, key=stored_key, request_hash=request_hash, outcome=outcome)
        .on_conflict_do_nothing()
        .returning(idempotency.c.outcome)
    )
    if claimed.one_or_none() is not None:
        return None
    first = (
        await connection.execute(
            select(idempotency.c.request_hash, idempotency.c.outcome).where(
                idempotency.c.owner_id == owner_id, idempotency.c.key == stored_key
            )
        )
    ).one()
    if first.request_hash != request_hash:
        raise AlreadyExists(
            "this idempotency key was used before with another request",
            reason="IDEMPOTENCY_KEY_REUSED",
            metadata={"key": key},
        )
    return str(first.outcome)
