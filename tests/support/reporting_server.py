"""A real reporting server in the test's own process, on a free port, with keys to call it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import psycopg

from services.kit.auth import CachedAuthenticator
from services.kit.client import connect
from services.kit.clock import Clock
from services.kit.keys import LedgerKeys
from services.kit.model_costs import Catalogue
from services.kit.server import build_server
from services.reporting.app import App, open_app
from services.reporting.config import ReportingConfig
from tallystick.reporting.v1.projection_service_pb2_grpc import ProjectionServiceStub
from tallystick.reporting.v1.reporting_service_pb2_grpc import ReportingServiceStub
from tests.support.ledger_server import LedgerServer

if TYPE_CHECKING:
    # Known to type checkers only.
    from tallystick.reporting.v1.projection_service_pb2_grpc import ProjectionServiceAsyncStub
    from tallystick.reporting.v1.reporting_service_pb2_grpc import ReportingServiceAsyncStub


@dataclass(frozen=True)
class Caller:
    """The services of reporting as one API key reaches them."""

    reporting: ReportingServiceAsyncStub
    projections: ProjectionServiceAsyncStub


@dataclass
class ReportingServer:
    """A reporting that runs, and the ledger that knows its callers' keys."""

    address: str
    database_url: str
    ledger: LedgerServer
    app: App
    _channels: list[grpc.aio.Channel] = field(default_factory=list)

    def caller(self, key: str) -> Caller:
        """The services as the bearer of this key reaches them."""
        channel = connect(self.address, key)
        self._channels.append(channel)
        return Caller(ReportingServiceStub(channel), ProjectionServiceStub(channel))

    @property
    def operator(self) -> Caller:
        return self.caller(self.ledger.operator.key)

    async def catch_up(self) -> None:
        """Read both feeds to their ends, beside the workers or instead of them."""
        while await self.app.projector.follow():
            pass

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows, as the superuser sees them."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement.encode()).fetchall()


@asynccontextmanager
async def running_reporting(
    database_url: str,
    ledger: LedgerServer,
    *,
    ledger_address: str | None = None,
    metering_address: str | None = None,
    clock: Clock | None = None,
    catalogue: Catalogue | None = None,
    workers: bool = True,
    **settings: Any,
) -> AsyncIterator[ReportingServer]:
    """Serve reporting on this database until the end of the `async with`, with its workers.

    The addresses are those of the feeds, the ledger's own if not given; `settings` are fields of its
    configuration. Keys are remembered for an hour, so that tests may take the ledger away.
    """
    ledger_address = ledger_address or ledger.address
    config = ReportingConfig(
        **{
            "database_url": database_url,
            "ledger_address": ledger_address,
            "metering_address": metering_address or ledger_address,
            "service_api_key": ledger.service.key,
            "web_address": "127.0.0.1:0",
            "session_secrets": "s" * 32,
            "feed_interval": timedelta(milliseconds=20),
            "removal_delay": timedelta(0),
            **settings,
        }
    )
    async with (
        open_app(config, clock=clock, catalogue=catalogue) as app,
        connect(ledger.address, ledger.service.key) as channel,
    ):
        authenticator = CachedAuthenticator(LedgerKeys(channel), ttl=timedelta(hours=1))
        server = build_server(services=app.services, authenticator=authenticator)
        address = server.listen("127.0.0.1:0")
        await server.start()
        running = app.workers if workers else ()
        for worker in running:
            worker.start()
        reporting = ReportingServer(address, database_url, ledger, app)
        try:
            yield reporting
        finally:
            for caller_channel in reporting._channels:
                await caller_channel.close()
            await server.stop(timedelta(seconds=2))
            for worker in running:
                await worker.stop(timedelta(seconds=2))
