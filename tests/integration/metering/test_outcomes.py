"""Outcomes that are decided after the work was metered: what is charged, held and given back, and when."""

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from services.kit.errors import Code
from services.kit.status import from_rpc_error
from services.metering.outcome_expiry import BATCH
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, charge_pb2, ledger_service_pb2
from tallystick.metering.v1 import (
    metering_service_pb2,
    outcome_pb2,
    price_book_pb2,
    usage_pb2,
)
from tests.integration.metering.world import BONUS_MICROS, RUN_MICROS, World, fields_of, refused, run
from tests.support.metering_server import Caller, bonus, fee, price
from tests.support.waiting import eventually

GRANTED = 100_000_000
BASE_MICROS = RUN_MICROS - BONUS_MICROS
SUCCESS, FAILURE = usage_pb2.OUTCOME_SUCCESS, usage_pb2.OUTCOME_FAILURE


def pending(workflow_id: str, customer_id: str = "cus_1", /, **changes: object) -> usage_pb2.UsageEvent:
    return run(workflow_id, customer_id, outcome=usage_pb2.OUTCOME_PENDING, **changes)


async def meter(world: World, workflow_id: str, customer_id: str = "cus_1", /, **changes: object) -> str:
    """Meter a pending event; the id of its outcome."""
    return (await world.meter(pending(workflow_id, customer_id, **changes))).outcome_id


async def resolve(
    world: World,
    outcome_id: str,
    outcome: usage_pb2.Outcome.ValueType = SUCCESS,
    *,
    host: Caller | None = None,
    evidence_ref: str = "",
) -> metering_service_pb2.ResolveOutcomeResponse:
    return await (host or world.host).metering.ResolveOutcome(
        metering_service_pb2.ResolveOutcomeRequest(
            outcome_id=outcome_id, outcome=outcome, evidence_ref=evidence_ref
        )
    )


async def get(world: World, outcome_id: str, host: Caller | None = None) -> outcome_pb2.DeferredOutcome:
    response = await (host or world.host).metering.GetOutcome(
        metering_service_pb2.GetOutcomeRequest(outcome_id=outcome_id)
    )
    return response.outcome


async def balance(world: World, customer_id: str = "cus_1") -> account_pb2.CustomerBalance:
    response = await world.server.ledger.operator.ledger.GetCustomerBalance(
        ledger_service_pb2.GetCustomerBalanceRequest(customer_id=customer_id, currency_code="USD")
    )
    return response.balance


async def charge(world: World, charge_id: str) -> charge_pb2.Charge:
    response = await world.server.ledger.operator.ledger.GetCharge(
        ledger_service_pb2.GetChargeRequest(charge_id=charge_id)
    )
    return response.charge


def make_due(world: World) -> None:
    """Move the time of every pending outcome into the past."""
    world.server.query(
        "UPDATE metering.deferred_outcome SET expire_time = now() WHERE state = 'pending' RETURNING 1"
    )


async def expired(world: World) -> bool:
    return not world.server.query("SELECT FROM metering.deferred_outcome WHERE state = 'pending'")


