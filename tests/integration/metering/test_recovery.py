"""What a crash, or a ledger that is away, leaves behind is charged all the same, and once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
import pytest

from services.kit.errors import Code
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import charge_pb2, ledger_service_pb2
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tests.integration.metering.world import BONUS_MICROS, RUN_MICROS, World, refused, run
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import AGENT_RUN, running_metering
from tests.support.network import Gate, gate_to
from tests.support.waiting import eventually


@pytest.fixture
async def gate(ledger: LedgerServer) -> AsyncIterator[Gate]:
    """The way from metering to the ledger."""
    async with gate_to(ledger.address) as gate:
        yield gate


@asynccontextmanager
async def behind(
    gate: Gate, database_url: str, ledger: LedgerServer, host_key: str, recovery_delay: timedelta
) -> AsyncIterator[World]:
    """Metering that reaches its ledger through the gate, and has met everybody before."""
    async with running_metering(
        database_url, ledger, ledger_address=gate.address, recovery_delay=recovery_delay
    ) as running:
        await running.publish(AGENT_RUN)
        world = World(running, running.caller(host_key))
        await world.meter_batch(run("first"), run("first-2", "cus_2"))
        await eventually(world.nothing_is_pending)
        yield world


@pytest.fixture
async def far_world(
    gate: Gate, database_url: str, ledger: LedgerServer, host_key: str
) -> AsyncIterator[World]:
    """Metering behind the gate, with a recovery that begins soon."""
    async with behind(gate, database_url, ledger, host_key, timedelta(milliseconds=200)) as world:
        yield world


async def test_usage_reported_while_the_ledger_is_away_is_charged_once_when_it_is_back(
    far_world: World, gate: Gate
) -> None:
    before = await far_world.available()
    await gate.cut()

    answer = await refused(far_world.meter(run("run-1")))
    verdicts = await far_world.meter_batch(run("run-1"), run("run-2"))

    assert (answer.code, answer.reason) == (Code.UNAVAILABLE, "CHARGE_PENDING")
    assert answer.retry_after is not None
    charge_id = answer.metadata["charge_id"]
    assert [getattr(verdict, "reason", None) for verdict in verdicts] == ["CHARGE_PENDING"] * 2
    assert far_world.charge_count() == 2
    assert far_world.pending_count() == 2

    await gate.open()
    await eventually(far_world.nothing_is_pending)

    assert far_world.charge_count() == 4
    assert await far_world.available() == before - 2 * RUN_MICROS
    again = await far_world.meter(run("run-1"))
    assert (again.duplicate, again.charge_id) == (True, charge_id)
    assert await far_world.available() == before - 2 * RUN_MICROS


async def test_a_charge_whose_confirmation_was_lost_is_not_posted_twice(far_world: World, gate: Gate) -> None:
    before = await far_world.available()
    gate.swallow_answers()
    call = asyncio.create_task(refused(far_world.meter(run("run-1"))))

    async def posted() -> bool:
        return far_world.charge_count() == 3

    await eventually(posted)
    await gate.cut()
    assert (await call).reason == "CHARGE_PENDING"
    await gate.open()
    await eventually(far_world.nothing_is_pending)

    assert far_world.charge_count() == 3
    assert await far_world.available() == before - RUN_MICROS
    assert (await far_world.meter(run("run-1"))).from_credits.amount_micros == RUN_MICROS


async def test_a_pending_event_is_found_without_its_charge_and_a_retry_posts_it(
    gate: Gate, database_url: str, ledger: LedgerServer, host_key: str
) -> None:
    async with behind(gate, database_url, ledger, host_key, timedelta(hours=1)) as world:
        await gate.cut()
        assert (await refused(world.meter(run("run-1")))).reason == "CHARGE_PENDING"
        assert (await refused(world.find(run("run-1")))).code is Code.UNAVAILABLE
        await gate.open()

        async def reachable() -> bool:
            return await world.is_answered(world.find(run("first")))

        await eventually(reachable)
        found = await world.find(run("run-1"))
        assert found.event.workflow_id == "run-1"
        assert not found.HasField("metered")

        assert (await world.meter(run("run-1"))).from_credits.amount_micros == RUN_MICROS
        assert (await world.find(run("run-1"))).HasField("metered")
        await eventually(world.nothing_is_pending)


async def test_usage_recorded_just_before_a_crash_is_charged(world: World) -> None:
    await world.meter(run("run-1"))
    await eventually(world.nothing_is_pending)
    # As if the process had died between its commit and the ledger.
    with psycopg.connect(world.server.database_url) as connection:
        connection.execute(
            "INSERT INTO metering.usage_event SELECT customer_id, 'crashed', ordinal, organization_id,"
            " agent_id, occur_time, content, evidence_ref, evidence_hash, price_version_id, currency_code,"
            " amount_micros, lines, create_time FROM metering.usage_event"
        )
        connection.execute("INSERT INTO metering.pending_charge VALUES ('cus_1', 'crashed', 0, now(), 0, '')")

    await eventually(world.nothing_is_pending)

    assert world.charge_count() == 2
    assert await world.available() == 100_000_000 - 2 * RUN_MICROS


async def post_directly(world: World, workflow_id: str, customer_id: str = "cus_2") -> None:
    """Make the ledger know another charge of this identity, so that it refuses metering's."""
    response = await world.server.ledger.service.ledger.PostCharges(
        ledger_service_pb2.PostChargesRequest(
            intents=[
                charge_pb2.ChargeIntent(
                    customer_id=customer_id,
                    workflow_id=workflow_id,
                    component=charge_pb2.CHARGE_COMPONENT_BASE,
                    gross=money_pb2.Money(currency_code="USD", amount_micros=1),
                    payees=[charge_pb2.Payee(organization_id="org_a", agent_id="agt_a", weight=1)],
                    occur_time={"seconds": 1_700_000_000},  # type: ignore[arg-type]
                    price_version_id="pv_other",
                )
            ]
        )
    )
    assert response.verdicts[0].HasField("posted"), response


