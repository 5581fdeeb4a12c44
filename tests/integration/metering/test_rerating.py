"""What was charged, rated again from what is stored: by equal prices nothing differs, whatever they need."""

from datetime import UTC, datetime

import pytest

from services.metering.domain.usage_record import ChargeKey, Component
from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import (
    contract_pb2,
    contract_service_pb2,
    price_book_pb2,
    subscription_service_pb2,
    usage_pb2,
)
from tallystick.metering.v1 import pricing_service_pb2 as pricing
from tallystick.metering.v1 import rating_service_pb2 as pb
from tests.integration.metering.test_counted_prices import (
    FAILURE,
    PENDING,
    SUCCESS,
    counters_of,
    metered,
    resolve,
    tiers,
    unit,
)
from tests.integration.metering.test_rating import price_list, quote_of, rerate, usd
from tests.integration.metering.test_shadows import divergences, saw, start
from tests.integration.metering.world import World, run
from tests.support.metering_server import bonus, fee, price
from tests.support.waiting import eventually

GRADUATED, VOLUME, PACKAGE = (
    price_book_pb2.TIER_MODE_GRADUATED,
    price_book_pb2.TIER_MODE_VOLUME,
    price_book_pb2.TIER_MODE_PACKAGE,
)
PERIOD = price_book_pb2.TIER_SCOPE_BILLING_PERIOD


def rate(name: str, **rate: object) -> price_book_pb2.PriceComponent:
    meter_rate = price_book_pb2.MeterRate(**rate)  # type: ignore[arg-type]
    return price_book_pb2.PriceComponent(name=name, meter_rate=meter_rate)


def conditional(amount: str, name: str, condition: str) -> price_book_pb2.PriceComponent:
    component = bonus(amount, name=name)
    component.condition = condition
    return component


def counted() -> price_book_pb2.Price:
    """All that depends on what a customer used before in the billing period, and on results."""
    found = price(
        fee("0.0005005"),
        tiers((1_500, "0.0000100005"), (0, "0.0000043")),
        rate(
            "output",
            meter="output_tokens",
            tier_mode=VOLUME,
            tier_scope=PERIOD,
            tiers=[
                price_book_pb2.Tier(up_to=3_000, price=unit("0.00002")),
                price_book_pb2.Tier(price=unit("0.00001")),
            ],
        ),
        rate(
            "calls",
            meter="tool_calls",
            tier_mode=PACKAGE,
            tier_scope=PERIOD,
            tiers=[price_book_pb2.Tier(price=price_book_pb2.UnitPrice(amount="0.003", per_units=7))],
        ),
        rate("pages", meter="pages", tiers=[price_book_pb2.Tier(price=unit("0.0001"))]),
        conditional("0.005", "solved", "result.solved == true"),
        conditional("0.002", "liked", "result.stars >= 4"),
        action_types=["run"],
    )
    volume = found.discounts.add(name="volume").volume
    volume.steps.add(from_amount=unit("0.02"), basis_points=1_111)
    volume.steps.add(from_amount=unit("0.05"), basis_points=2_500)
    found.discounts.add(name="promotion", basis_points=333).end_time.FromDatetime(
        datetime(2100, 1, 1, tzinfo=UTC)
    )
    found.minimum.amount = "0.001"
    found.period_minimum.amount = "0.05"
    found.period_maximum.amount = "0.06"
    return found


def stateless() -> price_book_pb2.Price:
    """All that depends on the run alone."""
    found = price(
        fee("0.01"),
        rate(
            "input",
            meter="input_tokens",
            tier_mode=GRADUATED,
            tiers=[
                price_book_pb2.Tier(up_to=500, price=unit("0.00001"), fee=unit("0.001")),
                price_book_pb2.Tier(price=unit("0.0000033")),
            ],
        ),
        bonus("0.2"),
        name="job",
        action_types=["job"],
    )
    found.outcome_factors.add(outcome=FAILURE, basis_points=3_333)
    found.discounts.add(name="rebate").amount.amount = "0.002"
    found.maximum.amount = "0.15"
    return found


def used(workflow_id: str, customer_id: str = "cus_1", /, **changes: object) -> usage_pb2.UsageEvent:
    usage = usage_pb2.Usage(
        model="gpt-4o", input_tokens=700, output_tokens=900, tool_calls=3, meters={"pages": 4}
    )
    return run(workflow_id, customer_id, **{"usage": usage, **changes})


async def publish(world: World, *prices: price_book_pb2.Price, first: bool = False) -> str:
    """Publish prices in org_a's book, with a plan that includes tokens; the version's id."""
    version_id = await propose(world, *prices)
    request = pricing.PublishPriceVersionRequest(price_version_id=version_id)
    if first:
        request.effective_time.FromSeconds(0)
    await world.server.operator.pricing.PublishPriceVersion(request)
    return version_id


