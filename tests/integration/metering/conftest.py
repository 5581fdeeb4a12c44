"""A metering with its ledger, two organizations, two customers and a host."""

from collections.abc import AsyncIterator

import pytest

from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import ledger_service_pb2
from tests.integration.metering.world import World
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.metering_server import AGENT_RUN, running_metering


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[LedgerServer]:
    """A ledger with org_a (agent agt_a), org_b (agt_b), and the customers cus_1 and cus_2.

    cus_1 has 100 USD of credits, cus_2 nothing.
    """
    async with running_ledger(database_url) as running:
        for organization_id in ("org_a", "org_b"):
            await running.create_organization(organization_id)
        for customer_id in ("cus_1", "cus_2"):
            await running.create_customer(customer_id)
        await running.operator.ledger.GrantCredits(
            ledger_service_pb2.GrantCreditsRequest(
                customer_id="cus_1",
                amount=money_pb2.Money(currency_code="USD", amount_micros=100_000_000),
                source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
                idempotency_key="first",
            )
        )
        yield running


@pytest.fixture
async def host_key(ledger: LedgerServer) -> str:
    """A host of the platform."""
    return (await ledger.create_caller(access_pb2.ROLE_HOST, "host")).key


@pytest.fixture
async def world(database_url: str, ledger: LedgerServer, host_key: str) -> AsyncIterator[World]:
    """Metering in front of that ledger; the platform's book charges for agent runs."""
    async with running_metering(database_url, ledger) as running:
        await running.publish(AGENT_RUN)
        yield World(running, running.caller(host_key))
