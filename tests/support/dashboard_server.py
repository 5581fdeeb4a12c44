"""The dashboard in the test's own process, before gRPC servers of a made-up world.

Roles are checked by the interceptor of the kit, from the protos; tenants by the world, as the services do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from services.kit.client import connect
from services.kit.clock import FixedClock
from services.kit.server import RpcServer, ServiceBinding, bind, build_server
from services.reporting.web.app import make_dashboard
from services.reporting.web.backend import Channels
from services.reporting.web.headers import SecuredStarlette
from tallystick.ledger.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    directory_service_pb2,
    directory_service_pb2_grpc,
    ledger_service_pb2,
    ledger_service_pb2_grpc,
)
from tallystick.metering.v1 import (
    metering_service_pb2,
    metering_service_pb2_grpc,
    period_service_pb2,
    period_service_pb2_grpc,
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    rating_service_pb2,
    rating_service_pb2_grpc,
    subscription_service_pb2,
    subscription_service_pb2_grpc,
)
from tallystick.payouts.v1 import (
    connect_service_pb2,
    connect_service_pb2_grpc,
    payment_service_pb2,
    payment_service_pb2_grpc,
    payout_service_pb2,
    payout_service_pb2_grpc,
    reconciliation_service_pb2,
    reconciliation_service_pb2_grpc,
)
from tallystick.reporting.v1 import (
    projection_service_pb2,
    projection_service_pb2_grpc,
    reporting_service_pb2,
    reporting_service_pb2_grpc,
)
from tests.support.dashboard_agreements import Periods, Subscriptions
from tests.support.dashboard_services import (
    Audits,
    Connect,
    Directory,
    Ledger,
    Metering,
    Payments,
    Payouts,
    Pricing,
    Projections,
    Rating,
    Reconciliation,
    Reporting,
)
from tests.support.dashboard_world import (
    NOW,
    PUBLIC_URL,
    SESSION_SECRET,
    World,
)


def _bound(module: Any, name: str, register: Callable[..., None], kind: Any, world: World) -> ServiceBinding:
    # What a kind leaves out is answered UNIMPLEMENTED, by its base.
    return bind(module.DESCRIPTOR.services_by_name[name], register, kind(world))


def _bindings(world: World) -> dict[str, list[ServiceBinding]]:
    return {
        "ledger": [
            _bound(
                directory_service_pb2,
                "DirectoryService",
                directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server,
                Directory,
                world,
            ),
            _bound(
                ledger_service_pb2,
                "LedgerService",
                ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server,
                Ledger,
                world,
            ),
            _bound(
                audit_service_pb2,
                "AuditService",
                audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
                Audits,
                world,
            ),
        ],
        "metering": [
            _bound(
                metering_service_pb2,
                "MeteringService",
                metering_service_pb2_grpc.add_MeteringServiceServicer_to_server,
                Metering,
                world,
            ),
            _bound(
                pricing_service_pb2,
                "PricingService",
                pricing_service_pb2_grpc.add_PricingServiceServicer_to_server,
                Pricing,
                world,
            ),
            _bound(
                subscription_service_pb2,
                "SubscriptionService",
                subscription_service_pb2_grpc.add_SubscriptionServiceServicer_to_server,
                Subscriptions,
                world,
            ),
            _bound(
                period_service_pb2,
                "PeriodService",
                period_service_pb2_grpc.add_PeriodServiceServicer_to_server,
                Periods,
                world,
            ),
            _bound(
                rating_service_pb2,
                "RatingService",
                rating_service_pb2_grpc.add_RatingServiceServicer_to_server,
                Rating,
                world,
            ),
        ],
        "payouts": [
            _bound(
                payout_service_pb2,
                "PayoutService",
                payout_service_pb2_grpc.add_PayoutServiceServicer_to_server,
                Payouts,
                world,
            ),
            _bound(
                connect_service_pb2,
                "ConnectService",
                connect_service_pb2_grpc.add_ConnectServiceServicer_to_server,
                Connect,
                world,
            ),
            _bound(
                payment_service_pb2,
                "PaymentService",
                payment_service_pb2_grpc.add_PaymentServiceServicer_to_server,
                Payments,
                world,
            ),
            _bound(
                reconciliation_service_pb2,
                "ReconciliationService",
                reconciliation_service_pb2_grpc.add_ReconciliationServiceServicer_to_server,
                Reconciliation,
                world,
            ),
        ],
        "reporting": [
            _bound(
                reporting_service_pb2,
                "ReportingService",
                reporting_service_pb2_grpc.add_ReportingServiceServicer_to_server,
                Reporting,
                world,
            ),
            _bound(
                projection_service_pb2,
                "ProjectionService",
                projection_service_pb2_grpc.add_ProjectionServiceServicer_to_server,
                Projections,
                world,
            ),
        ],
    }


@dataclass(frozen=True)
class Served:
    """The dashboard, with its world behind it."""

    app: SecuredStarlette
    world: World
    clock: FixedClock
    servers: dict[str, RpcServer]

    async def stop(self, service: str) -> None:
        """Let a service be away for good."""
        await self.servers[service].stop(timedelta(0))


@asynccontextmanager
async def dashboard(world: World, *, public_url: str = PUBLIC_URL) -> AsyncIterator[Served]:
    """The dashboard before the services of `world`."""
    async with AsyncExitStack() as cleanup:
        channels, servers = {}, {}
        for name, bindings in _bindings(world).items():
            server = build_server(services=bindings, authenticator=world)
            address = server.listen("127.0.0.1:0")
            await server.start()
            cleanup.push_async_callback(server.stop, timedelta(0))
            servers[name] = server
            channels[name] = await cleanup.enter_async_context(connect(address, None))
        clock = FixedClock(NOW)
        app = make_dashboard(
            channels=Channels(**channels),
            authenticator=world,
            session_secrets=[SESSION_SECRET],
            public_url=public_url,
            clock=clock,
        )
        yield Served(app, world, clock, servers)
