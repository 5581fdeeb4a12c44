"""A real reporting server in the test's own process, for the callers that a test makes up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import Message

from services.kit.auth import Principal, Role
from services.kit.client import connect
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import InvalidArgument, Unauthenticated
from services.kit.server import bind, build_server
from services.kit.status import to_grpc_status
from services.reporting.rpc.payouts import Payouts
from services.reporting.rpc.reporting import ReportingService
from tallystick.payouts.v1 import payout_service_pb2
from tallystick.reporting.v1 import reporting_service_pb2, reporting_service_pb2_grpc

if TYPE_CHECKING:
    # Known to type checkers only.
    from tallystick.reporting.v1.reporting_service_pb2_grpc import ReportingServiceAsyncStub

Context = grpc.aio.ServicerContext[Any, Any]

REPORTING: Final = reporting_service_pb2.DESCRIPTOR.services_by_name["ReportingService"]
CATALOGUE: Final = "a catalogue of tests"


class Callers:
    """Who calls: a key is the name of a role, with the id of whom it belongs to behind a slash."""

    async def authenticate(self, api_key: str) -> Principal:
        name, _, owner_id = api_key.partition("/")
        if name not in set(Role):
            raise Unauthenticated("the API key is unknown, revoked or expired")
        return Principal(
            api_key_id=f"key_{name}",
            role=Role(name),
            organization_id=owner_id if owner_id.startswith("org_") else None,
            customer_id=owner_id if owner_id.startswith("cus_") else None,
        )


class FakePayouts:
    """Payouts that a test makes up, the newest first. Pages as payouts does, with a simpler token."""

    def __init__(self) -> None:
        self.payouts: list[payout_service_pb2.GetPayoutResponse] = []
        self.asked_for: list[str] = []
        self.away = False

    async def ListPayouts(
        self, request: payout_service_pb2.ListPayoutsRequest, context: Context
    ) -> payout_service_pb2.ListPayoutsResponse:
        if self.away:
            # As gRPC itself says it.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "")
        self.asked_for.append(request.organization_id)
        found = [one.payout for one in self.payouts if one.payout.organization_id == request.organization_id]
        if not (request.page_token or "0").isdecimal():
            await context.abort_with_status(
                to_grpc_status(InvalidArgument("page_token is damaged", reason="INVALID_PAGE_TOKEN"))
            )
        start = int(request.page_token or 0)
        end = start + request.page_size
        return payout_service_pb2.ListPayoutsResponse(
            payouts=found[start:end], next_page_token=str(end) if end < len(found) else ""
        )

    async def GetPayout(
        self, request: payout_service_pb2.GetPayoutRequest, context: Context
    ) -> payout_service_pb2.GetPayoutResponse:
        return next(one for one in self.payouts if one.payout.payout_id == request.payout_id)

    def handler(self) -> grpc.GenericRpcHandler:
        """What serves it."""
        pb = payout_service_pb2
        handlers: Any = {
            name: grpc.unary_unary_rpc_method_handler(
                method, request_deserializer=request.FromString, response_serializer=_serialized
            )
            for name, method, request in (
                ("ListPayouts", self.ListPayouts, pb.ListPayoutsRequest),
                ("GetPayout", self.GetPayout, pb.GetPayoutRequest),
            )
        }
        return grpc.method_handlers_generic_handler("tallystick.payouts.v1.PayoutService", handlers)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


@dataclass
class ReportingServer:
    """A reporting that runs, and what stands in for payouts."""

    address: str
    payouts: FakePayouts
    _stack: AsyncExitStack = field(repr=False)

    async def caller(self, key: str) -> ReportingServiceAsyncStub:
        """Its service as the bearer of a key of `Callers` reaches it."""
        return reporting_service_pb2_grpc.ReportingServiceStub(await self.channel(key))

    async def channel(self, key: str) -> grpc.aio.Channel:
        return await self._stack.enter_async_context(connect(self.address, key))


@asynccontextmanager
async def opened_database(url: str, role: str) -> AsyncIterator[Database]:
    """The connections of one role of reporting."""
    database = Database(url, role=role, schema="reporting", pool_size=4, hot_pool_size=1)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def running_reporting(database_url: str, clock: Clock) -> AsyncIterator[ReportingServer]:
    """Serve what is in this database until the end of the `async with`. Nobody reads feeds."""
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(opened_database(database_url, "reporting_reader"))
        fake = FakePayouts()
        payouts_server = grpc.aio.server()
        payouts_server.add_generic_rpc_handlers((fake.handler(),))
        port = payouts_server.add_insecure_port("127.0.0.1:0")
        await payouts_server.start()
        stack.push_async_callback(payouts_server.stop, None)
        channel = await stack.enter_async_context(connect(f"127.0.0.1:{port}", "nobody looks at it"))
        service = ReportingService(reader=reader, payouts=Payouts(channel), catalogue=CATALOGUE, clock=clock)
        server = build_server(
            services=(
                bind(REPORTING, reporting_service_pb2_grpc.add_ReportingServiceServicer_to_server, service),
            ),
            authenticator=Callers(),
        )
        address = server.listen("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, timedelta(seconds=2))
        yield ReportingServer(address, fake, stack)
