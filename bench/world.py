"""What a run finds: the suite as processes, with parties, credits, prices and keys."""

from __future__ import annotations

import asyncio
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc
import psycopg
import redis
from prometheus_client.parser import text_string_to_metric_families
from psycopg.rows import TupleRow, scalar_row

from bench import noop
from bench.machine import Processes, parent_of
from bench.traffic import (
    ACTION,
    COUNTED_ACTION,
    CURRENCY,
    CUSTOMERS,
    HOT_CUSTOMER,
    HOT_ORGANIZATION,
    ORGANIZATIONS,
    RESERVING_CUSTOMERS,
    Traffic,
    agent_of,
)
from sandbox.process import ChildProcess, SandboxError
from sandbox.stack import ROOT, Stack
from services.kit.client import connect
from services.kit.db import connection_parameters
from services.kit.money import MAX_AMOUNT_MICROS
from tallystick.common.v1.access_pb2 import ROLE_HOST, ROLE_SERVICE, Role
from tallystick.common.v1.money_pb2 import Money
from tallystick.ledger.v1 import directory_service_pb2, ledger_service_pb2
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tallystick.metering.v1 import metering_service_pb2, price_book_pb2, pricing_service_pb2
from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceStub
from tallystick.metering.v1.pricing_service_pb2_grpc import PricingServiceStub
from tallystick.metering.v1.usage_pb2 import OUTCOME_SUCCESS

if TYPE_CHECKING:
    from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceAsyncStub
    from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceAsyncStub
    from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceAsyncStub
    from tallystick.metering.v1.pricing_service_pb2_grpc import PricingServiceAsyncStub

_CALLS_IN_FLIGHT: Final = 32
_NOOP_TIMEOUT_SECONDS: Final = 30.0
_DRAIN_SECONDS: Final = 20.0
_RPCS: Final = "tallystick_rpcs_total"
_CREDIT_SERVICE: Final = "/tallystick.ledger.v1.CreditService/"
_BACKLOG: Final = """
    SELECT (EXISTS (SELECT FROM ledger.unsequenced) OR EXISTS (SELECT FROM ledger.balance_delta)
            OR EXISTS (SELECT FROM metering.pending_charge)
            OR EXISTS (SELECT FROM metering.unsequenced_usage))::integer
"""


class LedgerCalls(NamedTuple):
    """How many calls the ledger served: about leases and holds, and of every kind."""

    of_credits: int
    all: int

    def since(self, earlier: LedgerCalls) -> LedgerCalls:
        """Those that were served between the two."""
        return LedgerCalls(self.of_credits - earlier.of_credits, self.all - earlier.all)


@dataclass(frozen=True)
class Suite:
    """What any suite that runs is asked between turns: its processes, and its database.

    `backlog` is a query that answers 0 once nothing is left to be done in the background.
    """

    processes: Processes
    database_url: str
    backlog: str
    drain_seconds: float
    ledger_metrics: str
    admin: psycopg.AsyncConnection[TupleRow]

    async def drained(self) -> None:
        """Wait until the background has caught up, so that no side works off what the other left. Raises
        TimeoutError if it does not.
        """
        async with asyncio.timeout(self.drain_seconds):
            while await self.count(self.backlog):  # noqa: ASYNC110 - other processes work it off
                await asyncio.sleep(0.05)

    async def count(self, query: str) -> int:
        """The one number that a query answers, as the superuser sees it."""
        async with self.admin.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(query.encode())
            return int(await cursor.fetchone() or 0)

    async def ledger_calls(self) -> LedgerCalls:
        """How many calls the ledger has served so far, by its metrics."""
        page = await asyncio.to_thread(_read, f"http://{self.ledger_metrics}/metrics")
        samples = [
            sample
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == _RPCS
        ]
        credits = [one for one in samples if one.labels["method"].startswith(_CREDIT_SERVICE)]
        return LedgerCalls(
            of_credits=sum(int(one.value) for one in credits), all=sum(int(one.value) for one in samples)
        )

    async def setting(self, name: str) -> str:
        """A setting of PostgreSQL."""
        async with self.admin.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute("SELECT current_setting(%s)", [name])
            return str(await cursor.fetchone())

    async def writer(self) -> psycopg.AsyncConnection[TupleRow]:
        """A bare connection with the ledger's own rights and settings; each statement is a transaction."""
        parameters = connection_parameters(self.database_url, role="ledger_writer", schema="ledger")
        return await psycopg.AsyncConnection.connect(**parameters, autocommit=True, prepare_threshold=0)


