"""A real ledger server in the test's own process, on a free port, with keys to call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import grpc
import psycopg

from services.kit.client import connect
from services.kit.server import build_server
from services.ledger.app import open_app
from services.ledger.config import LedgerConfig
from services.ledger.create_key import CreateKeyConfig, create_key
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1.audit_service_pb2_grpc import AuditServiceStub
from tallystick.ledger.v1.credit_service_pb2_grpc import CreditServiceStub
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub
from tallystick.ledger.v1.earnings_service_pb2_grpc import EarningsServiceStub
from tallystick.ledger.v1.funding_service_pb2_grpc import FundingServiceStub
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tallystick.ledger.v1.proof_service_pb2_grpc import LedgerProofServiceStub

if TYPE_CHECKING:
    # The stubs' types of calls on an aio channel; at run time there is one class for both.
    from tallystick.ledger.v1.audit_service_pb2_grpc import AuditServiceAsyncStub
    from tallystick.ledger.v1.credit_service_pb2_grpc import CreditServiceAsyncStub
    from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceAsyncStub
    from tallystick.ledger.v1.earnings_service_pb2_grpc import EarningsServiceAsyncStub
    from tallystick.ledger.v1.funding_service_pb2_grpc import FundingServiceAsyncStub
    from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceAsyncStub
    from tallystick.ledger.v1.proof_service_pb2_grpc import LedgerProofServiceAsyncStub


@dataclass(frozen=True)
class Caller:
    """Somebody with an API key, and the services as that key reaches them."""

    key: str
    ledger: LedgerServiceAsyncStub
    directory: DirectoryServiceAsyncStub
    credits: CreditServiceAsyncStub
    earnings: EarningsServiceAsyncStub
    funding: FundingServiceAsyncStub
    audits: AuditServiceAsyncStub
    proofs: LedgerProofServiceAsyncStub


def _caller(key: str, channel: grpc.aio.Channel) -> Caller:
    return Caller(
        key,
        LedgerServiceStub(channel),
        DirectoryServiceStub(channel),
        CreditServiceStub(channel),
        EarningsServiceStub(channel),
        FundingServiceStub(channel),
        AuditServiceStub(channel),
        LedgerProofServiceStub(channel),
    )


@dataclass
class LedgerServer:
    """A ledger that runs, and its platform's callers."""

    address: str
    database_url: str
    operator: Caller
    service: Caller
    _channels: list[grpc.aio.Channel]

    def caller(self, key: str) -> Caller:
        """The services as the bearer of another key reaches them."""
        channel = connect(self.address, key)
        self._channels.append(channel)
        return _caller(key, channel)

    async def create_caller(
        self,
        role: access_pb2.Role.ValueType,
        name: str,
        *,
        organization_id: str = "",
        customer_id: str = "",
    ) -> Caller:
        """Somebody with a new key."""
        created = await self.operator.directory.CreateApiKey(
            directory.CreateApiKeyRequest(
                role=role, organization_id=organization_id, customer_id=customer_id, idempotency_key=name
            )
        )
        return self.caller(created.secret)

    async def create_organization(
        self,
        organization_id: str,
        platform_fee_bps: int = 1500,
        processing_fee_bps: int = 290,
        hold_days: int = 0,
        window_days: int = 0,
    ) -> str:
        """An organization with one agent of the same name; answers the agent's id."""
        await self.operator.directory.CreateOrganization(
            directory.CreateOrganizationRequest(
                organization_id=organization_id,
                display_name=organization_id,
                platform_fee_bps=platform_fee_bps,
                processing_fee_bps=processing_fee_bps,
                settlement_hold_days=hold_days,
                dispute_window_days=window_days,
            )
        )
        agent_id = organization_id.replace("org_", "agt_")
        await self.operator.directory.CreateAgent(
            directory.CreateAgentRequest(
                agent_id=agent_id, organization_id=organization_id, display_name=agent_id
            )
        )
        return agent_id

    async def create_customer(self, customer_id: str) -> None:
        await self.operator.directory.CreateCustomer(directory.CreateCustomerRequest(customer_id=customer_id))


async def platform_key(database_url: str, role: str) -> str:
    """A new key of the platform, made as an operator makes the first one."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "key"
        await create_key(CreateKeyConfig(database_url=database_url, role=role, out=out))
        return out.read_text().strip()


# The secrets of the platform's keys by role, and their rows. Making a key costs an engine of its own: those
# of the first ledger of this process are written into the databases of all others.
_platform: dict[str, str] = {}
_platform_rows: list[str] = []


async def _platform_keys(database_url: str) -> dict[str, str]:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        if not _platform:
            made = {role: await platform_key(database_url, role) for role in ("operator", "service")}
            rows = await connection.execute("SELECT to_json(api_key)::text FROM ledger.api_key")
            _platform_rows.extend(text for (text,) in await rows.fetchall())
            _platform.update(made)
        for row in _platform_rows:
            await connection.execute(
                "INSERT INTO ledger.api_key SELECT * FROM json_populate_record(NULL::ledger.api_key, %s)"
                " ON CONFLICT DO NOTHING",
                [row],
            )
    return _platform


@asynccontextmanager
async def running_ledger(database_url: str, **settings: Any) -> AsyncIterator[LedgerServer]:
    """Serve a ledger on this database until the end of the `async with`, with its workers.

    `settings` are fields of its configuration. It audits when it is asked to; adjustments need no approval
    unless they say so: most tests are about something else.
    """
    usual = {
        "sequence_interval": timedelta(milliseconds=50),
        "audit_interval": timedelta(0),
        "adjustment_approval": "none",
    }
    config = LedgerConfig(database_url=database_url, **{**usual, **settings})
    async with open_app(config) as app:
        server = build_server(services=app.services, authenticator=app.authenticator, schema=app.schema)
        address = server.listen("127.0.0.1:0")
        await server.start()
        for worker in app.workers:
            worker.start()
        try:
            async with calling_ledger(address, database_url, await _platform_keys(database_url)) as ledger:
                yield ledger
        finally:
            await server.stop(timedelta(seconds=2))
            for worker in app.workers:
                await worker.stop(timedelta(seconds=2))


@asynccontextmanager
async def calling_ledger(
    address: str, database_url: str, keys: Mapping[str, str]
) -> AsyncIterator[LedgerServer]:
    """A ledger that serves at this address, with the platform's keys by role."""
    channels: list[grpc.aio.Channel] = []

    def caller(key: str) -> Caller:
        channel = connect(address, key)
        channels.append(channel)
        return _caller(key, channel)

    try:
        yield LedgerServer(
            address=address,
            database_url=database_url,
            operator=caller(keys["operator"]),
            service=caller(keys["service"]),
            _channels=channels,
        )
    finally:
        for channel in channels:
            await channel.close()