class TestMetering:
    async def test_what_does_not_depend_on_the_outcome_is_charged_at_once_and_the_rest_is_held(
        self, world: World
    ) -> None:
        before = datetime.now(UTC)
        metered = await world.meter(pending("run-1"))

        assert metered.price_charged.amount_micros == BASE_MICROS
        assert [line.component_name for line in metered.lines] == ["fee", "input", "output"]
        deferred = metered.deferred_outcome
        assert deferred.outcome_id == metered.outcome_id
        assert (deferred.customer_id, deferred.workflow_id, deferred.ordinal, deferred.agent_id) == (
            "cus_1",
            "run-1",
            0,
            "agt_a",
        )
        assert deferred.state == outcome_pb2.DEFERRED_OUTCOME_STATE_PENDING
        assert deferred.outcome == usage_pb2.OUTCOME_PENDING
        assert deferred.expired_outcome == usage_pb2.OUTCOME_UNKNOWN
        assert deferred.max_bonus.amount_micros == BONUS_MICROS
        assert (deferred.HasField("bonus"), deferred.HasField("resolve_time"), deferred.charge_id) == (
            False,
            False,
            "",
        )
        week = timedelta(days=7)
        expire_time = deferred.expire_time.ToDatetime(tzinfo=UTC)
        assert before + week <= expire_time <= datetime.now(UTC) + week
        now = await balance(world)
        assert now.available.amount_micros == GRANTED - RUN_MICROS
        assert now.held.amount_micros == BONUS_MICROS
        assert metered.available_balance == now.available

    async def test_reporting_it_again_changes_nothing_and_answers_the_outcome_as_it_is(
        self, world: World
    ) -> None:
        outcome_id = await meter(world, "run-1")
        again = await world.meter(pending("run-1"))
        await resolve(world, outcome_id)
        and_again = await world.meter(pending("run-1"))

        assert (again.duplicate, and_again.duplicate) == (True, True)
        assert again.deferred_outcome.state == outcome_pb2.DEFERRED_OUTCOME_STATE_PENDING
        assert and_again.deferred_outcome == await get(world, outcome_id)
        assert (await balance(world)).available.amount_micros == GRANTED - RUN_MICROS
        assert (await refused(world.meter(run("run-1")))).reason == "IDEMPOTENCY_KEY_REUSED"

    async def test_only_a_pending_event_has_a_deferred_outcome(self, world: World) -> None:
        metered = await world.meter(run("run-1"))

        assert not metered.HasField("deferred_outcome")
        assert (await refused(get(world, metered.outcome_id))).reason == "OUTCOME_NOT_FOUND"
        assert (await refused(resolve(world, metered.outcome_id))).reason == "OUTCOME_NOT_FOUND"

    async def test_where_no_outcome_adds_anything_nothing_is_held(self, world: World) -> None:
        await world.server.publish(
            price(fee("0.01"), agent_ids=["agt_b"]), organization_id="org_b", currency_code="USD"
        )
        metered = await world.meter(pending("run-1", agent_id="agt_b"))

        assert metered.deferred_outcome.max_bonus == money_pb2.Money(currency_code="USD")
        assert (await balance(world)).held.amount_micros == 0
        answer = await resolve(world, metered.outcome_id)
        assert (answer.outcome.bonus.amount_micros, answer.outcome.charge_id) == (0, "")
        await eventually(world.nothing_is_pending)

    async def test_the_event_says_when_or_else_its_price(self, world: World) -> None:
        deferral = price_book_pb2.OutcomeDeferral(expired_outcome=usage_pb2.OUTCOME_PARTIAL)
        deferral.expire_after.FromSeconds(3_600)
        with_deferral = price(fee("0.01"), bonus("1"))
        with_deferral.deferral.CopyFrom(deferral)
        await world.server.publish(with_deferral, organization_id="org_a")
        tomorrow = usage_pb2.UsageEvent()
        tomorrow.outcome_expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))

        by_event = await world.meter(pending("run-1", outcome_expire_time=tomorrow.outcome_expire_time))
        by_price = await world.meter(pending("run-2"))

        assert by_event.deferred_outcome.expire_time == tomorrow.outcome_expire_time
        left = by_price.deferred_outcome.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
        assert timedelta(minutes=55) < left <= timedelta(hours=1)
        assert by_price.deferred_outcome.expired_outcome == usage_pb2.OUTCOME_PARTIAL

    async def test_a_hold_for_which_there_is_too_little_money_is_no_error(self, world: World) -> None:
        outcome_id = await meter(world, "run-1", "cus_2")
        assert (await balance(world, "cus_2")).held.amount_micros == 0

        answer = await resolve(world, outcome_id)

        assert answer.outcome.bonus.amount_micros == BONUS_MICROS
        assert (await charge(world, answer.outcome.charge_id)).payment.unpaid.amount_micros == BONUS_MICROS


