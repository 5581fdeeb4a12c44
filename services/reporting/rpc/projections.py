"""ProjectionService: how far reporting has read, and reading everything again."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from services.kit.auth import current_principal
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.tenancy import scope, tenants_of
from services.kit.times import optional_timestamp, timestamp
from services.reporting.domain.projection import Progress, Projection
from services.reporting.store import projections
from tallystick.reporting.v1 import projection_pb2, projection_service_pb2_grpc
from tallystick.reporting.v1 import projection_service_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]


class ProjectionService(projection_service_pb2_grpc.ProjectionServiceServicer):
    """Serves ProjectionService."""

    def __init__(
        self, *, reader: Database, writer: Database, begin: Callable[[], Awaitable[int]], clock: Clock
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._begin = begin
        self._clock = clock

    async def ListProjections(
        self, request: pb.ListProjectionsRequest, context: Context
    ) -> pb.ListProjectionsResponse:
        found = await self._list(self._reader)
        now = self._clock.now()
        return pb.ListProjectionsResponse(projections=[_to_proto(one, now) for one in found])

    async def RebuildProjection(
        self, request: pb.RebuildProjectionRequest, context: Context
    ) -> pb.RebuildProjectionResponse:
        projection_id = await self._begin()
        # By the writer: what it just wrote is certainly there.
        begun = next(one for one in await self._list(self._writer) if one.projection_id == projection_id)
        return pb.RebuildProjectionResponse(projection=_to_proto(begun, self._clock.now()))

    async def _list(self, database: Database) -> list[Projection]:
        async with database.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            return await projections.list_all(connection)


def _to_proto(projection: Projection, now: datetime) -> projection_pb2.Projection:
    return projection_pb2.Projection(
        projection_id=projection.projection_id,
        state=projection_pb2.ProjectionState.Value(f"PROJECTION_STATE_{projection.state.name}"),
        feeds=[_progress_to_proto(progress, now) for _, progress in sorted(projection.feeds.items())],
        create_time=timestamp(projection.create_time),
        serve_time=optional_timestamp(projection.serve_time),
    )


def _progress_to_proto(progress: Progress, now: datetime) -> projection_pb2.FeedProgress:
    return projection_pb2.FeedProgress(
        feed=progress.feed,
        log_id=progress.log_id,
        position=progress.position,
        head_position=progress.head_position,
        lag=_duration(progress.lag(now)),
        hear_time=optional_timestamp(progress.hear_time),
    )


def _duration(length: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(length)
    return message
