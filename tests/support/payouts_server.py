"""A real payouts server in the test's own process, with a stand-in for Stripe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import psycopg

from sandbox.stripe.calling import call
from sandbox.stripe.server import StripeStandIn
from services.kit.auth import CachedAuthenticator
from services.kit.client import connect
from services.kit.keys import LedgerKeys
from services.kit.server import build_server
from services.payouts.app import App, open_app
from services.payouts.config import PayoutsConfig
from services.payouts.web.webhooks import PATH as WEBHOOK_PATH
from tallystick.payouts.v1.connect_service_pb2_grpc import ConnectServiceStub
from tallystick.payouts.v1.payment_service_pb2_grpc import PaymentServiceStub
from tallystick.payouts.v1.payout_service_pb2_grpc import PayoutServiceStub
from tallystick.payouts.v1.reconciliation_service_pb2_grpc import ReconciliationServiceStub
from tallystick.payouts.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from tests.support.ledger_server import LedgerServer

if TYPE_CHECKING:
    # Known to type checkers only.
    from tallystick.payouts.v1.connect_service_pb2_grpc import ConnectServiceAsyncStub
    from tallystick.payouts.v1.payment_service_pb2_grpc import PaymentServiceAsyncStub
    from tallystick.payouts.v1.payout_service_pb2_grpc import PayoutServiceAsyncStub
    from tallystick.payouts.v1.reconciliation_service_pb2_grpc import ReconciliationServiceAsyncStub
    from tallystick.payouts.v1.schedule_service_pb2_grpc import ScheduleServiceAsyncStub

WEBHOOK_SECRET = "whsec_platform"
CONNECT_SECRET = "whsec_connect"


class MovedClock:
    """Real time, moved forward on demand."""

    def __init__(self) -> None:
        self._offset = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._offset

    def advance(self, by: timedelta) -> None:
        self._offset += by


@contextmanager
def running_stripe(**settings: Any) -> Iterator[StripeStandIn]:
    """A stand-in for Stripe that must not have made a mistake, nor seen one of ours, when the test ends."""
    with StripeStandIn(**settings) as standin:
        yield standin
        assert standin.control.violations == []


@dataclass(frozen=True)
class Caller:
    """The services of payouts as one API key reaches them."""

    payouts: PayoutServiceAsyncStub
    schedules: ScheduleServiceAsyncStub
    connect: ConnectServiceAsyncStub
    reconciliation: ReconciliationServiceAsyncStub
    payments: PaymentServiceAsyncStub


@dataclass
class PayoutsServer:
    """A payouts that runs, the ledger behind it, and what it takes for Stripe."""

    address: str
    database_url: str
    ledger: LedgerServer
    stripe: StripeStandIn
    clock: MovedClock
    app: App
    _channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def web_url(self) -> str:
        """Where it serves HTTP."""
        return f"http://{self.app.web.address}"

    def caller(self, key: str) -> Caller:
        """The services as the bearer of this key reaches them."""
        channel = connect(self.address, key)
        self._channels.append(channel)
        return Caller(
            PayoutServiceStub(channel),
            ScheduleServiceStub(channel),
            ConnectServiceStub(channel),
            ReconciliationServiceStub(channel),
            PaymentServiceStub(channel),
        )

    @property
    def operator(self) -> Caller:
        return self.caller(self.ledger.operator.key)

    async def advance(self, by: timedelta) -> None:
        """Let time pass, here and at Stripe."""
        self.clock.advance(by)
        # In a thread: Stripe answers when its webhooks were answered, by this event loop.
        await asyncio.to_thread(self.stripe.control.advance, int(by.total_seconds()))

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """Rows, as the superuser sees them."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement.encode()).fetchall()

    def query_write(self, statement: str) -> None:
        """Change rows, as the superuser."""
        with psycopg.connect(self.database_url) as connection:
            connection.execute(statement.encode())


def payouts_config(
    database_url: str, ledger_address: str, ledger_key: str, standin: StripeStandIn, **settings: Any
) -> PayoutsConfig:
    """Payouts in a hurry, with the stand-in for Stripe."""
    return PayoutsConfig(
        **{
            "database_url": database_url,
            "stripe_api_key": standin.api_key,
            "stripe_base_url": standin.url,
            "stripe_calls_per_second": 1000,
            "stripe_timeout": timedelta(seconds=5),
            "ledger_address": ledger_address,
            "ledger_api_key": ledger_key,
            "webhook_secrets": f"{WEBHOOK_SECRET},{CONNECT_SECRET}",
            "web_address": "127.0.0.1:0",
            "executor_interval": timedelta(milliseconds=200),
            "inbox_interval": timedelta(milliseconds=200),
            # Else time that passes for another reason pays organizations by their schedule.
            "schedule_interval": timedelta(hours=1),
            "purchaser_interval": timedelta(milliseconds=200),
            **settings,
        }
    )


@asynccontextmanager
async def running_payouts(
    database_url: str,
    ledger: LedgerServer,
    standin: StripeStandIn,
    *,
    ledger_address: str | None = None,
    clock: MovedClock | None = None,
    workers: bool = True,
    webhooks: bool = True,
    **settings: Any,
) -> AsyncIterator[PayoutsServer]:
    """Serve payouts on this database until the end of the `async with`, with its workers.

    It serves webhooks in any case; with `webhooks`, the stand-in sends them. `ledger_address` is where it
    finds the ledger, if not where the ledger says; `settings` are fields of its configuration. Keys are
    remembered for an hour, so that tests may take the ledger away.
    """
    config = payouts_config(
        database_url, ledger_address or ledger.address, ledger.service.key, standin, **settings
    )
    moved = clock or MovedClock()
    async with open_app(config, clock=moved) as app, connect(ledger.address, ledger.service.key) as channel:
        authenticator = CachedAuthenticator(LedgerKeys(channel), ttl=timedelta(hours=1))
        server = build_server(services=app.services, authenticator=authenticator, schema=app.schema)
        address = server.listen("127.0.0.1:0")
        await server.start()
        running = app.workers if workers else (app.web,)
        for worker in running:
            worker.start()
        payouts = PayoutsServer(address, database_url, ledger, standin, moved, app)
        endpoints = _add_endpoints(standin, f"{payouts.web_url}{WEBHOOK_PATH}") if webhooks else []
        try:
            yield payouts
        finally:
            for endpoint in endpoints:
                _remove_endpoint(standin, endpoint)
            for caller_channel in payouts._channels:
                await caller_channel.close()
            await server.stop(timedelta(seconds=2))
            for worker in running:
                await worker.stop(timedelta(seconds=2))


def _add_endpoints(standin: StripeStandIn, url: str) -> list[str]:
    """Have the stand-in send events to `url`, the platform's and those of connected accounts."""
    return [
        str(standin.control.run("webhooks add", url=url, secret=secret, connect=connect)["id"])
        for secret, connect in ((WEBHOOK_SECRET, False), (CONNECT_SECRET, True))
    ]


def _remove_endpoint(standin: StripeStandIn, endpoint: str) -> None:
    address = standin.url.removeprefix("http://")
    status, answer = call(address, "DELETE", f"/v1/webhook_endpoints/{endpoint}", [], key=standin.api_key)
    # A test may have revoked the key; then the endpoint goes with the stand-in.
    assert status in (200, 401), answer