class TestResolving:
    async def test_success_charges_the_bonus_from_what_is_held(self, world: World) -> None:
        outcome_id = await meter(world, "run-1")

        answer = await resolve(world, outcome_id, evidence_ref="s3://reply")

        outcome = answer.outcome
        assert not answer.duplicate
        assert outcome.state == outcome_pb2.DEFERRED_OUTCOME_STATE_RESOLVED
        assert (outcome.outcome, outcome.evidence_ref) == (SUCCESS, "s3://reply")
        assert outcome.bonus.amount_micros == BONUS_MICROS
        assert outcome.HasField("resolve_time")
        now = await balance(world)
        assert (now.available.amount_micros, now.held.amount_micros) == (GRANTED - RUN_MICROS, 0)
        assert answer.available_balance == now.available
        posted = await charge(world, outcome.charge_id)
        assert posted.component == charge_pb2.CHARGE_COMPONENT_OUTCOME
        assert posted.gross.amount_micros == BONUS_MICROS
        assert (posted.reservation_id, posted.captured.amount_micros) == (outcome_id, BONUS_MICROS)
        assert posted.occur_time == outcome.resolve_time
        await eventually(world.nothing_is_pending)

    async def test_what_adds_nothing_gives_back_what_was_held(self, world: World) -> None:
        outcome_id = await meter(world, "run-1")

        answer = await resolve(world, outcome_id, FAILURE)

        assert (answer.outcome.bonus.amount_micros, answer.outcome.charge_id) == (0, "")
        now = await balance(world)
        assert (now.available.amount_micros, now.held.amount_micros) == (GRANTED - BASE_MICROS, 0)
        assert answer.available_balance == now.available
        assert world.charge_count() == 1
        await eventually(world.nothing_is_pending)

    async def test_resolving_again_answers_the_same(self, world: World) -> None:
        outcome_id = await meter(world, "run-1")
        first = await resolve(world, outcome_id, evidence_ref="s3://one")

        again = await resolve(world, outcome_id, evidence_ref="s3://other")

        assert again.duplicate
        assert again.outcome == first.outcome
        assert again.available_balance == first.available_balance
        assert world.charge_count() == 2

    async def test_at_once_it_is_resolved_once(self, world: World) -> None:
        outcome_id = await meter(world, "run-1")

        answers = await asyncio.gather(*(resolve(world, outcome_id) for _ in range(20)))

        assert sum(not answer.duplicate for answer in answers) == 1
        assert {answer.outcome.charge_id for answer in answers} == {answers[0].outcome.charge_id}
        assert (await balance(world)).available.amount_micros == GRANTED - RUN_MICROS

    async def test_otherwise_later_is_refused(self, world: World) -> None:
        outcome_id = await meter(world, "run-1")
        first = await resolve(world, outcome_id)

        answer = await refused(resolve(world, outcome_id, FAILURE))

        assert (answer.code, answer.reason) == (Code.FAILED_PRECONDITION, "OUTCOME_ALREADY_RESOLVED")
        assert answer.metadata["outcome_id"] == outcome_id
        assert answer.metadata["outcome"] == "success"
        assert answer.metadata["resolve_time"] == first.outcome.resolve_time.ToJsonString()
        assert await get(world, outcome_id) == first.outcome

    @pytest.mark.parametrize(
        "outcome", [usage_pb2.OUTCOME_UNSPECIFIED, usage_pb2.OUTCOME_PENDING, 99], ids=str
    )
    async def test_nothing_is_resolved_to_nothing(
        self, world: World, outcome: usage_pb2.Outcome.ValueType
    ) -> None:
        answer = await refused(resolve(world, await meter(world, "run-1"), outcome))

        assert (answer.code, fields_of(answer)) == (Code.INVALID_ARGUMENT, ["outcome"])

    async def test_malformed_requests_are_refused(self, world: World) -> None:
        answer = await refused(
            world.host.metering.ResolveOutcome(
                metering_service_pb2.ResolveOutcomeRequest(
                    outcome_id="out_1", outcome=SUCCESS, evidence_ref="x" * 1_025, evidence_hash=b"short"
                )
            )
        )

        assert fields_of(answer) == ["evidence_ref", "evidence_hash"]
        assert fields_of(await refused(resolve(world, "ch_1"))) == ["outcome_id"]
        assert fields_of(await refused(get(world, "ch_1"))) == ["outcome_id"]

    async def test_the_event_tells_its_outcome(self, world: World) -> None:
        outcome_id = await meter(world, "run-1")
        before = await world.find(run("run-1"))
        answer = await resolve(world, outcome_id)
        after = await world.find(run("run-1"))

        assert before.metered.deferred_outcome.state == outcome_pb2.DEFERRED_OUTCOME_STATE_PENDING
        assert after.metered.deferred_outcome == answer.outcome
        assert after.metered.price_charged.amount_micros == BASE_MICROS
        assert after.event.outcome == usage_pb2.OUTCOME_PENDING

    async def test_who_may_not_see_the_event_finds_no_outcome(self, world: World) -> None:
        outcome_id = await meter(world, "run-1")
        neighbour = await world.new_host("neighbour", organization_id="org_b")
        strangers = [
            neighbour,
            await world.new_host("agents", agent_ids=("agt_b",)),
            await world.new_host("customers", customer_ids=("cus_2",)),
        ]

        for host in strangers:
            for call in (resolve(world, outcome_id, host=host), get(world, outcome_id, host)):
                answer = await refused(call)
                assert (answer.code, answer.reason) == (Code.NOT_FOUND, "OUTCOME_NOT_FOUND")
                assert answer.metadata["outcome_id"] == outcome_id
        assert (await refused(get(world, "out_none"))).reason == "OUTCOME_NOT_FOUND"

    async def test_an_organization_does_not_learn_what_the_customer_has_left(self, world: World) -> None:
        own = await world.new_host("own", organization_id="org_a")
        outcome_id = await meter(world, "run-1")

        answer = await resolve(world, outcome_id, host=own)

        assert answer.outcome.bonus.amount_micros == BONUS_MICROS
        assert not answer.HasField("available_balance")


