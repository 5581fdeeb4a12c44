"""Shadows: candidate versions rate live traffic and charge nothing, each thing once, come what may."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from services.kit.db import Database
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.subscription_catalog import SubscriptionCatalog
from services.metering.shadow_rater import ShadowRater
from services.metering.store import shadows
from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tallystick.metering.v1 import rating_service_pb2 as pb
from tests.integration.metering.test_rating import CHEAPER, draft, usd
from tests.integration.metering.world import RUN_MICROS, World, refused, run
from tests.support.metering_server import Caller, fee, price
from tests.support.waiting import eventually

CHEAP_MICROS = 1_000 + 600 + 100_000


async def start(caller: Caller, version_id: str, key: str = "one") -> pb.Shadow:
    request = pb.StartShadowRequest(price_version_id=version_id, idempotency_key=key)
    return (await caller.rating.StartShadow(request)).shadow


async def look(caller: Caller, shadow_id: str) -> pb.Shadow:
    return (await caller.rating.GetShadow(pb.GetShadowRequest(shadow_id=shadow_id))).shadow


async def saw(caller: Caller, shadow_id: str, charge_count: int) -> pb.Shadow:
    """The shadow once it has rated so many charges."""

    async def is_there() -> bool:
        return (await look(caller, shadow_id)).charge_count >= charge_count

    await eventually(is_there)
    return await look(caller, shadow_id)


async def divergences(caller: Caller, shadow_id: str) -> list[pb.ShadowDivergence]:
    request = pb.ListShadowDivergencesRequest(shadow_id=shadow_id)
    return list((await caller.rating.ListShadowDivergences(request)).divergences)


async def test_a_candidate_rates_live_traffic(world: World) -> None:
    operator = world.server.operator
    await world.meter(run("wf-before"))

    async def is_sequenced() -> bool:
        return world.server.query("SELECT count(*) FROM metering.unsequenced_usage") == [(0,)]

    await eventually(is_sequenced)
    version_id = await draft(operator, "", CHEAPER)
    shadow = await start(operator, version_id)
    assert shadow.state == pb.SHADOW_STATE_RUNNING
    await world.meter(run("wf-1"))
    await world.meter(run("wf-2", "cus_2"))
    await world.meter(run("wf-3", "cus_2", outcome=usage_pb2.OUTCOME_FAILURE))
    found = await saw(operator, shadow.shadow_id, 3)
    assert found.charge_count == found.differing_charge_count == 3
    assert found.charged == usd(3 * RUN_MICROS - 200_000)
    assert found.shadowed == usd(2 * CHEAP_MICROS + 1_600)
    one, two = await divergences(operator, shadow.shadow_id)
    assert (one.customer_id, two.customer_id) == ("cus_1", "cus_2")
    assert (one.agent_id, one.organization_id, one.agent_version) == ("agt_a", "org_a", "")
    assert one.difference == usd(CHEAP_MICROS - RUN_MICROS)
    assert two.charge_count == 2


async def test_a_decided_outcome_is_a_charge_of_its_own(world: World) -> None:
    operator = world.server.operator
    shadow = await start(operator, await draft(operator, "", CHEAPER))
    pending = await world.meter(run("wf-1", outcome=usage_pb2.OUTCOME_PENDING))
    await world.host.metering.ResolveOutcome(
        metering_service_pb2.ResolveOutcomeRequest(
            outcome_id=pending.deferred_outcome.outcome_id, outcome=usage_pb2.OUTCOME_SUCCESS
        )
    )
    found = await saw(operator, shadow.shadow_id, 2)
    assert found.charged == usd(RUN_MICROS)
    assert found.shadowed == usd(CHEAP_MICROS)


async def test_what_the_candidate_has_no_price_for_is_only_counted(world: World) -> None:
    operator = world.server.operator
    version_id = await draft(operator, "", price(fee("1"), action_types=["other"]))
    shadow = await start(operator, version_id)
    await world.meter(run("wf-1"))
    found = await saw(operator, shadow.shadow_id, 1)
    assert found.unpriced_charge_count == 1
    assert found.charged == found.shadowed == usd(0)


async def test_a_shadow_starts_once_and_stops_for_good(world: World) -> None:
    operator = world.server.operator
    version_id = await draft(operator, "", CHEAPER)
    shadow = await start(operator, version_id)
    assert (await start(operator, version_id)).shadow_id == shadow.shadow_id
    stop = pb.StopShadowRequest(shadow_id=shadow.shadow_id)
    stopped = (await operator.rating.StopShadow(stop)).shadow
    assert stopped.state == pb.SHADOW_STATE_STOPPED
    assert (await operator.rating.StopShadow(stop)).shadow == stopped
    await world.meter(run("wf-1"))
    other = await start(operator, version_id, "another")
    await world.meter(run("wf-2"))
    await saw(operator, other.shadow_id, 1)
    assert (await look(operator, shadow.shadow_id)).charge_count == 0
    listed = await operator.rating.ListShadows(pb.ListShadowsRequest(page_size=1))
    assert [one.shadow_id for one in listed.shadows] == [other.shadow_id]
    rest = await operator.rating.ListShadows(
        pb.ListShadowsRequest(page_size=1, page_token=listed.next_page_token)
    )
    assert [one.shadow_id for one in rest.shadows] == [shadow.shadow_id]


async def test_an_owner_has_so_many_that_run(world: World) -> None:
    operator = world.server.operator
    version_id = await draft(operator, "", CHEAPER)
    for number in range(10):
        await start(operator, version_id, f"key-{number}")
    error = await refused(start(operator, version_id, "one too many"))
    assert (error.reason, error.metadata["limit"]) == ("RATING_BUSY", "10")


async def test_owners_shadow_their_own_agents_work(world: World) -> None:
    owner, other = await world.new_owner("org_a"), await world.new_owner("org_b")
    shadow = await start(owner, await draft(owner, "org_a", CHEAPER))
    await world.meter(run("wf-1", agent_id="agt_b"))
    await world.meter(run("wf-2"))
    found = await saw(owner, shadow.shadow_id, 1)
    assert (found.charge_count, found.organization_id, found.lag) == (1, "org_a", 0)
    assert (await refused(look(other, shadow.shadow_id))).reason == "SHADOW_NOT_FOUND"
    assert (await refused(divergences(other, shadow.shadow_id))).reason == "SHADOW_NOT_FOUND"
    assert not (await other.rating.ListShadows(pb.ListShadowsRequest())).shadows


class _Killed(Exception):
    """The process ended here."""


@pytest.fixture
async def writer(world: World) -> AsyncIterator[Database]:
    """The connections of a rater of shadows beside the one that runs."""
    database = Database(world.server.database_url, role="metering_writer", schema="metering")
    await database.open()
    yield database
    await database.close()


async def test_whatever_is_interrupted_is_counted_once(
    world: World, writer: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = world.server.operator
    shadow = await start(operator, await draft(operator, "", CHEAPER))
    advance = shadows.advance

    async def killed(*arguments: object) -> None:
        # Everything is written, nothing committed: the backend dies, as it does with the process.
        await advance(*arguments)  # type: ignore[arg-type]
        connection = arguments[0]
        assert isinstance(connection, psycopg.AsyncConnection)
        await connection.close()
        raise _Killed

    monkeypatch.setattr(shadows, "advance", killed)
    for number in range(20):
        await world.meter(run(f"wf-{number}"))
    interrupted = 0
    for _ in range(50):
        try:
            await ShadowRater(writer, ContractCatalog(writer), SubscriptionCatalog(writer)).step()
        except _Killed:
            interrupted += 1
        if interrupted >= 3:
            break
        await asyncio.sleep(0.02)
    assert interrupted >= 3
    assert (await look(operator, shadow.shadow_id)).charge_count == 0
    monkeypatch.setattr(shadows, "advance", advance)
    # Several at once, besides the one of the server.
    await asyncio.gather(
        *(ShadowRater(writer, ContractCatalog(writer), SubscriptionCatalog(writer)).step() for _ in range(4))
    )
    found = await saw(operator, shadow.shadow_id, 20)
    assert found.charge_count == 20
    assert found.charged == money_pb2.Money(currency_code="USD", amount_micros=20 * RUN_MICROS)
    assert found.shadowed == usd(20 * CHEAP_MICROS)