@dataclass(frozen=True)
class World(Suite):
    """The callers' view of ledger and metering: both services, and both no-op services."""

    ledger: LedgerServiceAsyncStub
    metering: MeteringServiceAsyncStub
    noop_ledger: LedgerServiceAsyncStub
    noop_metering: MeteringServiceAsyncStub
    traffic: Traffic
    service_key: str = field(repr=False)
    host_key: str = field(repr=False)

    async def calling(self, stack: Stack, cleanup: AsyncExitStack) -> World:
        """The same world, seen by callers of another suite over the same stores."""
        ledger = await cleanup.enter_async_context(connect(stack.endpoints.ledger, self.service_key))
        metering = await cleanup.enter_async_context(connect(stack.endpoints.metering, self.host_key))
        return replace(self, ledger=LedgerServiceStub(ledger), metering=MeteringServiceStub(metering))


@asynccontextmanager
async def open_world(stack: Stack, folder: Path) -> AsyncIterator[World]:
    """Furnish a fresh stack, and start the no-op server beside it with its files in `folder`."""
    async with AsyncExitStack() as cleanup:

        async def channel(address: str, key: str) -> grpc.aio.Channel:
            return await cleanup.enter_async_context(connect(address, key))

        operator = stack.operator_key.read()
        directory = DirectoryServiceStub(await channel(stack.endpoints.ledger, operator))

        async def key(role: Role.ValueType) -> str:
            request = directory_service_pb2.CreateApiKeyRequest(role=role, idempotency_key=f"bench/{role}")
            return (await directory.CreateApiKey(request)).secret

        service, host = await key(ROLE_SERVICE), await key(ROLE_HOST)
        ledger = LedgerServiceStub(await channel(stack.endpoints.ledger, service))
        metering = MeteringServiceStub(await channel(stack.endpoints.metering, host))
        await _register(directory, LedgerServiceStub(await channel(stack.endpoints.ledger, operator)))
        pricing = PricingServiceStub(await channel(stack.endpoints.metering, operator))
        traffic = Traffic(await _publish_prices(pricing))
        await _keep_answers(ledger, metering, traffic, folder)
        await _open_leases(metering, traffic)
        noop_server = _start_noop(folder)
        cleanup.callback(noop_server.kill)
        address = (folder / noop.ADDRESS_FILE).read_text()
        admin = await cleanup.enter_async_context(
            await psycopg.AsyncConnection.connect(stack.endpoints.database_url, autocommit=True)
        )
        yield World(
            ledger=ledger,
            metering=metering,
            # The same kind of channel, key included: the sides differ in their servers only.
            noop_ledger=LedgerServiceStub(await channel(address, service)),
            noop_metering=MeteringServiceStub(await channel(address, host)),
            traffic=traffic,
            service_key=service,
            host_key=host,
            processes=_processes(stack, noop_server, admin),
            database_url=stack.endpoints.database_url,
            # Of folder, sequencer and confirmations.
            backlog=_BACKLOG,
            drain_seconds=_DRAIN_SECONDS,
            ledger_metrics=stack.endpoints.ledger_metrics,
            admin=admin,
        )


def _processes(
    stack: Stack, noop_server: ChildProcess, admin: psycopg.AsyncConnection[TupleRow]
) -> Processes:
    ledger, metering = stack.pid("ledger"), stack.pid("metering")
    if ledger is None or metering is None or noop_server.pid is None:
        raise SandboxError("a service ended before the run began")
    # PostgreSQL's first process is the parent of each connection's.
    postgres = parent_of(admin.info.backend_pid)
    with redis.Redis.from_url(stack.endpoints.redis_url) as valkey:
        valkey_pid = valkey.info("server")["process_id"]
    return Processes(
        {
            "ledger": ledger,
            "metering": metering,
            "postgres": postgres,
            "valkey": valkey_pid,
            "noop": noop_server.pid,
        }
    )


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as page:  # noqa: S310 - the ledger's own address
        text: str = page.read().decode()
        return text


def _start_noop(folder: Path) -> ChildProcess:
    server = ChildProcess(
        "no-op server",
        [sys.executable, "-m", "bench.noop", str(folder)],
        log_path=folder / "noop.log",
        cwd=ROOT,
    )
    server.start()
    try:
        server.wait_until((folder / noop.ADDRESS_FILE).exists, timeout=_NOOP_TIMEOUT_SECONDS)
    except BaseException:
        server.kill()
        raise
    return server


async def _register(directory: DirectoryServiceAsyncStub, ledger: LedgerServiceAsyncStub) -> None:
    organizations = (*ORGANIZATIONS, HOT_ORGANIZATION)
    customers = (*CUSTOMERS, HOT_CUSTOMER)
    await make_calls(
        directory.CreateOrganization(
            directory_service_pb2.CreateOrganizationRequest(
                organization_id=one, display_name=one, platform_fee_bps=1500, processing_fee_bps=290
            )
        )
        for one in organizations
    )
    await make_calls(
        directory.CreateAgent(
            directory_service_pb2.CreateAgentRequest(
                agent_id=agent_of(one), organization_id=one, display_name=one
            )
        )
        for one in organizations
    )
    await make_calls(
        directory.CreateCustomer(directory_service_pb2.CreateCustomerRequest(customer_id=one))
        for one in customers
    )
    await make_calls(
        ledger.GrantCredits(
            ledger_service_pb2.GrantCreditsRequest(
                customer_id=one,
                # More than any run spends: every charge is paid from credits.
                amount=Money(currency_code=CURRENCY, amount_micros=MAX_AMOUNT_MICROS),
                source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
                idempotency_key=f"bench/{one}",
            )
        )
        for one in customers
    )


