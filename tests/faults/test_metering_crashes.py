"""kill -9 at every step of the workers that renew subscriptions and close billing periods: each fee and each
closing is charged once. The steps are found by enumeration: see tests/faults/crashing_metering.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from services.kit.db import Database
from services.ledger.audit import audit
from services.metering.config import MeteringConfig
from tallystick.common.v1 import access_pb2
from tests.faults.crashing_metering import work
from tests.integration.metering.test_periods import FEE, LAST_MONTH, TIERS, priced, used
from tests.integration.metering.test_subscriptions import PLANS, backlog, offer
from tests.integration.metering.world import World
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.metering_server import TOKEN_KEY, running_metering

# More than there are steps.
MOST = 60
# As if all waits were over.
AT_ONCE = "UPDATE metering.{} SET next_attempt_time = now() WHERE next_attempt_time IS NOT NULL"


@pytest.fixture
async def metering_ledger(database_url: str) -> AsyncIterator[LedgerServer]:
    async with running_ledger(database_url) as running:
        await running.create_organization("org_a")
        await running.create_customer("cus_1")
        yield running


@asynccontextmanager
async def set_up(ledger: LedgerServer) -> AsyncIterator[World]:
    """Metering as long as there is something to prepare: its own workers would do the work afterwards."""
    async with running_metering(ledger.database_url, ledger) as running:
        host = await ledger.create_caller(access_pb2.ROLE_HOST, "host")
        yield World(running, running.caller(host.key))


def config_of(ledger: LedgerServer) -> MeteringConfig:
    return MeteringConfig(
        database_url=ledger.database_url,
        ledger_address=ledger.address,
        ledger_api_key=ledger.service.key,
        token_keys=TOKEN_KEY,
    )


def execute(database_url: str, statement: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(statement.encode())


def charges(database_url: str, like: str) -> list[tuple[object, ...]]:
    with psycopg.connect(database_url) as connection:
        return connection.execute(
            "SELECT customer_id, workflow_id, ordinal, gross FROM ledger.charge WHERE workflow_id LIKE %s"
            " ORDER BY 1, 2, 3",
            (like,),
        ).fetchall()


def waiting(database_url: str, table: str) -> int:
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            f"SELECT FROM metering.{table} WHERE next_attempt_time IS NOT NULL".encode()
        ).fetchall()
    return len(rows)


async def test_whatever_step_a_renewal_is_killed_at_each_fee_is_charged_once(
    metering_ledger: LedgerServer,
) -> None:
    ledger = metering_ledger
    database_url, config = ledger.database_url, config_of(ledger)
    async with set_up(ledger) as world:
        version = await offer(world, *PLANS)
    writer = Database(database_url, role="metering_writer", schema="metering")
    await writer.open()
    crash_at, survived = 0, False
    while not survived:
        crash_at += 1
        assert crash_at < MOST
        (id_,) = await backlog(writer, [crash_at], version)
        survived = await asyncio.to_thread(work, config, "subscription_fees", crash_at=crash_at)
        # Another process takes over when it is its turn.
        execute(database_url, AT_ONCE.format("subscription_fee"))
        assert await asyncio.to_thread(work, config, "subscription_fees")
        found = charges(database_url, f"{id_}/%")
        assert [(ordinal, gross) for _, _, ordinal, gross in found] == [(0, 2_500_000)] * 3
        assert waiting(database_url, "subscription_fee") == 0
    await writer.close()
    # It was killed at each step but the last time: else nothing was tested.
    assert crash_at > 8
    assert len(charges(database_url, "sub_%")) == 3 * crash_at
    assert await audit(database_url) == 0


async def test_whatever_step_the_close_of_a_period_is_killed_at_it_is_charged_once(
    metering_ledger: LedgerServer,
) -> None:
    ledger = metering_ledger
    database_url, config = ledger.database_url, config_of(ledger)
    customers = [f"cus_killed_{number}" for number in range(MOST)]
    async with set_up(ledger) as world:
        await world.server.publish(priced(TIERS), organization_id="org_a")
        for customer_id in customers:
            await ledger.create_customer(customer_id)
        await world.meter_batch(*(used("run-1", 100, LAST_MONTH, customer_id) for customer_id in customers))
        # Nobody looks at them before it is their turn.
        world.server.execute("UPDATE metering.counted_period SET next_check_time = NULL")
    crash_at, survived = 0, False
    while not survived:
        crash_at += 1
        customer_id = customers[crash_at]
        due = (
            "UPDATE metering.counted_period SET next_check_time = now() - interval '1 minute'"
            f" WHERE customer_id = '{customer_id}'"
        )
        execute(database_url, due)
        survived = await asyncio.to_thread(work, config, "period_closer", crash_at=crash_at)
        execute(database_url, AT_ONCE.format("period_closing"))
        execute(database_url, due)
        assert await asyncio.to_thread(work, config, "period_closer")
        found = [one for one in charges(database_url, "period/%") if one[0] == customer_id]
        assert [(ordinal, gross) for _, _, ordinal, gross in found] == [(0, 1_000)]
        assert waiting(database_url, "period_closing") == 0
    assert crash_at > 8
    assert len(charges(database_url, "period/%")) == crash_at
    assert len(charges(database_url, "run-1")) == MOST
    assert all(gross == FEE for _, _, _, gross in charges(database_url, "run-1"))
    assert await audit(database_url) == 0
