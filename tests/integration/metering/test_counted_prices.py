"""Prices that depend on what a customer used before in the billing period, event by event."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import Code, TallystickError
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, ledger_service_pb2
from tallystick.metering.v1 import (
    charge_line_pb2,
    contract_pb2,
    contract_service_pb2,
    metering_service_pb2,
    outcome_pb2,
    price_book_pb2,
    usage_pb2,
)
from tests.integration.metering.world import World, fields_of, refused, run
from tests.support.metering_server import bonus, fee, price
from tests.support.waiting import eventually

PENDING, SUCCESS, FAILURE = (
    usage_pb2.OUTCOME_PENDING,
    usage_pb2.OUTCOME_SUCCESS,
    usage_pb2.OUTCOME_FAILURE,
)


def unit(amount: str) -> price_book_pb2.UnitPrice:
    return price_book_pb2.UnitPrice(amount=amount)


def tiers(*ends_and_amounts: tuple[int, str], name: str = "input") -> price_book_pb2.PriceComponent:
    """Input tokens in graduated tiers over the billing period; 0 ends the last one."""
    return price_book_pb2.PriceComponent(
        name=name,
        meter_rate=price_book_pb2.MeterRate(
            meter="input_tokens",
            tier_mode=price_book_pb2.TIER_MODE_GRADUATED,
            tier_scope=price_book_pb2.TIER_SCOPE_BILLING_PERIOD,
            tiers=[price_book_pb2.Tier(up_to=end, price=unit(amount)) for end, amount in ends_and_amounts],
        ),
    )


# A token is 10 micros, beyond a thousand of them in a month 4.
TIERED = price(tiers((1_000, "0.00001"), (0, "0.000004")), name="run")


def used(
    workflow_id: str, tokens: int, customer_id: str = "cus_1", /, **changes: object
) -> usage_pb2.UsageEvent:
    return run(workflow_id, customer_id, usage=usage_pb2.Usage(input_tokens=tokens), **changes)


def metered(
    verdict: metering_service_pb2.MeteredEvent | TallystickError,
) -> metering_service_pb2.MeteredEvent:
    assert isinstance(verdict, metering_service_pb2.MeteredEvent), verdict
    return verdict


def counters_of(world: World, customer_id: str = "cus_1") -> dict[str, int]:
    """The counters in which something was counted, without the book's id."""
    rows = world.server.query(
        "SELECT name, value FROM metering.price_counter"
        f" WHERE customer_id = '{customer_id}' AND value IS NOT NULL"
    )
    return {str(name).partition("/")[2] or str(name): int(str(value)) for name, value in rows}


def steps(*answers: metering_service_pb2.MeteredEvent) -> list[tuple[int, int]]:
    """From where to where each moved its one counter."""
    found = []
    for answer in answers:
        ((name, opening),) = answer.opening_counters.items()
        found.append((opening, answer.closing_counters.get(name, opening)))
    return found


async def balance(world: World, customer_id: str = "cus_1") -> account_pb2.CustomerBalance:
    response = await world.server.ledger.operator.ledger.GetCustomerBalance(
        ledger_service_pb2.GetCustomerBalanceRequest(customer_id=customer_id, currency_code="USD")
    )
    return response.balance


async def resolve(
    world: World, outcome_id: str, outcome: usage_pb2.Outcome.ValueType = SUCCESS, **result: float
) -> outcome_pb2.DeferredOutcome:
    request = metering_service_pb2.ResolveOutcomeRequest(outcome_id=outcome_id, outcome=outcome)
    if result:
        request.result.update(result)
    return (await world.host.metering.ResolveOutcome(request)).outcome