class TestExpiry:
    async def test_what_nobody_resolves_in_time_falls_to_its_default_and_what_was_held_comes_back(
        self, world: World
    ) -> None:
        outcome_id = await meter(world, "run-1")
        make_due(world)
        await eventually(lambda: expired(world))
        await eventually(world.nothing_is_pending)

        outcome = await get(world, outcome_id)
        assert outcome.state == outcome_pb2.DEFERRED_OUTCOME_STATE_EXPIRED
        assert (outcome.outcome, outcome.bonus.amount_micros) == (usage_pb2.OUTCOME_UNKNOWN, 0)
        now = await balance(world)
        assert (now.available.amount_micros, now.held.amount_micros) == (GRANTED - BASE_MICROS, 0)
        late = await refused(resolve(world, outcome_id))
        assert (late.code, late.reason) == (Code.FAILED_PRECONDITION, "OUTCOME_EXPIRED")
        assert (late.metadata["outcome"], late.metadata["expire_time"]) == (
            "unknown",
            outcome.expire_time.ToJsonString(),
        )

    async def test_a_default_that_earns_the_bonus_is_charged(self, world: World) -> None:
        with_deferral = price(fee("0.01"), bonus("1"))
        with_deferral.deferral.expired_outcome = SUCCESS
        await world.server.publish(with_deferral, organization_id="org_a")
        outcome_id = await meter(world, "run-1")
        make_due(world)
        await eventually(lambda: expired(world))
        await eventually(world.nothing_is_pending)

        outcome = await get(world, outcome_id)
        assert (outcome.outcome, outcome.bonus.amount_micros) == (SUCCESS, 1_000_000)
        assert (await charge(world, outcome.charge_id)).captured.amount_micros == 1_000_000
        assert (await balance(world)).held.amount_micros == 0

    async def test_usage_that_comes_after_its_outcomes_time_is_charged_and_expires(
        self, world: World
    ) -> None:
        late = pending("run-1")
        late.outcome_expire_time.FromDatetime(datetime.now(UTC) - timedelta(days=3))

        metered = await world.meter(late)
        await eventually(lambda: expired(world))
        await eventually(world.nothing_is_pending)

        assert metered.price_charged.amount_micros == BASE_MICROS
        assert (await refused(resolve(world, metered.outcome_id))).reason == "OUTCOME_EXPIRED"
        assert (await balance(world)).held.amount_micros == 0

    async def test_resolving_and_expiring_at_once_have_one_effect(self, world: World) -> None:
        verdicts = await world.meter_batch(*(pending(f"run-{number}") for number in range(100)))
        outcome_ids = [verdict.outcome_id for verdict in verdicts if hasattr(verdict, "outcome_id")]
        assert len(outcome_ids) == 100

        async def try_to_resolve(outcome_id: str) -> bool:
            try:
                await resolve(world, outcome_id)
            except grpc.aio.AioRpcError as error:
                reason = from_rpc_error(error).reason
            else:
                return True
            assert reason == "OUTCOME_EXPIRED"
            return False

        first = asyncio.gather(*map(try_to_resolve, outcome_ids[:60]))
        make_due(world)
        second = await asyncio.gather(*map(try_to_resolve, outcome_ids[60:]))
        won = sum([*(await first), *second])
        await eventually(lambda: expired(world))
        await eventually(world.nothing_is_pending)

        ((resolved,),) = world.server.query(
            "SELECT count(*) FROM metering.deferred_outcome WHERE state = 'resolved'"
        )
        assert resolved == won
        assert world.charge_count() == 100 + won
        now = await balance(world)
        assert now.held.amount_micros == 0
        assert now.available.amount_micros == GRANTED - 100 * BASE_MICROS - won * BONUS_MICROS

    async def test_ten_thousand_expire_at_once_in_small_batches_and_all_that_was_held_comes_back(
        self, world: World
    ) -> None:
        count = 10_000
        await world.server.ledger.operator.ledger.GrantCredits(
            ledger_service_pb2.GrantCreditsRequest(
                customer_id="cus_1",
                amount=money_pb2.Money(currency_code="USD", amount_micros=count * RUN_MICROS),
                source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
                idempotency_key="more",
            )
        )
        for start in range(0, count, 1_000):
            await world.meter_batch(*(pending(f"run-{start + number}") for number in range(1_000)))
        assert (await balance(world)).held.amount_micros == count * BONUS_MICROS

        make_due(world)
        await eventually(lambda: expired(world))
        await eventually(world.nothing_is_pending)

        # One transaction is one moment.
        batches = world.server.query(
            "SELECT count(*) FROM metering.deferred_outcome WHERE state = 'expired' GROUP BY resolve_time"
        )
        sizes = [int(str(size)) for (size,) in batches]
        assert sum(sizes) == count
        assert max(sizes) <= BATCH
        now = await balance(world)
        assert now.held.amount_micros == 0
        assert now.available.amount_micros == GRANTED + count * (RUN_MICROS - BASE_MICROS)
