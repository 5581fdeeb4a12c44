"""The health of a server, asked by anybody by `grpc.health.v1.Health`, and that of its schema."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy.exc
from grpc_health.v1 import health, health_pb2
from sqlalchemy import text

from services.kit import log, migrations
from services.kit.db import Database, check_identifier

# The name under which health tells of the schema.
SCHEMA_SERVICE: Final = "tallystick.schema"

# SQLSTATE of what is missing, or was made by a version whose `migrate` did not let us look.
_NOT_MIGRATED: Final = {"42P01", "3F000", "42501"}
_log = log.get_logger()

_UNKNOWN: Final[int] = health_pb2.HealthCheckResponse.UNKNOWN
_SERVING: Final[int] = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final[int] = health_pb2.HealthCheckResponse.NOT_SERVING


class SchemaHealth:
    """Whether a schema is as this version of the code wants it.

    SERVING: it is, or a newer version has migrated it, under which this one keeps working. NOT_SERVING:
    `migrate` has to run. UNKNOWN: the database does not answer, or was never migrated.

    Anybody may ask, without a key, so the database is asked once in `ttl` at most.
    """

    def __init__(
        self,
        reader: Database,
        *,
        schema: str,
        script_dir: Path,
        ttl: timedelta = timedelta(seconds=5),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._query = text(f"SELECT version_num FROM {check_identifier(schema)}.alembic_version")  # noqa: S608
        self._schema = schema
        self._script_dir = script_dir
        self._ttl = ttl.total_seconds()
        self._monotonic = monotonic
        self._asking = asyncio.Lock()
        self._asked_at: float | None = None
        self._status = _UNKNOWN
        self._versions: list[str] = []

    async def status(self) -> int:
        """How the schema is now, or was a moment ago."""
        async with self._asking:
            now = self._monotonic()
            if self._asked_at is None or now - self._asked_at >= self._ttl:
                self._status = await self._ask()
                self._asked_at = now
            return self._status

    async def _ask(self) -> int:
        if not self._versions:
            self._versions = await asyncio.to_thread(migrations.versions, self._script_dir)
        try:
            async with self._reader.begin() as connection:
                found = (await connection.execute(self._query)).scalar_one_or_none()
        except sqlalchemy.exc.DBAPIError as error:
            found = None
            if getattr(error.orig, "sqlstate", None) not in _NOT_MIGRATED:
                return _UNKNOWN
        except (sqlalchemy.exc.TimeoutError, OSError):
            return _UNKNOWN
        newest = self._versions[0]
        if found is None or (found in self._versions and found != newest):
            _log.error("schema.behind", schema=self._schema, found=found, wanted=newest)
            return _NOT_SERVING
        return _SERVING


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]
    """grpcio's own, which also knows the schema."""

    def __init__(self, schema: SchemaHealth | None) -> None:
        super().__init__()
        self._schema = schema

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        if self._schema is not None and request.service == SCHEMA_SERVICE:
            return health_pb2.HealthCheckResponse(status=await self._schema.status())
        return await super().Check(request, context)
