"""Two tenants on one platform, everybody who could have a key, and every RPC by its descriptor."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import psycopg
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import status_pb2

from services.kit.client import connect
from services.kit.errors import Code
from tallystick.common.v1 import access_pb2
from tallystick.common.v1.access_pb2 import Role
from tallystick.ledger.v1 import (
    audit_service_pb2,
    credit_service_pb2,
    directory_service_pb2,
    earnings_service_pb2,
    funding_service_pb2,
    ledger_service_pb2,
    proof_service_pb2,
)
from tallystick.metering.v1 import (
    budget_service_pb2,
    contract_service_pb2,
    metering_service_pb2,
    period_service_pb2,
    pricing_service_pb2,
    rating_service_pb2,
    reservation_service_pb2,
    subscription_service_pb2,
    usage_feed_service_pb2,
)
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import MeteringServer
from tests.support.waiting import eventually

LEDGER_SERVICES: tuple[ServiceDescriptor, ...] = (
    ledger_service_pb2.DESCRIPTOR.services_by_name["LedgerService"],
    directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"],
    credit_service_pb2.DESCRIPTOR.services_by_name["CreditService"],
    earnings_service_pb2.DESCRIPTOR.services_by_name["EarningsService"],
    funding_service_pb2.DESCRIPTOR.services_by_name["FundingService"],
    audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
    proof_service_pb2.DESCRIPTOR.services_by_name["LedgerProofService"],
)
METERING_SERVICES: tuple[ServiceDescriptor, ...] = (
    metering_service_pb2.DESCRIPTOR.services_by_name["MeteringService"],
    pricing_service_pb2.DESCRIPTOR.services_by_name["PricingService"],
    budget_service_pb2.DESCRIPTOR.services_by_name["BudgetService"],
    contract_service_pb2.DESCRIPTOR.services_by_name["ContractService"],
    subscription_service_pb2.DESCRIPTOR.services_by_name["SubscriptionService"],
    reservation_service_pb2.DESCRIPTOR.services_by_name["ReservationService"],
    usage_feed_service_pb2.DESCRIPTOR.services_by_name["UsageFeedService"],
    rating_service_pb2.DESCRIPTOR.services_by_name["RatingService"],
    period_service_pb2.DESCRIPTOR.services_by_name["PeriodService"],
)
METHODS: dict[str, MethodDescriptor] = {
    method.full_name: method
    for service in (*LEDGER_SERVICES, *METERING_SERVICES)
    for method in service.methods
}

# Odd amounts, so that they are recognized wherever they turn up.
BRAVO_GRANT = 77_770_001
BRAVO_FEE = "0.031337"
BRAVO_LIMIT = 1_313_131
BRAVO_RESERVED = 2_424_243
SHARED_GROSS = 900_000

PLATFORM = frozenset({"operator", "service"})


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
    shadow: str = ""
    charge: str = ""
    transaction: str = ""
    grant: str = ""
    outcome: str = ""
    # Two reservations: what happens to the second does not disturb the first.
    reservation: str = ""
    token: str = ""
    second_token: str = ""
    # What happens to the second and the third does not disturb the first.
    subscriptions: list[str] = field(default_factory=list)
    # Of two that have been closed of a period, the first.
    closing: str = ""

    @property
    def organization(self) -> str:
        return f"org_{self.tenant}"

    @property
    def customer(self) -> str:
        return f"cus_{self.tenant}"

    # Two that do nothing: who freezes them is in nobody's way.
    @property
    def idle_organization(self) -> str:
        return f"{self.organization}_idle"

    @property
    def idle_customer(self) -> str:
        return f"{self.customer}_idle"

    @property
    def agent(self) -> str:
        return f"agt_{self.tenant}"

    @property
    def member(self) -> str:
        return f"mem_{self.tenant}"

    @property
    def contract(self) -> str:
        return f"con_{self.tenant}"

    @property
    def plans(self) -> str:
        return f"pb_plans_{self.tenant}"

    @property
    def budget(self) -> str:
        return f"bud_{self.tenant}"

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
    # A charge of cus_bravo that is unpaid, and adjustments that wait for somebody to decide.
    unpaid_charge: str = ""
    proposals: tuple[str, str] = ("", "")
    platform_book: str = ""

    def propose(self, adjustment_id: str) -> str:
        """A proposal of nobody here: this ledger posts at once what its operator asks for."""
        self._admin.execute(
            "INSERT INTO ledger.adjustment VALUES (%s, %s, '{customer_credits,adjustments}', '{USD,USD}',"
            " '{1,-1}', 'A test of tenants.', 'key_elsewhere', now(), now() + interval '7 days')",
            (adjustment_id, [self.bravo.customer, "platform"]),
        )
        self._admin.execute(
            "INSERT INTO ledger.idempotency VALUES ('platform', %s, '', %s)",
            (f"adjustment-proposal/{adjustment_id}", adjustment_id),
        )
        return adjustment_id

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
            things.shadow,
            things.closing,
            things.charge,
            things.transaction,
            things.grant,
            things.outcome,
            things.reservation,
            things.token,
            things.second_token,
        )
        assert all(ids)
        amounts = (BRAVO_GRANT, BRAVO_LIMIT, BRAVO_RESERVED)
        return ("bravo", BRAVO_FEE, *map(str, amounts), *ids)

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
                " + (SELECT count(*) FROM ledger.journal_log l LEFT JOIN ledger.lot_feed f USING (log_id)"
                "    WHERE l.last_position > coalesce(f.position, 0))"
                " + (SELECT count(*) FROM ledger.promotion_due)"
                " + (SELECT count(*) FROM metering.pending_charge)"
                " + (SELECT count(*) FROM metering.unsequenced_usage)"
                " + (SELECT count(*) FROM metering.shadow s JOIN metering.usage_log l USING (log_id)"
                "    WHERE s.stop_time IS NULL AND s.position < l.last_position)"
                # The lock of an audit that runs.
                " + (SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
                "    WHERE locktype = 'advisory' AND d.datname = current_database())"
            ).fetchall()
            return rows == [(0,)]

        try:
            await eventually(nothing_waits)
        except TimeoutError:
            deltas = self.rows("SELECT * FROM ledger.balance_delta LIMIT 3")
            charges = self.rows("SELECT * FROM metering.pending_charge LIMIT 3")
            raise AssertionError(f"not at rest: deltas {deltas}, charges {charges}") from None


@dataclass(frozen=True)
class Running:
    """The world, in an event loop that runs while a test waits for it."""

    runner: asyncio.Runner
    world: World
