"""What the RPCs of reporting share: one moment of the projection that answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import grpc

from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import Aborted, Unavailable
from services.kit.tenancy import Tenants, scope
from services.reporting.store import snapshots
from services.reporting.store.snapshots import Known, Snapshot

Context = grpc.aio.ServicerContext[Any, Any]

# The first projection of a long history takes minutes; a new installation has one at once.
_NOTHING_YET: Final = timedelta(seconds=2)


class ReportingBase:
    """Holds the pool of the reader's database role."""

    def __init__(self, reader: Database, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock

    @asynccontextmanager
    async def _snapshot(self, tenants: Tenants) -> AsyncIterator[Snapshot]:
        """One moment of what is known, of these tenants only. Raises Unavailable while there is nothing."""
        async with self._reader.begin() as connection:
            await snapshots.freeze(connection)
            await scope(connection, tenants)
            known = await snapshots.find_serving(connection)
            if known is None:
                raise Unavailable(
                    "reporting is still reading the feeds for the first time", retry_after=_NOTHING_YET
                )
            yield Snapshot(connection, known)

    @asynccontextmanager
    async def _same_projection(self, tenants: Tenants, known: Known) -> AsyncIterator[Snapshot]:
        """A later moment of the projection that a long answer was begun with.

        Raises Aborted if another one has taken its place: its rows may be of another log, and these here are
        being removed.
        """
        async with self._snapshot(tenants) as snapshot:
            if snapshot.projection_id != known.projection_id:
                raise Aborted("reporting has read the feeds anew since this answer was begun: ask again")
            yield snapshot