class TestEvents:
    @pytest.fixture(autouse=True)
    async def tiered(self, world: World) -> None:
        await world.server.publish(TIERED, organization_id="org_a")

    async def test_each_event_of_a_batch_begins_where_the_one_before_it_ended(self, world: World) -> None:
        verdicts = await world.meter_batch(used("run-1", 600), used("run-2", 600), used("run-3", 600))
        answers = [metered(verdict) for verdict in verdicts]

        assert steps(*answers) == [(0, 600), (600, 1_200), (1_200, 1_800)]
        assert [answer.price_charged.amount_micros for answer in answers] == [6_000, 4_800, 2_400]
        lines = [(line.quantity, line.tier, line.amount.amount_micros) for line in answers[1].lines]
        assert lines == [(400, 1, 4_000), (200, 2, 800)]
        this_month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        assert answers[0].period_start_time.ToDatetime(UTC) == this_month
        assert (await world.find(used("run-2", 600))).metered.opening_counters == answers[1].opening_counters
        assert counters_of(world) == {"run/input": 1_800}

    async def test_what_comes_again_moves_nothing_and_nobody_is_rated_behind_it(self, world: World) -> None:
        (first,) = await world.meter_batch(used("run-2", 900))
        verdicts = await world.meter_batch(
            used("run-1", 300), used("run-2", 900), used("run-3", 300), used("run-3", 300)
        )
        one, again, three, three_again = (metered(verdict) for verdict in verdicts)

        assert steps(one, again, three, three_again) == [
            (900, 1_200),
            (0, 900),
            (1_200, 1_500),
            (1_200, 1_500),
        ]
        assert (again.duplicate, three.duplicate, three_again.duplicate) == (True, False, True)
        again.duplicate = False
        again.available_balance.CopyFrom(metered(first).available_balance)
        assert again == first
        assert counters_of(world) == {"run/input": 1_500}
        # All of them once more.
        repeated = await world.meter_batch(used("run-1", 300), used("run-2", 900), used("run-3", 300))
        assert steps(*map(metered, repeated)) == steps(one, again, three)
        assert counters_of(world) == {"run/input": 1_500}

    async def test_other_content_is_refused_and_moves_nothing(self, world: World) -> None:
        await world.meter(used("run-1", 100))
        verdicts = await world.meter_batch(used("run-1", 200), used("run-2", 50))

        assert isinstance(verdicts[0], TallystickError)
        assert verdicts[0].reason == "IDEMPOTENCY_KEY_REUSED"
        assert steps(metered(verdicts[1])) == [(100, 150)]

    async def test_each_customer_and_each_organization_has_counters_of_its_own(self, world: World) -> None:
        book = await world.server.publish(TIERED, organization_id="org_b")
        assert book
        verdicts = await world.meter_batch(
            used("run-1", 100),
            used("run-2", 200, "cus_2"),
            used("run-3", 300, agent_id="agt_b"),
            used("run-4", 400),
        )

        assert steps(*map(metered, verdicts)) == [(0, 100), (0, 200), (0, 300), (100, 500)]

    async def test_work_counts_in_the_period_of_its_time_however_late_it_is_reported(
        self, world: World
    ) -> None:
        now = datetime.now(UTC)
        last_month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) - timedelta(microseconds=1)
        late = Timestamp()
        late.FromDatetime(last_month)
        verdicts = await world.meter_batch(
            used("run-1", 900), used("run-2", 900, occur_time=late), used("run-3", 900)
        )

        assert steps(*map(metered, verdicts)) == [(0, 900), (0, 900), (900, 1_800)]
        start = metered(verdicts[1]).period_start_time.ToDatetime(UTC)
        assert (start.month, start.day) == (last_month.month, 1)

    async def test_a_new_version_goes_on_where_the_one_before_it_was(self, world: World) -> None:
        await world.meter(used("run-1", 900))
        cheaper = price(tiers((1_000, "0.000008"), (0, "0.000001")), name="run")
        await world.server.publish(cheaper, organization_id="org_a")

        answer = await world.meter(used("run-2", 200))

        assert steps(answer) == [(900, 1_100)]
        assert answer.price_charged.amount_micros == 900

    async def test_what_is_refused_leaves_nothing_to_those_behind_it(self, world: World) -> None:
        dear = price(tiers((10, "0.00001"), (0, "999999999999")), name="run")
        await world.server.publish(dear, organization_id="org_a")

        verdicts = await world.meter_batch(used("run-1", 4), used("run-2", 8), used("run-3", 6))

        assert isinstance(verdicts[1], TallystickError)
        assert (verdicts[1].code, fields_of(verdicts[1])) == (Code.INVALID_ARGUMENT, ["usage"])
        assert steps(metered(verdicts[0]), metered(verdicts[2])) == [(0, 4), (4, 10)]
        only = await world.meter_batch(used("run-4", 8, "cus_2"), used("run-5", 11, "cus_2"))
        assert [isinstance(one, TallystickError) for one in only] == [False, True]
        await refused(world.meter(used("run-6", 100, "cus_2")))
        assert counters_of(world, "cus_2") == {"run/input": 8}

    async def test_of_prices_of_both_kinds_credits_pay_in_the_order_of_reports(self, world: World) -> None:
        await world.server.publish(
            price(tiers((0, "0.00001")), name="run", action_types=["run"]),
            price(fee("0.005"), name="plain", action_types=["plain"]),
            organization_id="org_a",
        )
        await world.server.ledger.operator.ledger.GrantCredits(
            ledger_service_pb2.GrantCreditsRequest(
                customer_id="cus_2",
                amount=money_pb2.Money(currency_code="USD", amount_micros=9_000),
                source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
                idempotency_key="some",
            )
        )
        verdicts = await world.meter_batch(
            used("run-9", 300, "cus_2"),
            used("run-1", 1, "cus_2", action_type="plain"),
            used("run-5", 300, "cus_2"),
        )

        paid = [metered(verdict).from_credits.amount_micros for verdict in verdicts]
        assert paid == [3_000, 5_000, 1_000]
        assert not metered(verdicts[1]).opening_counters
        assert not metered(verdicts[1]).HasField("period_start_time")

    async def test_expected_usage_is_reserved_at_the_tier_that_the_customer_is_in(self, world: World) -> None:
        async def reserved(workflow_id: str) -> int:
            answer = await world.host.metering.Authorize(
                metering_service_pb2.AuthorizeRequest(
                    customer_id="cus_1",
                    workflow_id=workflow_id,
                    agent_id="agt_a",
                    action_type="run",
                    usage=usage_pb2.Usage(input_tokens=1_000),
                )
            )
            return answer.reservation.amount.amount_micros

        assert await reserved("run-a") == 10_000
        await world.meter(used("run-1", 900))
        assert await reserved("run-b") == 1_000 + 3_600


