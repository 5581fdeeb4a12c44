"""The ledger put together: what `serve` runs, and what tests run in their own process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.kit.auth import Authenticator, CachedAuthenticator
from services.kit.clock import SystemClock
from services.kit.db import Database
from services.kit.health import SchemaHealth
from services.kit.server import ServiceBinding, bind
from services.kit.worker import Worker
from services.ledger import aging, background, lots, reaper, sealer
from services.ledger.auditing import Auditor
from services.ledger.config import APPROVAL_REQUIRED, LedgerConfig
from services.ledger.migrations import SCRIPTS
from services.ledger.rpc.audits import AuditService
from services.ledger.rpc.credits import CreditService
from services.ledger.rpc.directory import DirectoryService
from services.ledger.rpc.earnings import EarningsService
from services.ledger.rpc.funding import FundingService
from services.ledger.rpc.ledger import LedgerService
from services.ledger.rpc.proofs import LedgerProofService
from services.ledger.store.api_keys import DatabaseKeyResolver
from tallystick.ledger.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    credit_service_pb2,
    credit_service_pb2_grpc,
    directory_service_pb2,
    directory_service_pb2_grpc,
    earnings_service_pb2,
    earnings_service_pb2_grpc,
    funding_service_pb2,
    funding_service_pb2_grpc,
    ledger_service_pb2,
    ledger_service_pb2_grpc,
    proof_service_pb2,
    proof_service_pb2_grpc,
)


@dataclass(frozen=True, slots=True)
class App:
    """Everything that a server of the ledger consists of."""

    services: Sequence[ServiceBinding]
    authenticator: Authenticator
    schema: SchemaHealth
    workers: Sequence[Worker]


@asynccontextmanager
async def open_app(config: LedgerConfig) -> AsyncIterator[App]:
    """Open the database pools and put the services on top of them; PostgreSQL may still be away."""
    writer = Database(
        config.database_url,
        role="ledger_writer",
        schema="ledger",
        pool_size=config.pool_size,
        hot_pool_size=config.pool_size,
    )
    reader = Database(config.database_url, role="ledger_reader", schema="ledger", pool_size=config.pool_size)
    await writer.open()
    await reader.open()
    clock = SystemClock()
    auditor = Auditor(config.database_url, writer, reader, clock, interval=config.audit_interval)
    try:
        ledger = LedgerService(
            writer,
            reader,
            clock,
            adjustments_need_approval=config.adjustment_approval == APPROVAL_REQUIRED,
        )
        credits = CreditService(
            writer, reader, clock, lease_duration=config.lease_duration, lease_drain=config.lease_drain
        )
        directory = DirectoryService(writer, reader, clock)
        yield App(
            services=(
                bind(
                    ledger_service_pb2.DESCRIPTOR.services_by_name["LedgerService"],
                    ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server,
                    ledger,
                ),
                bind(
                    credit_service_pb2.DESCRIPTOR.services_by_name["CreditService"],
                    credit_service_pb2_grpc.add_CreditServiceServicer_to_server,
                    credits,
                ),
                bind(
                    earnings_service_pb2.DESCRIPTOR.services_by_name["EarningsService"],
                    earnings_service_pb2_grpc.add_EarningsServiceServicer_to_server,
                    EarningsService(writer, reader),
                ),
                bind(
                    funding_service_pb2.DESCRIPTOR.services_by_name["FundingService"],
                    funding_service_pb2_grpc.add_FundingServiceServicer_to_server,
                    FundingService(writer, reader),
                ),
                bind(
                    proof_service_pb2.DESCRIPTOR.services_by_name["LedgerProofService"],
                    proof_service_pb2_grpc.add_LedgerProofServiceServicer_to_server,
                    LedgerProofService(reader),
                ),
                bind(
                    directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"],
                    directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server,
                    directory,
                ),
                bind(
                    audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
                    audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
                    AuditService(auditor, reader),
                ),
            ),
            authenticator=CachedAuthenticator(DatabaseKeyResolver(reader)),
            schema=SchemaHealth(reader, schema="ledger", script_dir=SCRIPTS),
            workers=[
                *background.workers(config, writer, reader),
                *reaper.workers(config, writer, reader),
                *sealer.workers(config, writer, reader),
                *lots.workers(config, writer),
                *aging.workers(config, writer, reader),
                auditor,
            ],
        )
    finally:
        await auditor.close()
        await reader.close()
        await writer.close()
