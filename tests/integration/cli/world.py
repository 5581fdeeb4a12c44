"""A platform that a command line is tried on: a real ledger and metering, and the rest in a few lines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from grpc_health.v1 import health_pb2

from services.kit.auth import CachedAuthenticator
from services.kit.client import connect
from services.kit.keys import LedgerKeys
from services.kit.server import bind, build_server
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import audit_service_pb2, directory_service_pb2, ledger_service_pb2
from tallystick.metering.v1 import (
    metering_service_pb2,
    price_book_pb2,
    pricing_service_pb2,
    usage_pb2,
)
from tallystick.payouts.v1 import payout_service_pb2, payout_service_pb2_grpc
from tests.support.ledger_seal import sealed, sealing_ledger
from tests.support.ledger_server import Caller, LedgerServer
from tests.support.metering_server import MeteringServer, bonus, fee, price, running_metering, tokens
from tests.support.reporting_fake import CHARGE, Fake, running_fake
from tests.support.waiting import eventually

T = TypeVar("T")
LIST_PRICES = price(
    fee("0.005", "run"),
    tokens(price_book_pb2.TOKEN_KIND_INPUT, "0.60", "input"),
    tokens(price_book_pb2.TOKEN_KIND_OUTPUT, "2.40", "output"),
    bonus("0.20", name="success"),
)


class Schema:
    """Health of a schema, as a test says."""

    def __init__(self) -> None:
        self.told = health_pb2.HealthCheckResponse.SERVING

    async def status(self) -> int:
        return int(self.told)


class Payouts:
    """As much of payouts as somebody asks who wants to know whether it is there."""

    async def ListPayouts(self, request: Any, context: Any) -> Any:
        return payout_service_pb2.ListPayoutsResponse()

    def __getattr__(self, name: str) -> Any:
        return self.ListPayouts


class Background:
    """An event loop in a thread of its own, where servers run while a test calls them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        done: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(timeout=120)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class World:
    """Who has which key, and what there is."""

    background: Background
    ledger: LedgerServer
    reporting: Fake
    schema: Schema
    addresses: dict[str, str]
    keys: dict[str, str]
    charge_id: str
    # Those that tests made for themselves.
    customers: list[str] = field(default_factory=list)

    async def new_customer(self, customer_id: str) -> None:
        """Somebody with a thousand dollars."""
        self.customers.append(customer_id)
        await _customer(self.ledger, customer_id)


@contextmanager
def running_world(database_url: str) -> Iterator[World]:
    background = Background()
    stack = AsyncExitStack()
    try:
        yield background.run(_enter(stack, database_url, background))
    finally:
        background.run(stack.aclose())
        background.close()


async def _enter(stack: AsyncExitStack, database_url: str, background: Background) -> World:
    ledger = await stack.enter_async_context(sealing_ledger(database_url))
    await ledger.create_organization("org_lark")
    await ledger.operator.directory.CreateAgent(
        directory_service_pb2.CreateAgentRequest(agent_id="agt_helper", organization_id="org_lark")
    )
    await ledger.create_customer("cus_ada")
    await ledger.operator.ledger.GrantCredits(
        ledger_service_pb2.GrantCreditsRequest(
            customer_id="cus_ada",
            amount=money_pb2.Money(currency_code="USD", amount_micros=10_000_000),
            source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
            idempotency_key="first",
        )
    )
    host = await ledger.create_caller(access_pb2.ROLE_HOST, "host")
    owner = await ledger.create_caller(access_pb2.ROLE_OWNER, "owner", organization_id="org_lark")
    customer = await ledger.create_caller(access_pb2.ROLE_CUSTOMER, "ada", customer_id="cus_ada")
    metering = await stack.enter_async_context(running_metering(database_url, ledger))
    await metering.publish(LIST_PRICES)
    charge_id = await _meter(metering.caller(host.key))
    await eventually(lambda: _available(owner))
    async for _ in ledger.operator.audits.RunAudit(audit_service_pb2.RunAuditRequest()):
        pass
    await sealed(ledger, 2)
    await _offer_plans(ledger, metering)
    schema = Schema()
    channel = await stack.enter_async_context(connect(ledger.address, ledger.service.key))
    authenticator = CachedAuthenticator(LedgerKeys(channel))
    reporting = await stack.enter_async_context(running_fake(authenticator, schema))
    charge = type(CHARGE)()
    charge.CopyFrom(CHARGE)
    charge.charge_id = charge_id
    reporting.charges = [charge]
    payouts = await stack.enter_async_context(_running_payouts(authenticator, schema))
    return World(
        background=background,
        ledger=ledger,
        reporting=reporting,
        schema=schema,
        addresses={
            "ledger": ledger.address,
            "metering": metering.address,
            "payouts": payouts,
            "reporting": reporting.address,
        },
        keys={
            "operator": ledger.operator.key,
            "host": host.key,
            "owner": owner.key,
            "customer": customer.key,
        },
        charge_id=charge_id,
    )


