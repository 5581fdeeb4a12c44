"""Metering put together: what `serve` runs, and what tests run in their own process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from services.kit.auth import Authenticator, CachedAuthenticator
from services.kit.client import connect
from services.kit.clock import Clock, SystemClock
from services.kit.db import Database
from services.kit.server import ServiceBinding, bind
from services.kit.worker import Worker
from services.metering.config import MeteringConfig
from services.metering.recovery import Recovery
from services.metering.rpc.confirmations import Confirmations
from services.metering.rpc.ledger import Ledger
from services.metering.rpc.metering import MeteringService
from services.metering.rpc.parties import Directory
from services.metering.rpc.pipeline import Pipeline
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.pricing import PricingService
from services.metering.valkey import ValkeyWatch
from tallystick.metering.v1 import (
    metering_service_pb2,
    metering_service_pb2_grpc,
    pricing_service_pb2,
    pricing_service_pb2_grpc,
)

_VALKEY_INTERVAL: Final = timedelta(seconds=1)
_SYSTEM_CLOCK: Final = SystemClock()


@dataclass(frozen=True, slots=True)
class App:
    """Everything that a server of metering consists of."""

    services: Sequence[ServiceBinding]
    authenticator: Authenticator
    workers: Sequence[Worker]


@asynccontextmanager
async def open_app(config: MeteringConfig, *, clock: Clock = _SYSTEM_CLOCK) -> AsyncIterator[App]:
    """Open database pools and the channel to the ledger, and put the services on top of them; PostgreSQL,
    Valkey and the ledger may still be away.
    """
    async with AsyncExitStack() as cleanup:
        writer, reader = _database(config, "metering_writer"), _database(config, "metering_reader")
        for database in (reader, writer):
            cleanup.push_async_callback(database.close)
        await writer.open()
        channel = connect(
            config.ledger_address,
            config.ledger_api_key,
            tls_ca=config.ledger_tls_ca_file,
            insecure=config.insecure,
        )
        cleanup.push_async_callback(channel.close)
        ledger = Ledger(channel)
        catalog = PriceCatalog(reader)
        confirmations = Confirmations(writer)
        # Before the pools: it waits for confirmations that still use them.
        cleanup.push_async_callback(confirmations.close)
        recovery = Recovery(writer=writer, ledger=ledger, delay=config.recovery_delay)
        workers: list[Worker] = [recovery.worker(config.recovery_interval)]
        if config.redis_url is not None:
            watch = ValkeyWatch(config.redis_url)
            cleanup.push_async_callback(watch.close)
            workers.append(watch.worker(_VALKEY_INTERVAL))
        pipeline = Pipeline(
            writer=writer,
            directory=Directory(ledger),
            catalog=catalog,
            ledger=ledger,
            confirmations=confirmations,
            clock=clock,
            recovery_delay=config.recovery_delay,
        )
        yield App(
            services=_bindings(
                MeteringService(pipeline=pipeline, reader=reader, ledger=ledger, clock=clock),
                PricingService(writer=writer, reader=reader, ledger=ledger, catalog=catalog, clock=clock),
            ),
            authenticator=CachedAuthenticator(ledger),
            workers=workers,
        )


def _database(config: MeteringConfig, role: str) -> Database:
    return Database(
        config.database_url,
        role=role,
        schema="metering",
        pool_size=config.pool_size,
        hot_pool_size=config.pool_size,
    )


def _bindings(metering: MeteringService, pricing: PricingService) -> tuple[ServiceBinding, ...]:
    return (
        bind(
            metering_service_pb2.DESCRIPTOR.services_by_name["MeteringService"],
            metering_service_pb2_grpc.add_MeteringServiceServicer_to_server,
            metering,
        ),
        bind(
            pricing_service_pb2.DESCRIPTOR.services_by_name["PricingService"],
            pricing_service_pb2_grpc.add_PricingServiceServicer_to_server,
            pricing,
        ),
    )