async def test_a_charge_that_the_ledger_refuses_is_kept_with_its_reason_and_not_tried_again(
    far_world: World,
) -> None:
    await post_directly(far_world, "run-1")

    answer = await refused(far_world.meter(run("run-1", "cus_2")))
    assert (answer.code, answer.reason) == (Code.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")

    async def given_up() -> bool:
        rows = far_world.server.query(
            "SELECT last_error FROM metering.pending_charge WHERE next_attempt_time = 'infinity'"
        )
        return len(rows) == 1 and str(rows[0][0]).startswith("IDEMPOTENCY_KEY_REUSED")

    await eventually(given_up)
    # The others go on.
    await far_world.meter(run("run-2"))

    async def only_the_refused_is_left() -> bool:
        return far_world.pending_count() == 1

    await eventually(only_the_refused_is_left)


def pending(workflow_id: str) -> usage_pb2.UsageEvent:
    return run(workflow_id, outcome=usage_pb2.OUTCOME_PENDING)


async def resolve(
    world: World, outcome_id: str, outcome: usage_pb2.Outcome.ValueType = usage_pb2.OUTCOME_SUCCESS
) -> metering_service_pb2.ResolveOutcomeResponse:
    return await world.host.metering.ResolveOutcome(
        metering_service_pb2.ResolveOutcomeRequest(outcome_id=outcome_id, outcome=outcome)
    )


async def held(world: World) -> int:
    response = await world.server.ledger.operator.ledger.GetCustomerBalance(
        ledger_service_pb2.GetCustomerBalanceRequest(customer_id="cus_1", currency_code="USD")
    )
    return response.balance.held.amount_micros


class TestOutcomes:
    async def test_an_outcome_resolved_while_the_ledger_is_away_is_charged_once_when_it_is_back(
        self, far_world: World, gate: Gate
    ) -> None:
        before = await far_world.available()
        outcome_id = (await far_world.meter(pending("run-1"))).outcome_id
        own = World(far_world.server, await far_world.new_host("own", organization_id="org_a"))
        # Known from then on.
        await own.meter(pending("run-1"))
        await gate.cut()

        answers = [await refused(resolve(world, outcome_id)) for world in (far_world, far_world, own)]
        otherwise = await refused(resolve(far_world, outcome_id, usage_pb2.OUTCOME_FAILURE))

        assert [(one.code, one.reason) for one in answers] == [(Code.UNAVAILABLE, "CHARGE_PENDING")] * 3
        assert otherwise.reason == "OUTCOME_ALREADY_RESOLVED"
        assert far_world.charge_count() == 3
        await gate.open()
        await eventually(far_world.nothing_is_pending)

        assert far_world.charge_count() == 4
        assert (await far_world.available(), await held(far_world)) == (before - RUN_MICROS, 0)
        again = await resolve(far_world, outcome_id)
        assert (again.duplicate, again.outcome.charge_id) == (True, answers[0].metadata["charge_id"])

    async def test_what_adds_nothing_is_answered_without_the_ledger_and_released_when_it_is_back(
        self, far_world: World, gate: Gate
    ) -> None:
        before = await far_world.available()
        outcome_id = (await far_world.meter(pending("run-1"))).outcome_id
        await gate.cut()

        answer = await resolve(far_world, outcome_id, usage_pb2.OUTCOME_FAILURE)

        assert (answer.duplicate, answer.outcome.outcome) == (False, usage_pb2.OUTCOME_FAILURE)
        assert not answer.HasField("available_balance")
        assert await held(far_world) == BONUS_MICROS
        await gate.open()
        await eventually(far_world.nothing_is_pending)
        assert (await far_world.available(), await held(far_world)) == (
            before - RUN_MICROS + BONUS_MICROS,
            0,
        )

    @pytest.mark.parametrize("outcome", [usage_pb2.OUTCOME_SUCCESS, usage_pb2.OUTCOME_FAILURE])
    async def test_what_is_held_for_an_outcome_that_is_decided_first_does_not_stay(
        self, far_world: World, gate: Gate, outcome: usage_pb2.Outcome.ValueType
    ) -> None:
        before = await far_world.available()
        await gate.cut()
        charge_id = (await refused(far_world.meter(pending("run-1")))).metadata["charge_id"]
        outcome_id = charge_id.replace("ch_", "out_")
        is_charged = outcome == usage_pb2.OUTCOME_SUCCESS
        if is_charged:
            assert (await refused(resolve(far_world, outcome_id, outcome))).reason == "CHARGE_PENDING"
        else:
            await resolve(far_world, outcome_id, outcome)
        await gate.open()
        await eventually(far_world.nothing_is_pending)

        cost = RUN_MICROS if is_charged else RUN_MICROS - BONUS_MICROS
        assert (await far_world.available(), await held(far_world)) == (before - cost, 0)

    async def test_an_outcome_may_be_resolved_before_anybody_has_posted_its_event(
        self, gate: Gate, database_url: str, ledger: LedgerServer, host_key: str
    ) -> None:
        async with behind(gate, database_url, ledger, host_key, timedelta(hours=1)) as world:
            before = await world.available()
            await gate.cut()
            charge_id = (await refused(world.meter(pending("run-1")))).metadata["charge_id"]
            await gate.open()

            async def reachable() -> bool:
                return await world.is_answered(world.find(run("first")))

            await eventually(reachable)
            answer = await resolve(world, charge_id.replace("ch_", "out_"))

            assert answer.outcome.bonus.amount_micros == BONUS_MICROS
            assert (await world.available(), await held(world)) == (before - RUN_MICROS, 0)
            await eventually(world.nothing_is_pending)

    async def test_a_bonus_whose_confirmation_was_lost_is_not_charged_twice(
        self, far_world: World, gate: Gate
    ) -> None:
        before = await far_world.available()
        outcome_id = (await far_world.meter(pending("run-1"))).outcome_id
        await eventually(far_world.nothing_is_pending)
        gate.swallow_answers()
        call = asyncio.create_task(refused(resolve(far_world, outcome_id)))

        async def posted() -> bool:
            return far_world.charge_count() == 4

        await eventually(posted)
        await gate.cut()
        assert (await call).reason == "CHARGE_PENDING"
        await gate.open()
        await eventually(far_world.nothing_is_pending)

        assert far_world.charge_count() == 4
        assert (await far_world.available(), await held(far_world)) == (before - RUN_MICROS, 0)

    async def test_outcomes_that_expire_while_the_ledger_is_away_give_back_what_was_held_later(
        self, far_world: World, gate: Gate
    ) -> None:
        before = await far_world.available()
        await far_world.meter_batch(*(pending(f"run-{number}") for number in range(10)))
        await gate.cut()
        far_world.server.query("UPDATE metering.deferred_outcome SET expire_time = now() RETURNING 1")

        async def expired() -> bool:
            return not far_world.server.query("SELECT FROM metering.deferred_outcome WHERE state = 'pending'")

        await eventually(expired)
        assert await held(far_world) == 10 * BONUS_MICROS
        await gate.open()
        await eventually(far_world.nothing_is_pending)

        assert (await far_world.available(), await held(far_world)) == (
            before - 10 * (RUN_MICROS - BONUS_MICROS),
            0,
        )
