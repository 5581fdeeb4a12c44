"""Stores that go away: finished work is answered UNAVAILABLE, and goes on when they are back."""

from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from sandbox.servers import Stores
from services.kit.errors import Code
from services.ledger.migrations import migrate as migrate_ledger
from services.metering.migrations import migrate as migrate_metering
from tallystick.common.v1 import access_pb2
from tests.integration.metering.world import RUN_MICROS, World, refused, run
from tests.support.ledger_server import running_ledger
from tests.support.metering_server import AGENT_RUN, running_metering
from tests.support.waiting import eventually


@pytest.fixture
async def own_world(own_stores: Stores) -> AsyncIterator[World]:
    """Metering and ledger on stores that this test may stop."""
    url = own_stores.database_url
    migrate_ledger(url)
    migrate_metering(url)
    async with running_ledger(url) as ledger:
        await ledger.create_organization("org_a")
        await ledger.create_customer("cus_1")
        key = (await ledger.create_caller(access_pb2.ROLE_HOST, "host")).key
        async with running_metering(url, ledger, redis_url=own_stores.redis_url) as running:
            await running.publish(AGENT_RUN)
            world = World(running, running.caller(key))
            await world.meter(run("first"))
            yield world


async def test_metering_survives_a_restart_of_postgresql(own_world: World, own_stores: Stores) -> None:
    assert own_stores.postgres is not None
    own_stores.postgres.stop("immediate")

    answer = await refused(own_world.meter(run("run-1")))
    assert (answer.code, answer.retry_after is not None) == (Code.UNAVAILABLE, True)

    own_stores.postgres.start()

    async def recovered() -> bool:
        return await own_world.is_answered(own_world.meter(run("run-1")))

    await eventually(recovered)
    assert (await own_world.meter(run("run-1"))).price_charged.amount_micros == RUN_MICROS
    assert (await own_world.meter(run("first"))).duplicate
    await eventually(own_world.nothing_is_pending)
    assert own_world.charge_count() == 2


async def test_finished_work_does_not_need_valkey(own_world: World, own_stores: Stores) -> None:
    assert own_stores.valkey is not None

    async def seen_up() -> bool:
        return REGISTRY.get_sample_value("tallystick_valkey_up") == 1

    async def seen_down() -> bool:
        return REGISTRY.get_sample_value("tallystick_valkey_up") == 0

    await eventually(seen_up)
    own_stores.valkey.stop()
    await eventually(seen_down)
    assert (await own_world.meter(run("run-1"))).price_charged.amount_micros == RUN_MICROS
    own_stores.valkey.start()
    await eventually(seen_up)