async def propose(world: World, *prices: price_book_pb2.Price) -> str:
    """A draft in org_a's book; its id."""
    operator = world.server.operator.pricing
    await operator.CreatePriceBook(
        pricing.CreatePriceBookRequest(
            price_book_id="pb_a", organization_id="org_a", currency_code="USD", display_name="All"
        )
    )
    versions = await operator.ListPriceVersions(pricing.ListPriceVersionsRequest(price_book_id="pb_a"))
    plan = price_book_pb2.Plan(
        name="team",
        fee=unit("1"),
        allowances=[price_book_pb2.Allowance(meter="input_tokens", quantity=1_000)],
    )
    draft = await operator.CreatePriceVersion(
        pricing.CreatePriceVersionRequest(
            price_book_id="pb_a",
            prices=prices,
            plans=[plan],
            idempotency_key=f"version {len(versions.price_versions)}",
        )
    )
    return draft.price_version.price_version_id


@pytest.fixture
async def version_id(world: World) -> str:
    """Prices of all kinds; cus_1 has a contract, cus_2 a subscription, cus_3 neither."""
    await world.server.ledger.create_customer("cus_3")
    version = await publish(world, counted(), stateless(), first=True)
    contract = contract_pb2.Contract(
        contract_id="con_1", customer_id="cus_1", organization_id="org_a", currency_code="USD"
    )
    contract.content.allowances.add(meter="pages", quantity=10)
    contract.content.discounts.add(name="loyal", basis_points=777)
    contract.content.period_maximum.CopyFrom(money_pb2.Money(currency_code="USD", amount_micros=400_000))
    contract.billing_period.unit = price_book_pb2.PERIOD_UNIT_MONTH
    contract.billing_period.anchor_time.FromDatetime(datetime(2020, 1, 17, 5, 30, tzinfo=UTC))
    operator = world.server.operator
    await operator.contracts.CreateContract(contract_service_pb2.CreateContractRequest(contract=contract))
    await operator.subscriptions.CreateSubscription(
        subscription_service_pb2.CreateSubscriptionRequest(
            customer_id="cus_2",
            agent_id="agt_a",
            price_book_id="pb_a",
            plan_name="team",
            seats=1,
            idempotency_key="sub",
        )
    )

    async def apply() -> bool:
        # Replicas look for changes once a second.
        rows = world.server.query(
            "SELECT count(*) FROM metering.usage_event WHERE contract_terms IS NOT NULL"
        )
        if rows == [(2,)]:
            return True
        number = world.event_count()
        await world.meter(used(f"before-{number}", "cus_1"))
        await world.meter(used(f"before-{number}", "cus_2"))
        return False

    await eventually(apply)
    return version


async def work(world: World, name: str) -> None:
    """Runs of all kinds, of all customers; some outcomes are decided later, some never."""
    liked = used(f"{name}-liked", outcome=SUCCESS)
    liked.result.update({"solved": True, "stars": 5})
    later = []
    for customer_id in ("cus_3", "cus_1", "cus_2"):
        pending = used(f"{name}-3", customer_id, outcome=PENDING)
        pending.result.update({"stars": 4.5})
        # Not in the order of their keys.
        verdicts = await world.meter_batch(
            used(f"{name}-9", customer_id, outcome=FAILURE),
            pending,
            used(f"{name}-5", customer_id, action_type="job", outcome=PENDING),
            used(f"{name}-1", customer_id),
            used(f"{name}-2", customer_id, outcome=PENDING),
            used(f"{name}-4", customer_id, action_type="job", outcome=FAILURE),
            used(f"{name}-0", customer_id, action_type="job"),
            used(f"{name}-7", customer_id, outcome=PENDING),
        )
        found = [metered(one) for one in verdicts]
        later.append((found[1], found[2], found[4]))
    await world.meter(liked)
    for first, job, second in later:
        await resolve(world, second.outcome_id, SUCCESS, solved=True, stars=5)
        await resolve(world, first.outcome_id, SUCCESS)
        await resolve(world, job.outcome_id, SUCCESS)


def differences(found: list[pb.RerateResponse]) -> dict[str, int]:
    return {
        one.customer.customer_id: one.customer.difference.amount_micros
        for one in found
        if one.HasField("customer")
    }


