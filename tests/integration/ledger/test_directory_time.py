"""What depends on the time of day, with a clock that the test moves; and a commit whose answer was lost."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.auth import Principal, Role, generate_api_key
from services.kit.client import connect
from services.kit.clock import FixedClock
from services.kit.db import Database
from services.kit.server import bind, build_server
from services.ledger.rpc.directory import DirectoryService
from services.ledger.store.api_keys import DatabaseKeyResolver
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import directory_service_pb2 as pb
from tallystick.ledger.v1 import directory_service_pb2_grpc
from tests.support.rpc_errors import refusal

if TYPE_CHECKING:
    from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceAsyncStub

HOUR = timedelta(hours=1)


class OneOperator:
    """Takes everybody for the same operator."""

    async def authenticate(self, api_key: str) -> Principal:
        return Principal(api_key_id="key_operator", role=Role.OPERATOR)


class LosingDatabase(Database):
    """Commits, and then loses the connection before it can say so: `losses` times."""

    losses = 0

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        async with super().begin() as connection:
            yield connection
        if self.losses > 0:
            self.losses -= 1
            raise psycopg.OperationalError("server closed the connection unexpectedly")


@dataclass(frozen=True)
class Scene:
    clock: FixedClock
    writer: LosingDatabase
    resolver: DatabaseKeyResolver
    directory: DirectoryServiceAsyncStub


@pytest.fixture
async def scene(database_url: str) -> AsyncIterator[Scene]:
    """A directory of its own clock, with org_a, called by an operator."""
    clock = FixedClock(datetime.now(UTC))
    writer = LosingDatabase(database_url, role="ledger_writer", schema="ledger")
    reader = Database(database_url, role="ledger_reader", schema="ledger")
    service = bind(
        pb.DESCRIPTOR.services_by_name["DirectoryService"],
        directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server,
        DirectoryService(writer, reader, clock),
    )
    server = build_server(services=[service], authenticator=OneOperator())
    address = server.listen("127.0.0.1:0")
    await server.start()
    async with connect(address, generate_api_key("key_operator")) as channel:
        directory = directory_service_pb2_grpc.DirectoryServiceStub(channel)
        await directory.CreateOrganization(pb.CreateOrganizationRequest(organization_id="org_a"))
        yield Scene(clock, writer, DatabaseKeyResolver(reader), directory)
    await server.stop(timedelta(seconds=1))
    await writer.close()
    await reader.close()


def timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


async def test_an_agreement_may_be_repeated_after_it_began(scene: Scene) -> None:
    request = pb.CreateRevenueShareAgreementRequest(
        organization_id="org_a", effective_time=timestamp(scene.clock.now() + HOUR), idempotency_key="k"
    )
    first = await scene.directory.CreateRevenueShareAgreement(request)
    assert first.agreement.create_time == timestamp(scene.clock.now())
    scene.clock.advance(2 * HOUR)
    assert await scene.directory.CreateRevenueShareAgreement(request) == first
    request.idempotency_key = "another"
    answer = await refusal(scene.directory.CreateRevenueShareAgreement(request))
    assert set(answer.fields) == {"effective_time"}


async def test_agreements_start_this_very_moment_or_later(scene: Scene) -> None:
    def request(effective_time: datetime, key: str) -> pb.CreateRevenueShareAgreementRequest:
        return pb.CreateRevenueShareAgreementRequest(
            organization_id="org_a", effective_time=timestamp(effective_time), idempotency_key=key
        )

    now = scene.clock.now()
    answer = await refusal(
        scene.directory.CreateRevenueShareAgreement(request(now - timedelta(microseconds=1), "past"))
    )
    assert answer.fields == ["effective_time"]
    created = await scene.directory.CreateRevenueShareAgreement(request(now, "now"))
    assert created.agreement.effective_time == timestamp(now)


async def test_a_key_may_be_asked_for_again_after_it_expired(scene: Scene) -> None:
    request = pb.CreateApiKeyRequest(
        role=access_pb2.ROLE_HOST, expire_time=timestamp(scene.clock.now() + HOUR), idempotency_key="k"
    )
    first = await scene.directory.CreateApiKey(request)
    scene.clock.advance(2 * HOUR)
    assert (await scene.directory.CreateApiKey(request)).api_key == first.api_key
    request.idempotency_key = "another"
    assert (await refusal(scene.directory.CreateApiKey(request))).fields == ["expire_time"]


async def test_an_expired_key_is_nobodys(scene: Scene, database_url: str) -> None:
    created = await scene.directory.CreateApiKey(
        pb.CreateApiKeyRequest(
            role=access_pb2.ROLE_HOST, expire_time=timestamp(scene.clock.now() + HOUR), idempotency_key="k"
        )
    )
    key_hash = hashlib.sha256(created.secret.encode()).digest()
    principal = await scene.resolver.resolve(key_hash)
    assert principal is not None
    assert principal.api_key_id == created.api_key.api_key_id
    assert principal.expires_at == scene.clock.now() + HOUR
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE ledger.api_key SET expire_time = now() WHERE key_hash = %s", (key_hash,))
    assert await scene.resolver.resolve(key_hash) is None


async def test_a_lost_answer_costs_neither_the_secret_nor_a_second_key(scene: Scene) -> None:
    request = pb.CreateApiKeyRequest(role=access_pb2.ROLE_HOST, idempotency_key="k")
    scene.writer.losses = 1
    created = await scene.directory.CreateApiKey(request)
    assert scene.writer.losses == 0
    assert created.secret
    assert await scene.resolver.resolve(hashlib.sha256(created.secret.encode()).digest()) is not None
    assert len((await scene.directory.ListApiKeys(pb.ListApiKeysRequest())).api_keys) == 1


async def test_a_lost_answer_makes_nothing_twice(scene: Scene) -> None:
    directory = scene.directory
    scene.writer.losses = 1
    agreement = await directory.CreateRevenueShareAgreement(
        pb.CreateRevenueShareAgreementRequest(organization_id="org_a", idempotency_key="k")
    )
    listed = await directory.ListRevenueShareAgreements(
        pb.ListRevenueShareAgreementsRequest(organization_id="org_a")
    )
    assert listed.agreements[0] == agreement.agreement
    assert len(listed.agreements) == 2
    scene.writer.losses = 1
    customer = await directory.CreateCustomer(pb.CreateCustomerRequest())
    customers = await directory.ListCustomers(pb.ListCustomersRequest())
    assert list(customers.customers) == [customer.customer]