async def _offer_plans(ledger: LedgerServer, metering: MeteringServer) -> None:
    """Another organization offers plans, and somebody may subscribe to them."""
    await ledger.create_organization("org_wren")
    await _customer(ledger, "cus_eve")
    pricing = metering.operator.pricing
    await pricing.CreatePriceBook(
        pricing_service_pb2.CreatePriceBookRequest(
            price_book_id="pb_wren", organization_id="org_wren", currency_code="USD"
        )
    )
    draft = await pricing.CreatePriceVersion(
        pricing_service_pb2.CreatePriceVersionRequest(
            price_book_id="pb_wren",
            idempotency_key="plans",
            prices=[price(fee("0.01", "run"))],
            plans=[
                price_book_pb2.Plan(name="team", fee=_unit("49"), seat_fee=_unit("10")),
                price_book_pb2.Plan(name="large", fee=_unit("199")),
            ],
        )
    )
    await pricing.PublishPriceVersion(
        pricing_service_pb2.PublishPriceVersionRequest(price_version_id=draft.price_version.price_version_id)
    )


async def _customer(ledger: LedgerServer, customer_id: str) -> None:
    await ledger.create_customer(customer_id)
    await ledger.operator.ledger.GrantCredits(
        ledger_service_pb2.GrantCreditsRequest(
            customer_id=customer_id,
            amount=money_pb2.Money(currency_code="USD", amount_micros=1_000_000_000),
            source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
            idempotency_key=customer_id,
        )
    )


def _unit(amount: str) -> price_book_pb2.UnitPrice:
    return price_book_pb2.UnitPrice(amount=amount)


async def _meter(host: Any) -> str:
    """One finished run of the agent for the customer: 0.218012 USD."""
    answer = await host.metering.Meter(
        metering_service_pb2.MeterRequest(
            event=usage_pb2.UsageEvent(
                customer_id="cus_ada",
                workflow_id="ticket-4711",
                agent_id="agt_helper",
                action_type="ticket.resolve",
                usage=usage_pb2.Usage(model="gpt-4o-mini", input_tokens=18_042, output_tokens=911),
                outcome=usage_pb2.OUTCOME_SUCCESS,
            )
        )
    )
    return str(answer.metered.charge_id)


async def _available(owner: Caller) -> bool:
    """Whether what was earned can be paid out, which it can a moment after it was posted."""
    answer = await owner.ledger.GetEarningsBalance(
        ledger_service_pb2.GetEarningsBalanceRequest(organization_id="org_lark")
    )
    return answer.balance.available.amount_micros > 0


@asynccontextmanager
async def _running_payouts(authenticator: Any, schema: Any) -> AsyncIterator[str]:
    servicer: Any = Payouts()
    server = build_server(
        services=[
            bind(
                payout_service_pb2.DESCRIPTOR.services_by_name["PayoutService"],
                payout_service_pb2_grpc.add_PayoutServiceServicer_to_server,
                servicer,
            )
        ],
        authenticator=authenticator,
        schema=schema,
    )
    address = server.listen("127.0.0.1:0")
    await server.start()
    try:
        yield address
    finally:
        await server.stop(timedelta(seconds=2))