async def test_equal_prices_come_to_what_was_charged(world: World, version_id: str) -> None:
    operator = world.server.operator

    async def is_sequenced() -> bool:
        return world.server.query("SELECT count(*) FROM metering.unsequenced_usage") == [(0,)]

    await eventually(is_sequenced)
    candidate = await propose(world, counted(), stateless())
    shadow = await start(operator, candidate, "equal")
    await work(world, "one")
    # Another version of the same prices goes on where the counters stand, and so does the rest of the work.
    await publish(world, counted(), stateless())
    await work(world, "two")
    ((decided,), (rated_later,)) = (
        world.server.query("SELECT count(*) FROM metering.deferred_outcome WHERE state <> 'pending'"),
        world.server.query("SELECT count(*) FROM metering.deferred_outcome WHERE opening IS NOT NULL"),
    )
    assert (decided, rated_later) == ((18,), (14,))

    events = world.event_count()
    *found, last = await rerate(operator)
    assert not [one for one in found if one.HasField("mismatch")]
    assert last.summary.mismatched_charge_count == 0
    assert last.summary.reproduced_charge_count == events + 18
    charged = last.summary.charged[0]
    *found, last = await rerate(operator, price_version_id=candidate)
    assert differences(found) == {"cus_1": 0, "cus_2": 0, "cus_3": 0}
    assert last.summary.rerated[0] == last.summary.charged[0] == charged
    assert last.summary.unpriced_run_count == 0
    assert all(one.line.charged == one.line.rerated for one in found if one.HasField("line"))
    # What came with a request has counters of other names, which count from nothing: what each run comes to
    # may differ, but not where a period comes to its maximum, nor where there are no counters.
    *found, _ = await rerate(operator, price_list=price_list(counted(), stateless()))
    assert differences(found)["cus_3"] == 0
    *found, last = await rerate(operator, price_list=price_list(stateless()))
    assert {name: differences(found)[name] for name in ("cus_2", "cus_3")} == {"cus_2": 0, "cus_3": 0}
    assert last.summary.unpriced_run_count == events - 2 * 3 * 3

    # Outcomes that added nothing, as most did once the maximum was reached, are no charges.
    ((bonuses,),) = world.server.query(
        "SELECT count(*) FROM metering.deferred_outcome WHERE bonus_micros > 0"
    )
    assert isinstance(bonuses, int)
    seen = await saw(operator, shadow.shadow_id, 2 * (3 * 8 + 1) + bonuses)
    assert seen.charge_count == 2 * (3 * 8 + 1) + bonuses
    assert seen.unpriced_charge_count == 0
    assert seen.differing_charge_count == 0, await divergences(operator, shadow.shadow_id)
    assert seen.charged == seen.shadowed


@pytest.mark.parametrize(
    ("statement", "component"),
    [
        ("UPDATE metering.usage_event SET amount_micros = amount_micros + 1 WHERE {}", Component.BASE),
        # The amount is right, and a line is not.
        (
            "UPDATE metering.usage_event SET lines = jsonb_set(lines, '{{0,4}}', '7') WHERE {}",
            Component.BASE,
        ),
        (
            "UPDATE metering.deferred_outcome SET bonuses = '{{\"success\": [9, []]}}' WHERE {}",
            Component.OUTCOME,
        ),
        # Another tier.
        (
            "UPDATE metering.usage_event SET opening = opening || '{{\"pb_a/run/input\": 0}}' WHERE {}",
            Component.BASE,
        ),
    ],
)
async def test_whatever_was_changed_is_found_and_nothing_else(
    world: World, version_id: str, statement: str, component: Component
) -> None:
    await work(world, "one")
    for table in ("usage_event", "deferred_outcome"):
        world.server.execute(f"ALTER TABLE metering.{table} DISABLE TRIGGER USER")
    world.server.execute(statement.format("customer_id = 'cus_3' AND workflow_id = 'one-2'"))
    *found, last = await rerate(world.server.operator)
    (mismatch,) = [one.mismatch for one in found if one.HasField("mismatch")]
    assert mismatch.charge_id == ChargeKey("cus_3", "one-2", 0, component).charge_id
    assert last.summary.mismatched_charge_count == 1
    assert last.summary.reproduced_charge_count == world.event_count() + 9 - 1


async def test_dearer_prices_move_counters_of_their_own(world: World, version_id: str) -> None:
    """By how much more is charged, so much sooner a maximum of the period is reached."""
    base = price(tiers((0, "0.00001")), name="cap", action_types=["cap"])
    base.period_maximum.amount = "0.03"
    await publish(world, base)
    for number in range(4):
        await world.meter(used(f"wf-{number}", "cus_3", action_type="cap"))
    dearer = price(tiers((0, "0.00002")), name="cap", action_types=["cap"])
    dearer.period_maximum.amount = "0.03"
    *_, last = await rerate(
        world.server.operator, price_version_id=await propose(world, dearer), customer_id="cus_3"
    )
    assert last.summary.charged[0] == usd(4 * 7_000)
    assert last.summary.rerated[0] == usd(30_000)


async def test_a_quote_begins_where_the_customer_stands(world: World, version_id: str) -> None:
    await work(world, "one")
    operator = world.server.operator
    event = used("next", "cus_3")
    request = quote_of(customer_id="cus_3", usage=event.usage, action_type="run")
    request.result.update({"solved": False})
    quoted = await operator.rating.Quote(request)
    names = {name.partition("/")[2]: value for name, value in quoted.opening_counters.items()}
    assert names == counters_of(world, "cus_3")
    # Nobody moved anything.
    assert await operator.rating.Quote(request) == quoted
    # Unless it is said where to begin.
    request.opening_counters["pb_a/run/input"] = 0
    assert (await operator.rating.Quote(request)).opening_counters["pb_a/run/input"] == 0
    request.ClearField("opening_counters")
    event.result.update({"solved": False})
    answer = await world.meter(event)
    assert quoted.lines == answer.lines
    assert quoted.total == answer.price_charged
    assert quoted.opening_counters == answer.opening_counters
    assert quoted.closing_counters == answer.closing_counters