async def _publish_prices(pricing: PricingServiceAsyncStub) -> str:
    """A price book of one agent run: a fee, tokens both ways, and a bonus; its version's id.

    And one of the same run by what a customer used before: input is cheaper beyond a million tokens a month.
    """
    book = await pricing.CreatePriceBook(
        pricing_service_pb2.CreatePriceBookRequest(currency_code=CURRENCY, display_name="Bench")
    )
    price = price_book_pb2.Price(
        name="run",
        selector=price_book_pb2.PriceSelector(action_types=[ACTION]),
        components=[
            price_book_pb2.PriceComponent(name="run", base_fee=price_book_pb2.BaseFee(price=_price("0.005"))),
            _per_million_tokens("input", price_book_pb2.TOKEN_KIND_INPUT, "0.60"),
            _per_million_tokens("output", price_book_pb2.TOKEN_KIND_OUTPUT, "2.40"),
            price_book_pb2.PriceComponent(
                name="success",
                outcome_bonus=price_book_pb2.OutcomeBonus(outcome=OUTCOME_SUCCESS, price=_price("0.20")),
            ),
        ],
    )
    counted = price_book_pb2.Price(
        name="counted",
        selector=price_book_pb2.PriceSelector(action_types=[COUNTED_ACTION]),
        components=price.components,
    )
    counted.components[1].meter_rate.CopyFrom(
        price_book_pb2.MeterRate(
            meter="input_tokens",
            tier_mode=price_book_pb2.TIER_MODE_GRADUATED,
            tier_scope=price_book_pb2.TIER_SCOPE_BILLING_PERIOD,
            tiers=[
                price_book_pb2.Tier(up_to=1_000_000, price=_price("0.60", per_units=1_000_000)),
                price_book_pb2.Tier(price=_price("0.45", per_units=1_000_000)),
            ],
        )
    )
    draft = await pricing.CreatePriceVersion(
        pricing_service_pb2.CreatePriceVersionRequest(
            price_book_id=book.price_book.price_book_id, prices=[price, counted], idempotency_key="bench"
        )
    )
    request = pricing_service_pb2.PublishPriceVersionRequest(
        price_version_id=draft.price_version.price_version_id
    )
    # In force from 1970 on: a first version may be, so that no event is too early for it.
    request.effective_time.FromSeconds(0)
    return (await pricing.PublishPriceVersion(request)).price_version.price_version_id


def _per_million_tokens(
    name: str, kind: price_book_pb2.TokenKind.ValueType, amount: str
) -> price_book_pb2.PriceComponent:
    rate = price_book_pb2.TokenRate(token_kind=kind, price=_price(amount, per_units=1_000_000))
    return price_book_pb2.PriceComponent(name=name, token_rate=rate)


def _price(amount: str, per_units: int = 1) -> price_book_pb2.UnitPrice:
    return price_book_pb2.UnitPrice(amount=amount, per_units=per_units)


async def _keep_answers(
    ledger: LedgerServiceAsyncStub, metering: MeteringServiceAsyncStub, traffic: Traffic, folder: Path
) -> None:
    """Have each service answer once, so that the no-op server answers the very same messages."""
    posted = await ledger.PostCharge(ledger_service_pb2.PostChargeRequest(intent=next(traffic.intents())))
    metered = await metering.Meter(metering_service_pb2.MeterRequest(event=next(traffic.events())))
    authorized = await metering.Authorize(next(traffic.attempts()))
    settled = await metering.Settle(
        metering_service_pb2.SettleRequest(
            token=authorized.reservation.token, event=next(traffic.completed())
        )
    )
    answers = {"PostCharge": posted, "Meter": metered, "Authorize": authorized, "Settle": settled}
    for method, answer in answers.items():
        await asyncio.to_thread((folder / method).write_bytes, answer.SerializeToString())


async def _open_leases(metering: MeteringServiceAsyncStub, traffic: Traffic) -> None:
    """Have every customer whose runs are authorized make a first one, which opens its credit lease."""
    attempts = [
        request
        for customer_id in (*RESERVING_CUSTOMERS, HOT_CUSTOMER)
        for request in islice(traffic.attempts(customer_id=customer_id), 1)
    ]
    await make_calls(metering.Authorize(request) for request in attempts)


async def make_calls(calls: Iterable[Awaitable[object]]) -> None:
    """Make every call, a few at a time: taking one from `calls` is what starts it."""
    left = iter(calls)
    while batch := list(islice(left, _CALLS_IN_FLIGHT)):
        await asyncio.gather(*batch)
