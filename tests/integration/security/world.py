"""Two tenants on one platform, everybody who could have a key, and every RPC by its descriptor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import psycopg
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from services.kit.client import connect
from services.kit.errors import Code
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.common.v1.access_pb2 import Role
from tallystick.ledger.v1 import account_pb2, charge_pb2, directory_service_pb2, ledger_service_pb2
from tallystick.metering.v1 import metering_service_pb2, pricing_service_pb2, usage_pb2
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.metering_server import MeteringServer, fee, price, running_metering
from tests.support.waiting import eventually

LEDGER_SERVICES: tuple[ServiceDescriptor, ...] = (
    ledger_service_pb2.DESCRIPTOR.services_by_name["LedgerService"],
    directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"],
)
METERING_SERVICES: tuple[ServiceDescriptor, ...] = (
    metering_service_pb2.DESCRIPTOR.services_by_name["MeteringService"],
    pricing_service_pb2.DESCRIPTOR.services_by_name["PricingService"],
)
METHODS: dict[str, MethodDescriptor] = {
    method.full_name: method
    for service in (*LEDGER_SERVICES, *METERING_SERVICES)
    for method in service.methods
}

# Some time after the agreements began, and before now.
OCCURRED = Timestamp(seconds=int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()))
# Odd amounts, so that they are recognized wherever they turn up.
BRAVO_GRANT = 77_770_001
BRAVO_FEE = "0.031337"
SHARED_GROSS = 900_000

PLATFORM = frozenset({"operator", "service"})


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def roles_of(method: MethodDescriptor) -> frozenset[int]:
    """The roles that the proto declares for a method."""
    return frozenset(method.GetOptions().Extensions[access_pb2.access].roles)


@dataclass(frozen=True)
class Answer:
    """How a call ended, and everything it said: the response, or the status with its details."""

    code: grpc.StatusCode
    text: str


@dataclass
class Principal:
    """Somebody with a key (or without: role None), on both servers."""

    name: str
    role: Role.ValueType | None
    key: str
    ledger: grpc.aio.Channel
    metering: grpc.aio.Channel

    async def call(self, method: MethodDescriptor, request: Message, timeout: float = 20) -> Answer:
        """Call any RPC. A stream is read to its end; a batch of one answers as its item does."""
        channel = self.ledger if method.containing_service in LEDGER_SERVICES else self.metering
        response_class = message_factory.GetMessageClass(method.output_type)
        shape: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
        rpc = shape(
            path_of(method),
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_class.FromString,
        )
        try:
            if method.server_streaming:
                responses = [response async for response in rpc(request, timeout=timeout)]
            else:
                responses = [await rpc(request, timeout=timeout)]
        except grpc.aio.AioRpcError as error:
            return _refused(error)
        text = "\n".join(text_format.MessageToString(response) for response in responses)
        return Answer(_code_of_batch(responses[0] if responses else None), text)


def _refused(error: grpc.aio.AioRpcError) -> Answer:
    said = [error.details() or ""]
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            said.append(text_format.MessageToString(status_pb2.Status.FromString(value)))
    return Answer(error.code(), "\n".join(said))


def _code_of_batch(response: Any) -> grpc.StatusCode:
    verdicts: Any = getattr(response, "verdicts", ())
    if len(verdicts) == 1 and verdicts[0].HasField("error"):
        return grpc.StatusCode[Code(verdicts[0].error.code).name]
    return grpc.StatusCode.OK


@dataclass
class Things:
    """Ids of what one tenant has: an organization and a customer that deals with it alone."""

    tenant: str
    owner_key: str = ""
    host_key: str = ""
    customer_key: str = ""
    price_book: str = ""
    published: str = ""
    draft: str = ""
    charge: str = ""
    transaction: str = ""
    grant: str = ""

    @property
    def organization(self) -> str:
        return f"org_{self.tenant}"

    @property
    def customer(self) -> str:
        return f"cus_{self.tenant}"

    @property
    def agent(self) -> str:
        return f"agt_{self.tenant}"

    @property
    def member(self) -> str:
        return f"mem_{self.tenant}"

    @property
    def workflow(self) -> str:
        return f"wf-{self.tenant}"


@dataclass
class World:
    """A ledger and a metering in this process, with the tenants alpha and bravo."""

    ledger: LedgerServer
    metering: MeteringServer
    # As the superuser.
    _admin: psycopg.Connection
    principals: dict[str, Principal] = field(default_factory=dict)
    alpha: Things = field(default_factory=lambda: Things("alpha"))
    bravo: Things = field(default_factory=lambda: Things("bravo"))
    # A charge of cus_alpha that both organizations earn from, and an adjustment that touches both tenants.
    shared_charge: str = ""
    shared_transaction: str = ""
    adjustment: str = ""
    platform_book: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """What only bravo and the platform may ever be shown."""
        things = self.bravo
        ids = (
            things.owner_key,
            things.host_key,
            things.customer_key,
            things.price_book,
            things.published,
            things.draft,
            things.charge,
            things.transaction,
            things.grant,
        )
        assert all(ids)
        return ("bravo", str(BRAVO_GRANT), BRAVO_FEE, *ids)

    def add(self, name: str, role: Role.ValueType | None, key: str) -> Principal:
        principal = Principal(
            name, role, key, connect(self.ledger.address, key), connect(self.metering.address, key)
        )
        self.principals[name] = principal
        return principal

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """Rows, as the superuser sees them."""
        return self._admin.execute(statement.encode()).fetchall()

    def snapshot(self) -> Mapping[str, str]:
        """A digest of every row of both schemas, by table."""
        tables = self._admin.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname IN ('ledger', 'metering') ORDER BY 1"
        ).fetchall()
        digests = " UNION ALL ".join(
            f"SELECT '{table}', md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {table} t"
            for (table,) in tables
        )
        return dict(self._admin.execute(digests.encode()).fetchall())

    async def settled(self) -> None:
        """Wait until the workers have nothing left to do, so that only calls change tables."""

        async def nothing_waits() -> bool:
            rows = self._admin.execute(
                "SELECT (SELECT count(*) FROM ledger.balance_delta)"
                " + (SELECT count(*) FROM ledger.unsequenced)"
                " + (SELECT count(*) FROM metering.pending_charge)"
            ).fetchall()
            return rows == [(0,)]

        await eventually(nothing_waits)


@asynccontextmanager
async def running_world(database_url: str) -> AsyncIterator[World]:
    async with (
        running_ledger(database_url) as ledger,
        running_metering(database_url, ledger) as metering,
    ):
        admin = psycopg.connect(database_url, autocommit=True)
        world = World(ledger, metering, admin)
        try:
            await _populate(world)
            yield world
        finally:
            for principal in world.principals.values():
                await principal.ledger.close()
                await principal.metering.close()
            admin.close()


async def _populate(world: World) -> None:
    ledger = world.ledger
    world.add("operator", access_pb2.ROLE_OPERATOR, ledger.operator.key)
    world.add("service", access_pb2.ROLE_SERVICE, ledger.service.key)
    for things in (world.alpha, world.bravo):
        await _populate_tenant(world, things)
    await _populate_platform(world)
    await _share(world)
    await world.settled()


async def _create_key(world: World, role: Role.ValueType, name: str, **fields: Any) -> tuple[str, str]:
    """(secret, id) of a new key."""
    created = await world.ledger.operator.directory.CreateApiKey(
        directory_service_pb2.CreateApiKeyRequest(role=role, idempotency_key=name, description=name, **fields)
    )
    return created.secret, created.api_key.api_key_id


async def _populate_tenant(world: World, things: Things) -> None:
    directory = world.ledger.operator.directory
    await world.ledger.create_organization(things.organization)
    # Two of each, so that lists have a second page.
    await directory.CreateAgent(
        directory_service_pb2.CreateAgentRequest(
            agent_id=f"{things.agent}_2", organization_id=things.organization
        )
    )
    for number in ("1", "2"):
        await directory.CreateAgentVersion(
            directory_service_pb2.CreateAgentVersionRequest(
                agent_id=things.agent, agent_version=f"{number}-{things.tenant}"
            )
        )
        await directory.CreateMember(
            directory_service_pb2.CreateMemberRequest(
                member_id=things.member if number == "1" else f"{things.member}_{number}",
                organization_id=things.organization,
                role=access_pb2.ROLE_OWNER,
            )
        )
    await directory.CreateRevenueShareAgreement(
        directory_service_pb2.CreateRevenueShareAgreementRequest(
            organization_id=things.organization,
            platform_fee_bps=1500,
            processing_fee_bps=290,
            idempotency_key=things.tenant,
        )
    )
    await world.ledger.create_customer(things.customer)
    granted = await world.ledger.operator.ledger.GrantCredits(grant_request(things))
    things.grant = granted.transaction_id
    _, things.owner_key = await _create_key(
        world, access_pb2.ROLE_OWNER, f"owner-{things.tenant}-0", organization_id=things.organization
    )
    _, things.host_key = await _create_key(
        world, access_pb2.ROLE_HOST, f"host-{things.tenant}-0", organization_id=things.organization
    )
    _, things.customer_key = await _create_key(
        world, access_pb2.ROLE_CUSTOMER, f"customer-{things.tenant}-0", customer_id=things.customer
    )
    pricing = world.metering.operator.pricing
    book = await pricing.CreatePriceBook(book_request(things))
    things.price_book = book.price_book.price_book_id
    cost = price(fee(BRAVO_FEE if things is world.bravo else "0.01", things.tenant), name=things.tenant)
    for kept in ("published", "draft"):
        draft = await pricing.CreatePriceVersion(
            pricing_service_pb2.CreatePriceVersionRequest(
                price_book_id=things.price_book, prices=[cost], idempotency_key=f"{things.tenant}-{kept}"
            )
        )
        setattr(things, kept, draft.price_version.price_version_id)
    await pricing.PublishPriceVersion(publish_request(things))
    secret, _ = await _create_key(world, access_pb2.ROLE_HOST, f"first-host-{things.tenant}")
    host = world.metering.caller(secret)
    metered = await host.metering.Meter(
        metering_service_pb2.MeterRequest(event=usage_event(things.customer, things.agent, things.workflow))
    )
    things.charge = metered.metered.charge_id
    charge = await world.ledger.operator.ledger.GetCharge(
        ledger_service_pb2.GetChargeRequest(charge_id=things.charge)
    )
    things.transaction = charge.charge.transaction_id


async def _populate_platform(world: World) -> None:
    alpha = world.alpha
    book = await world.metering.operator.pricing.CreatePriceBook(
        pricing_service_pb2.CreatePriceBookRequest(currency_code="USD")
    )
    world.platform_book = book.price_book.price_book_id
    of_alpha = {"organization_id": alpha.organization}
    keys: dict[str, tuple[Role.ValueType, dict[str, Any]]] = {
        "host": (access_pb2.ROLE_HOST, {}),
        "host_of_agents": (access_pb2.ROLE_HOST, {"agent_ids": [alpha.agent]}),
        "host_of_customers": (access_pb2.ROLE_HOST, {"customer_ids": [alpha.customer]}),
        "host_alpha": (access_pb2.ROLE_HOST, of_alpha),
        "host_alpha_limited": (
            access_pb2.ROLE_HOST,
            {**of_alpha, "agent_ids": [alpha.agent], "customer_ids": [alpha.customer]},
        ),
        "owner_alpha": (access_pb2.ROLE_OWNER, of_alpha),
        "owner_alpha_member": (access_pb2.ROLE_OWNER, {**of_alpha, "member_id": alpha.member}),
        "billing_admin_alpha": (access_pb2.ROLE_BILLING_ADMIN, of_alpha),
        "member_alpha": (access_pb2.ROLE_MEMBER, of_alpha),
        "customer_alpha": (access_pb2.ROLE_CUSTOMER, {"customer_id": alpha.customer}),
    }
    for name, (role, fields) in keys.items():
        secret, _ = await _create_key(world, role, name, **fields)
        world.add(name, role, secret)
    secret, revoked = await _create_key(world, access_pb2.ROLE_OPERATOR, "revoked")
    await world.ledger.operator.directory.RevokeApiKey(
        directory_service_pb2.RevokeApiKeyRequest(api_key_id=revoked)
    )
    world.add("revoked", None, secret)
    world.add("stranger", None, "")


async def _share(world: World) -> None:
    alpha, bravo = world.alpha, world.bravo
    posted = await world.ledger.service.ledger.PostCharge(
        ledger_service_pb2.PostChargeRequest(
            intent=charge_intent(alpha.customer, "wf-shared", SHARED_GROSS, alpha, bravo)
        )
    )
    world.shared_charge = posted.posted.charge.charge_id
    world.shared_transaction = posted.posted.charge.transaction_id
    adjusted = await world.ledger.operator.ledger.AdjustBalances(adjust_request("both", alpha, bravo))
    world.adjustment = adjusted.transaction.transaction_id


def grant_request(things: Things) -> ledger_service_pb2.GrantCreditsRequest:
    return ledger_service_pb2.GrantCreditsRequest(
        customer_id=things.customer,
        amount=usd(BRAVO_GRANT if things.tenant == "bravo" else 50_000_000),
        source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
        idempotency_key="first",
    )


def book_request(things: Things) -> pricing_service_pb2.CreatePriceBookRequest:
    return pricing_service_pb2.CreatePriceBookRequest(
        organization_id=things.organization, currency_code="USD", display_name=things.tenant
    )


def publish_request(things: Things) -> pricing_service_pb2.PublishPriceVersionRequest:
    return pricing_service_pb2.PublishPriceVersionRequest(
        price_version_id=things.published, effective_time=Timestamp(seconds=0)
    )


def usage_event(customer_id: str, agent_id: str, workflow_id: str) -> usage_pb2.UsageEvent:
    return usage_pb2.UsageEvent(
        customer_id=customer_id,
        workflow_id=workflow_id,
        agent_id=agent_id,
        action_type="run",
        evidence_ref=f"of-{agent_id}",
    )


def charge_intent(customer_id: str, workflow_id: str, gross: int, *payees: Things) -> charge_pb2.ChargeIntent:
    return charge_pb2.ChargeIntent(
        customer_id=customer_id,
        workflow_id=workflow_id,
        component=charge_pb2.CHARGE_COMPONENT_BASE,
        gross=usd(gross),
        payees=[
            charge_pb2.Payee(organization_id=payee.organization, agent_id=payee.agent, weight=1)
            for payee in payees
        ],
        occur_time=OCCURRED,
        price_version_id="pv_test",
    )


def adjust_request(key: str, *things: Things) -> ledger_service_pb2.AdjustBalancesRequest:
    """A micro to the customer of each tenant."""
    owners = [(one.customer, account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, 1) for one in things]
    owners.append(("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, -len(things)))
    return ledger_service_pb2.AdjustBalancesRequest(
        postings=[
            ledger_service_pb2.Posting(
                account=account_pb2.AccountRef(owner_id=owner_id, kind=kind, currency_code="USD"),
                amount=usd(amount),
            )
            for owner_id, kind, amount in owners
        ],
        reason="A test of tenants.",
        idempotency_key=key,
    )


@dataclass(frozen=True)
class Running:
    """The world, in an event loop that runs while a test waits for it."""

    runner: asyncio.Runner
    world: World
