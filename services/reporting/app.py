"""Reporting put together: what `serve` runs, and what tests run in their own process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
from starlette.types import ASGIApp

from services.kit.auth import Authenticator, CachedAuthenticator
from services.kit.client import connect
from services.kit.clock import Clock, SystemClock
from services.kit.db import Database
from services.kit.health import SchemaHealth
from services.kit.keys import LedgerKeys
from services.kit.model_costs import Catalogue
from services.kit.server import ServiceBinding, bind
from services.kit.web import WebServer
from services.kit.worker import Worker
from services.reporting.config import ReportingConfig
from services.reporting.migrations import SCRIPTS
from services.reporting.projector import Projector
from services.reporting.rpc.journal_feed import JournalReader
from services.reporting.rpc.payouts import Payouts
from services.reporting.rpc.projections import ProjectionService
from services.reporting.rpc.reporting import ReportingService
from services.reporting.rpc.usage_feed import UsageReader
from services.reporting.web.app import make_dashboard
from services.reporting.web.backend import Channels
from tallystick.reporting.v1 import (
    projection_service_pb2,
    projection_service_pb2_grpc,
    reporting_service_pb2,
    reporting_service_pb2_grpc,
)


@dataclass(frozen=True, slots=True)
class App:
    """Everything that a server of reporting consists of."""

    services: Sequence[ServiceBinding]
    authenticator: Authenticator
    # The web server is one of them.
    workers: Sequence[Worker]
    schema: SchemaHealth
    web: WebServer
    projector: Projector


@asynccontextmanager
async def open_app(
    config: ReportingConfig, *, clock: Clock | None = None, catalogue: Catalogue | None = None
) -> AsyncIterator[App]:
    """Open database pools and the channels to the other services, and put the services on top of them; all of
    these may still be away. `clock` and `catalogue` are those to go by, if not those of the machine and the
    release.

    Raises StartupError if the address of the web server is taken.
    """
    async with AsyncExitStack() as cleanup:
        writer, reader = _database(config, "reporting_writer"), _database(config, "reporting_reader")
        for database in (reader, writer):
            cleanup.push_async_callback(database.close)
            await database.open()
        clock = clock or SystemClock()
        ledger, metering, payouts = (
            _connect(config, address, config.service_api_key)
            for address in (config.ledger_address, config.metering_address, config.payouts_address)
        )
        for channel in (ledger, metering, payouts):
            cleanup.push_async_callback(channel.close)
        catalogue = catalogue or Catalogue.load()
        projector = Projector(
            writer=writer,
            usage=UsageReader(metering, catalogue),
            journal=JournalReader(ledger),
            clock=clock,
            batch_size=config.feed_batch_size,
            removal_delay=config.removal_delay,
        )
        authenticator = CachedAuthenticator(LedgerKeys(ledger))
        web = WebServer(_dashboard(config, authenticator, clock, cleanup), config.web_address)
        cleanup.callback(web.close)
        yield App(
            services=(
                bind(
                    reporting_service_pb2.DESCRIPTOR.services_by_name["ReportingService"],
                    reporting_service_pb2_grpc.add_ReportingServiceServicer_to_server,
                    ReportingService(
                        reader=reader, payouts=Payouts(payouts), catalogue=catalogue.name, clock=clock
                    ),
                ),
                bind(
                    projection_service_pb2.DESCRIPTOR.services_by_name["ProjectionService"],
                    projection_service_pb2_grpc.add_ProjectionServiceServicer_to_server,
                    ProjectionService(reader=reader, writer=writer, begin=projector.begin, clock=clock),
                ),
            ),
            authenticator=authenticator,
            workers=[web, *projector.workers(config.feed_interval)],
            schema=SchemaHealth(reader, schema="reporting", script_dir=SCRIPTS),
            web=web,
            projector=projector,
        )


def _dashboard(
    config: ReportingConfig, authenticator: Authenticator, clock: Clock, cleanup: AsyncExitStack
) -> ASGIApp:
    """The web pages. They ask the services as whoever is signed in, so their channels have no key."""

    def channel(address: str) -> grpc.aio.Channel:
        opened = _connect(config, address, None)
        cleanup.push_async_callback(opened.close)
        return opened

    return make_dashboard(
        channels=Channels(
            ledger=channel(config.ledger_address),
            metering=channel(config.metering_address),
            payouts=channel(config.payouts_address),
            reporting=channel(config.reached_at),
        ),
        authenticator=authenticator,
        session_secrets=config.secrets,
        public_url=config.public_url,
        clock=clock,
    )


def _connect(config: ReportingConfig, address: str, api_key: str | None) -> grpc.aio.Channel:
    return connect(address, api_key, tls_ca=config.tls_ca_file, insecure=config.insecure)


def _database(config: ReportingConfig, role: str) -> Database:
    return Database(config.database_url, role=role, schema="reporting", pool_size=config.pool_size)