class TestOutcomes:
    @pytest.fixture(autouse=True)
    async def priced(self, world: World) -> None:
        """A token is 10 micros, what was solved 5,000 and what was liked 2,000; at most 20,000 in a month."""
        solved = bonus("0.005", name="solved")
        solved.condition = "result.solved == true"
        liked = bonus("0.002", name="liked")
        liked.condition = "result.stars >= 4"
        capped = price(tiers((0, "0.00001")), solved, liked, name="run")
        capped.period_maximum.amount = "0.02"
        await world.server.publish(capped, organization_id="org_a")

    async def test_what_the_resolver_says_decides_and_all_that_it_may_add_is_held(self, world: World) -> None:
        answer = await world.meter(used("run-1", 100, outcome=PENDING))
        assert answer.price_charged.amount_micros == 1_000
        assert answer.deferred_outcome.max_bonus.amount_micros == 7_000
        assert (await balance(world)).held.amount_micros == 7_000

        decided = await resolve(world, answer.outcome_id, solved=True, stars=3)

        assert decided.bonus.amount_micros == 5_000
        assert decided.result["solved"] is True
        charged = next(name for name in decided.closing_counters if name.endswith(":charged"))
        assert (decided.opening_counters[charged], decided.closing_counters[charged]) == (0, 6_000)
        assert counters_of(world) == {"run/input": 100, "run:charged": 6_000}
        now = await balance(world)
        assert (now.held.amount_micros, now.available.amount_micros) == (0, 100_000_000 - 6_000)
        # The first resolution stands.
        assert (await resolve(world, answer.outcome_id, solved=True, stars=5)).bonus.amount_micros == 5_000
        assert counters_of(world)["run:charged"] == 6_000
        assert (await world.find(used("run-1", 100))).metered.deferred_outcome == decided
        await eventually(world.nothing_is_pending)

    async def test_without_a_result_that_of_the_event_counts(self, world: World) -> None:
        event = used("run-1", 100, outcome=PENDING)
        event.result.update({"solved": True, "stars": 5})
        answer = await world.meter(event)

        assert answer.price_charged.amount_micros == 1_000
        decided = await resolve(world, answer.outcome_id)
        assert decided.bonus.amount_micros == 7_000
        assert not decided.HasField("result")

    async def test_a_maximum_of_the_period_leaves_to_an_outcome_what_it_leaves_now(
        self, world: World
    ) -> None:
        answer = await world.meter(used("run-1", 100, outcome=PENDING))
        await world.meter(used("run-2", 1_500, outcome=FAILURE))

        decided = await resolve(world, answer.outcome_id, solved=True, stars=5)

        assert decided.max_bonus.amount_micros == 7_000
        # 16,000 of 20,000 were charged.
        assert decided.bonus.amount_micros == 4_000
        late = await world.meter(used("run-3", 1_500, outcome=PENDING))
        assert (late.price_charged.amount_micros, late.deferred_outcome.max_bonus.amount_micros) == (0, 0)
        assert [line.kind for line in late.lines] == [
            charge_line_pb2.CHARGE_LINE_KIND_UNSPECIFIED,
            charge_line_pb2.CHARGE_LINE_KIND_MAXIMUM,
        ]
        assert (await resolve(world, late.outcome_id, solved=True)).bonus.amount_micros == 0
        assert counters_of(world) == {"run/input": 3_100, "run:charged": 20_000}
        await eventually(world.nothing_is_pending)
        assert (await balance(world)).available.amount_micros == 100_000_000 - 20_000

    async def test_what_nobody_resolves_falls_to_its_default_and_is_rated_then(self, world: World) -> None:
        solved = bonus("0.005", name="solved")
        solved.condition = "result.solved == true"
        defaulting = price(tiers((0, "0.00001")), solved, name="run")
        defaulting.period_maximum.amount = "0.02"
        defaulting.deferral.expired_outcome = SUCCESS
        await world.server.publish(defaulting, organization_id="org_a")
        good, bad = used("run-1", 100, outcome=PENDING), used("run-2", 100, outcome=PENDING)
        good.result.update({"solved": True})
        verdicts = await world.meter_batch(good, bad)
        world.server.query(
            "UPDATE metering.deferred_outcome SET expire_time = now() WHERE state = 'pending' RETURNING 1"
        )

        async def settled() -> bool:
            decided = (
                world.server.query("SELECT FROM metering.deferred_outcome WHERE state = 'pending'") == []
            )
            return decided and await world.nothing_is_pending()

        await eventually(settled)
        outcomes = [(await world.find(event)).metered.deferred_outcome for event in (good, bad)]
        assert [one.state for one in outcomes] == [outcome_pb2.DEFERRED_OUTCOME_STATE_EXPIRED] * 2
        assert [one.bonus.amount_micros for one in outcomes] == [5_000, 0]
        assert counters_of(world) == {"run/input": 200, "run:charged": 7_000}
        assert all(isinstance(one, metering_service_pb2.MeteredEvent) for one in verdicts)
        now = await balance(world)
        assert (now.held.amount_micros, now.available.amount_micros) == (0, 100_000_000 - 7_000)

    async def test_an_outcome_that_moves_nothing_is_rated_at_once_as_ever(self, world: World) -> None:
        await world.server.publish(
            price(tiers((1_000, "0.00001"), (0, "0.000004")), bonus("0.2"), name="run"),
            organization_id="org_a",
        )
        answer = await world.meter(used("run-1", 100, outcome=PENDING))

        assert world.server.query("SELECT bonuses IS NULL FROM metering.deferred_outcome") == [(False,)]
        decided = await resolve(world, answer.outcome_id)
        assert (decided.bonus.amount_micros, dict(decided.opening_counters)) == (200_000, {})


