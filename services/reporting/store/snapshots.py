"""The projection that answers, seen at one moment."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class Known:
    """A projection, and how far it has read the feeds."""

    projection_id: int
    journal_position: int
    usage_position: int
    # Up to when everything is known; None if nothing was heard yet.
    time: datetime | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A transaction that sees one moment, and the projection that answers in it."""

    connection: AsyncConnection
    known: Known

    @property
    def projection_id(self) -> int:
        return self.known.projection_id


# All figures of an answer are of one moment, whatever is applied while it is made.
_FREEZE = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

_SERVING = text("SELECT projection_id, journal_position, usage_position, as_of FROM reporting.serving()")


async def freeze(connection: AsyncConnection) -> None:
    """Let the transaction see the rows of one moment only. Must come before anything is read in it."""
    await connection.execute(_FREEZE)


async def find_serving(connection: AsyncConnection) -> Known | None:
    """The projection that answers; None while the first one is being made."""
    row = (await connection.execute(_SERVING)).one_or_none()
    if row is None:
        return None
    return Known(row.projection_id, row.journal_position, row.usage_position, row.as_of)
