"""A real metering server in the test's own process, on a free port, with keys to call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import psycopg

from services.kit.auth import CachedAuthenticator
from services.kit.client import connect
from services.kit.keys import LedgerKeys
from services.kit.server import build_server
from services.metering.app import open_app
from services.metering.config import MeteringConfig
from tallystick.metering.v1 import price_book_pb2, pricing_service_pb2, usage_pb2
from tallystick.metering.v1.budget_service_pb2_grpc import BudgetServiceStub
from tallystick.metering.v1.contract_service_pb2_grpc import ContractServiceStub
from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceStub
from tallystick.metering.v1.period_service_pb2_grpc import PeriodServiceStub
from tallystick.metering.v1.pricing_service_pb2_grpc import PricingServiceStub
from tallystick.metering.v1.rating_service_pb2_grpc import RatingServiceStub
from tallystick.metering.v1.reservation_service_pb2_grpc import ReservationServiceStub
from tallystick.metering.v1.subscription_service_pb2_grpc import SubscriptionServiceStub
from tallystick.metering.v1.usage_feed_service_pb2_grpc import UsageFeedServiceStub
from tests.support.ledger_server import LedgerServer

if TYPE_CHECKING:
    # Known to type checkers only.
    from tallystick.metering.v1.budget_service_pb2_grpc import BudgetServiceAsyncStub
    from tallystick.metering.v1.contract_service_pb2_grpc import ContractServiceAsyncStub
    from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceAsyncStub
    from tallystick.metering.v1.period_service_pb2_grpc import PeriodServiceAsyncStub
    from tallystick.metering.v1.pricing_service_pb2_grpc import PricingServiceAsyncStub
    from tallystick.metering.v1.rating_service_pb2_grpc import RatingServiceAsyncStub
    from tallystick.metering.v1.reservation_service_pb2_grpc import ReservationServiceAsyncStub
    from tallystick.metering.v1.subscription_service_pb2_grpc import SubscriptionServiceAsyncStub
    from tallystick.metering.v1.usage_feed_service_pb2_grpc import UsageFeedServiceAsyncStub


TOKEN_KEY = "a secret of the tests and of nobody else"


@dataclass(frozen=True)
class Caller:
    """The services of metering as one API key reaches them."""

    metering: MeteringServiceAsyncStub
    pricing: PricingServiceAsyncStub
    budgets: BudgetServiceAsyncStub
    reservations: ReservationServiceAsyncStub
    feed: UsageFeedServiceAsyncStub
    contracts: ContractServiceAsyncStub
    rating: RatingServiceAsyncStub
    subscriptions: SubscriptionServiceAsyncStub
    periods: PeriodServiceAsyncStub


@dataclass
class MeteringServer:
    """A metering that runs, and the ledger behind it."""

    address: str
    database_url: str
    ledger: LedgerServer
    _channels: list[grpc.aio.Channel] = field(default_factory=list)

    def caller(self, key: str) -> Caller:
        """The services as the bearer of this key reaches them."""
        channel = connect(self.address, key)
        self._channels.append(channel)
        return Caller(
            MeteringServiceStub(channel),
            PricingServiceStub(channel),
            BudgetServiceStub(channel),
            ReservationServiceStub(channel),
            UsageFeedServiceStub(channel),
            ContractServiceStub(channel),
            RatingServiceStub(channel),
            SubscriptionServiceStub(channel),
            PeriodServiceStub(channel),
        )

    @property
    def operator(self) -> Caller:
        return self.caller(self.ledger.operator.key)

    async def publish(
        self,
        *prices: price_book_pb2.Price,
        organization_id: str = "",
        currency_code: str = "USD",
        caller: Caller | None = None,
    ) -> str:
        """Publish prices, with effect from the beginning of time if their book has none; the version's id."""
        pricing = (caller or self.operator).pricing
        book = await pricing.CreatePriceBook(
            pricing_service_pb2.CreatePriceBookRequest(
                organization_id=organization_id, currency_code=currency_code
            )
        )
        versions = await pricing.ListPriceVersions(
            pricing_service_pb2.ListPriceVersionsRequest(price_book_id=book.price_book.price_book_id)
        )
        count = len(versions.price_versions)
        draft = await pricing.CreatePriceVersion(
            pricing_service_pb2.CreatePriceVersionRequest(
                price_book_id=book.price_book.price_book_id,
                prices=prices,
                idempotency_key=f"{book.price_book.price_book_id}/{count}",
            )
        )
        request = pricing_service_pb2.PublishPriceVersionRequest(
            price_version_id=draft.price_version.price_version_id
        )
        if not count:
            request.effective_time.FromSeconds(0)
        published = await pricing.PublishPriceVersion(request)
        return published.price_version.price_version_id

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """Rows, as the superuser sees them."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement.encode()).fetchall()

    def execute(self, statement: str) -> None:
        """A statement of the superuser."""
        with psycopg.connect(self.database_url) as connection:
            connection.execute(statement.encode())


def price(
    *components: price_book_pb2.PriceComponent,
    name: str = "run",
    action_types: Iterable[str] = (),
    agent_ids: Iterable[str] = (),
) -> price_book_pb2.Price:
    selector = price_book_pb2.PriceSelector(action_types=action_types, agent_ids=agent_ids)
    return price_book_pb2.Price(name=name, selector=selector, components=components)


def fee(amount: str, name: str = "fee") -> price_book_pb2.PriceComponent:
    base_fee = price_book_pb2.BaseFee(price=price_book_pb2.UnitPrice(amount=amount))
    return price_book_pb2.PriceComponent(name=name, base_fee=base_fee)


def tokens(
    kind: price_book_pb2.TokenKind.ValueType, amount: str, name: str, per_units: int = 1_000_000
) -> price_book_pb2.PriceComponent:
    rate = price_book_pb2.TokenRate(
        token_kind=kind, price=price_book_pb2.UnitPrice(amount=amount, per_units=per_units)
    )
    return price_book_pb2.PriceComponent(name=name, token_rate=rate)


def bonus(
    amount: str, outcome: usage_pb2.Outcome.ValueType = usage_pb2.OUTCOME_SUCCESS, name: str = "bonus"
) -> price_book_pb2.PriceComponent:
    outcome_bonus = price_book_pb2.OutcomeBonus(
        outcome=outcome, price=price_book_pb2.UnitPrice(amount=amount)
    )
    return price_book_pb2.PriceComponent(name=name, outcome_bonus=outcome_bonus)


AGENT_RUN = price(
    fee("0.005"),
    tokens(price_book_pb2.TOKEN_KIND_INPUT, "0.60", "input"),
    tokens(price_book_pb2.TOKEN_KIND_OUTPUT, "2.40", "output"),
    bonus("0.20"),
)


@asynccontextmanager
async def running_metering(
    database_url: str,
    ledger: LedgerServer,
    *,
    ledger_address: str | None = None,
    redis_url: str | None = None,
    redis_cluster: bool = False,
    recovery_delay: timedelta = timedelta(seconds=5),
    reservation_grace: timedelta = timedelta(milliseconds=200),
    lease_interval: timedelta = timedelta(milliseconds=50),
    lease_idle: timedelta = timedelta(seconds=60),
    lease_scan_interval: timedelta = timedelta(seconds=10),
    payouts_address: str | None = None,
) -> AsyncIterator[MeteringServer]:
    """Serve metering on this database until the end of the `async with`, with its workers.

    `ledger_address` is where it finds the ledger, if not where the ledger says. Keys are remembered for an
    hour, so that tests may take the ledger away without taking everybody's keys away.
    """
    config = MeteringConfig(
        database_url=database_url,
        redis_url=redis_url,
        ledger_address=ledger_address or ledger.address,
        ledger_api_key=ledger.service.key,
        token_keys=TOKEN_KEY,
        recovery_delay=recovery_delay,
        recovery_interval=timedelta(milliseconds=20),
        sequence_interval=timedelta(milliseconds=10),
        redis_cluster=redis_cluster,
        reservation_grace=reservation_grace,
        lease_interval=lease_interval,
        lease_idle=lease_idle,
        lease_scan_interval=lease_scan_interval,
        payouts_address=payouts_address,
        payouts_api_key=None if payouts_address is None else ledger.service.key,
    )
    running: MeteringServer | None = None
    async with open_app(config) as app, connect(ledger.address, ledger.service.key) as channel:
        authenticator = CachedAuthenticator(LedgerKeys(channel), ttl=timedelta(hours=1))
        server = build_server(services=app.services, authenticator=authenticator, schema=app.schema)
        address = server.listen("127.0.0.1:0")
        await server.start()
        for worker in app.workers:
            worker.start()
        running = MeteringServer(address, database_url, ledger)
        try:
            yield running
        finally:
            for caller_channel in running._channels:
                await caller_channel.close()
            await server.stop(timedelta(seconds=2))
            for worker in app.workers:
                await worker.stop(timedelta(seconds=2))