async def test_what_a_contract_adds_is_rated_and_kept_with_the_event(world: World) -> None:
    await world.server.publish(TIERED, organization_id="org_a")
    contract = contract_pb2.Contract(
        contract_id="con_1", customer_id="cus_1", organization_id="org_a", currency_code="USD"
    )
    contract.content.allowances.add(meter="input_tokens", quantity=150)
    contract.content.discounts.add(name="half", basis_points=5_000)
    contract.content.period_maximum.CopyFrom(money_pb2.Money(currency_code="USD", amount_micros=1_000))
    await world.server.operator.contracts.CreateContract(
        contract_service_pb2.CreateContractRequest(contract=contract)
    )

    async def applies() -> bool:
        # Replicas look for changes once a second.
        answer = await world.meter(used("free", 100))
        return answer.price_charged.amount_micros == 0

    await eventually(applies)
    verdicts = await world.meter_batch(used("run-1", 150), used("run-2", 150), used("run-3", 150, "cus_2"))

    # 100 of 150 were included for the first, half of whose rest is charged; the second comes to the maximum.
    assert [metered(one).price_charged.amount_micros for one in verdicts] == [500, 500, 1_500]
    assert counters_of(world) == {
        "run/input": 250,
        "allowance:input_tokens": 150,
        "contract:charged": 1_000,
    }
    (stored,) = world.server.query(
        "SELECT contract_terms ->> 'period_maximum_micros' FROM metering.usage_event"
        " WHERE workflow_id = 'run-1'"
    )
    assert stored == ("1000",)
    assert world.server.query(
        "SELECT contract_terms FROM metering.usage_event WHERE workflow_id = 'run-3'"
    ) == [(None,)]
