"""Quotes, simulations and re-ratings: what prices would come to, asked of a running metering."""

from datetime import UTC, datetime, timedelta

import pytest

from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.metering.v1 import (
    contract_pb2,
    contract_service_pb2,
    metering_service_pb2,
    price_book_pb2,
    usage_pb2,
)
from tallystick.metering.v1 import pricing_service_pb2 as pricing
from tallystick.metering.v1 import rating_service_pb2 as pb
from tests.integration.metering.world import RUN_MICROS, World, refused, run
from tests.support.metering_server import AGENT_RUN, Caller, bonus, fee, price, tokens

CHEAPER = price(fee("0.001"), tokens(price_book_pb2.TOKEN_KIND_INPUT, "0.60", "input"), bonus("0.10"))
# Long work may take long where a machine has much else to do.
PATIENCE = 120.0
USAGE = usage_pb2.Usage(model="gpt-4o", input_tokens=1_000, output_tokens=500)


def price_list(*prices: price_book_pb2.Price, currency: str = "USD") -> pb.PriceList:
    return pb.PriceList(currency_code=currency, prices=prices)


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


def quote_of(**changes: object) -> pb.QuoteRequest:
    fields: dict[str, object] = {
        "agent_id": "agt_a",
        "action_type": "run",
        "usage": USAGE,
        "outcome": usage_pb2.OUTCOME_SUCCESS,
        **changes,
    }
    return pb.QuoteRequest(**fields)  # type: ignore[arg-type]


async def draft(caller: Caller, organization_id: str, *prices: price_book_pb2.Price) -> str:
    """The id of a draft in the book of an organization; "" for the platform's."""
    book = await caller.pricing.CreatePriceBook(
        pricing.CreatePriceBookRequest(organization_id=organization_id, currency_code="USD")
    )
    created = await caller.pricing.CreatePriceVersion(
        pricing.CreatePriceVersionRequest(
            price_book_id=book.price_book.price_book_id,
            prices=prices,
            idempotency_key=f"draft/{organization_id}",
        )
    )
    return created.price_version.price_version_id


async def rerate(caller: Caller, **fields: object) -> list[pb.RerateResponse]:
    """Everything that the re-rating of all time says."""
    request = pb.RerateRequest(**fields)  # type: ignore[arg-type]
    if not request.HasField("start_time"):
        request.start_time.FromDatetime(datetime(2000, 1, 1, tzinfo=UTC))
    if not request.HasField("end_time"):
        request.end_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    return [response async for response in caller.rating.Rerate(request, timeout=PATIENCE)]


@pytest.fixture
async def customer(world: World) -> Caller:
    key = await world.server.ledger.create_caller(access_pb2.ROLE_CUSTOMER, "customer-1", customer_id="cus_1")
    return world.server.caller(key.key)


async def test_a_quote_is_what_the_run_costs(world: World, customer: Caller) -> None:
    quoted = await customer.rating.Quote(quote_of(customer_id="cus_1"))
    assert quoted.total == usd(RUN_MICROS)
    metered = await world.meter(run("wf-1"))
    assert quoted.lines == metered.lines
    assert quoted.price_version_id == metered.price_version_id
    assert quoted.price_name == "run"


async def test_a_quote_for_nobody_has_the_prices_in_force(world: World) -> None:
    quoted = await world.server.operator.rating.Quote(quote_of())
    assert quoted.total == usd(RUN_MICROS)
    owner = await world.new_owner("org_b")
    assert (await refused(owner.rating.Quote(quote_of()))).reason == "AGENT_NOT_FOUND"
    missing = quote_of(action_type="other", currency_code="EUR")
    assert (await refused(world.server.operator.rating.Quote(missing))).reason == "PRICE_NOT_FOUND"


async def test_a_quote_by_a_draft_is_its_owners_only(world: World, customer: Caller) -> None:
    owner, other = await world.new_owner("org_a"), await world.new_owner("org_b")
    version_id = await draft(owner, "org_a", CHEAPER)
    quoted = await owner.rating.Quote(quote_of(price_version_id=version_id))
    assert quoted.total == usd(1_000 + 600 + 100_000)
    assert quoted.price_version_id == version_id
    for stranger in (other, customer):
        asked = stranger.rating.Quote(quote_of(price_version_id=version_id))
        assert (await refused(asked)).reason == "PRICE_VERSION_NOT_FOUND"


async def test_a_quote_says_where_counters_stand(world: World) -> None:
    rate = price_book_pb2.MeterRate(
        meter="tool_calls",
        tier_mode=price_book_pb2.TIER_MODE_GRADUATED,
        tier_scope=price_book_pb2.TIER_SCOPE_BILLING_PERIOD,
        tiers=[
            price_book_pb2.Tier(up_to=10, price=price_book_pb2.UnitPrice(amount="1")),
            price_book_pb2.Tier(price=price_book_pb2.UnitPrice(amount="0.5")),
        ],
    )
    listed = price_list(price(price_book_pb2.PriceComponent(name="calls", meter_rate=rate)))
    request = quote_of(price_list=listed, usage=usage_pb2.Usage(tool_calls=4))
    first = await world.server.operator.rating.Quote(request)
    assert first.total == usd(4_000_000)
    assert dict(first.opening_counters) == {"/run/calls": 0}
    assert dict(first.closing_counters) == {"/run/calls": 4}
    request.opening_counters["/run/calls"] = 8
    assert (await world.server.operator.rating.Quote(request)).total == usd(3_000_000)


async def test_a_customer_asks_for_itself(world: World, customer: Caller) -> None:
    asked = customer.rating.Quote(quote_of(customer_id="cus_2"))
    assert (await refused(asked)).reason == "CUSTOMER_NOT_FOUND"


async def test_wrong_quotes_are_refused_by_field(world: World) -> None:
    wrong = quote_of(usage=usage_pb2.Usage(input_tokens=-1), action_type="")
    error = await refused(world.server.operator.rating.Quote(wrong))
    assert [one.field for one in error.field_violations] == ["usage.input_tokens", "action_type"]
    listed = price_list(price(fee("-1")))
    error = await refused(world.server.operator.rating.Quote(quote_of(price_list=listed)))
    assert error.field_violations[0].field == "price_list.prices[0].components[0].base_fee.price.amount"


def simulation(*books: pb.SimulatedBook, **workload: object) -> pb.SimulateRequest:
    fields: dict[str, object] = {"run_count": 2_000, "seed": 7, "customer_skew": 1_000, **workload}
    return pb.SimulateRequest(
        books=books,
        workload=pb.Workload(**fields),  # type: ignore[arg-type]
    )


async def test_simulations_compare_books_on_the_same_runs(world: World) -> None:
    owner = await world.new_owner("org_a")
    version_id = await draft(owner, "org_a", CHEAPER)
    request = simulation(
        pb.SimulatedBook(label="now", price_list=price_list(AGENT_RUN)),
        pb.SimulatedBook(price_version_id=version_id),
        model="gpt-4o",
    )
    answer = await owner.rating.Simulate(request, timeout=PATIENCE)
    now, cheaper = answer.books
    assert (now.label, cheaper.label) == ("now", "book 2")
    assert (now.price_version_id, cheaper.price_version_id) == ("", version_id)
    drawn = answer.workload
    assert drawn.run_count == sum(one.run_count for one in drawn.outcomes) == 2_000
    assert drawn.unpriced_run_count == 0
    for book in answer.books:
        assert book.revenue.amount_micros == sum(line.amount.amount_micros for line in book.lines)
        assert book.margin.amount_micros == book.revenue.amount_micros - drawn.model_cost.amount_micros
    wins = next(one for one in drawn.outcomes if one.outcome == usage_pb2.OUTCOME_SUCCESS).run_count
    lines = {line.component_name: line for line in cheaper.lines}
    assert lines["fee"].amount == usd(2_000 * 1_000)
    assert lines["bonus"].amount == usd(wins * 100_000)
    assert lines["input"].quantity == drawn.quantities["input_tokens"]
    again = await owner.rating.Simulate(request, timeout=PATIENCE)
    assert again == answer
    request.workload.seed = 8
    assert await owner.rating.Simulate(request, timeout=PATIENCE) != answer


async def test_unknown_model_costs_are_said(world: World) -> None:
    request = simulation(pb.SimulatedBook(price_list=price_list(AGENT_RUN)), model="nobody/knows-this-one")
    answer = await world.server.operator.rating.Simulate(request, timeout=PATIENCE)
    assert answer.workload.unpriced_run_count == 2_000
    assert not answer.workload.HasField("model_cost")
    assert not answer.books[0].HasField("margin")


async def test_wrong_simulations_are_refused(world: World) -> None:
    operator = world.server.operator
    good = pb.SimulatedBook(price_list=price_list(AGENT_RUN))
    for request, field in (
        (simulation(), "books"),
        (simulation(pb.SimulatedBook()), "books[0].prices"),
        (simulation(good, run_count=0), "workload.run_count"),
        (simulation(good, run_count=1_000_001), "workload.run_count"),
        (simulation(good, recorded="dreams"), "workload.recorded"),
        (simulation(pb.SimulatedBook(price_list=price_list(AGENT_RUN), plan="x")), "books[0].plan"),
        (
            simulation(good, distributions=[pb.MeterDistribution(meter="text_output_tokens", fixed=1)]),
            "workload.distributions[0].meter",
        ),
        (
            simulation(good, outcome_rates=pb.OutcomeRates(success_basis_points=10_001)),
            "workload.outcome_rates",
        ),
    ):
        error = await refused(operator.rating.Simulate(request, timeout=PATIENCE))
        assert [one.field for one in error.field_violations] == [field], request


async def test_what_was_charged_is_reproduced_and_compared(world: World) -> None:
    await world.meter(run("wf-1"))
    await world.meter(run("wf-2", outcome=usage_pb2.OUTCOME_FAILURE))
    await world.meter(run("wf-3", "cus_2"))
    pending = await world.meter(run("wf-4", outcome=usage_pb2.OUTCOME_PENDING))
    await world.host.metering.ResolveOutcome(
        metering_service_pb2.ResolveOutcomeRequest(
            outcome_id=pending.deferred_outcome.outcome_id, outcome=usage_pb2.OUTCOME_SUCCESS
        )
    )
    operator = world.server.operator
    *_, last = await rerate(operator)
    assert last.summary.reproduced_charge_count == 5
    assert last.summary.mismatched_charge_count == 0
    assert last.summary.run_count == 4
    assert list(last.summary.charged) == [usd(4 * RUN_MICROS - 200_000)]
    assert not last.summary.rerated

    *found, last = await rerate(operator, price_list=price_list(CHEAPER))
    customers = {one.customer.customer_id: one.customer for one in found if one.HasField("customer")}
    assert customers["cus_1"].charged == usd(3 * RUN_MICROS - 200_000)
    assert customers["cus_1"].rerated == usd(3 * 1_600 + 2 * 100_000)
    assert customers["cus_1"].difference == usd(204_800 - 420_400)
    assert customers["cus_2"].difference == usd(101_600 - RUN_MICROS)
    lines = {one.line.component_name: one.line for one in found if one.HasField("line")}
    assert lines["bonus"].charged == usd(3 * 200_000)
    assert lines["bonus"].rerated == usd(3 * 100_000)
    assert lines["output"].difference == usd(-4 * 1_200)
    differences = sum(one.difference.amount_micros for one in lines.values())
    assert differences == sum(one.difference.amount_micros for one in customers.values())
    assert last.summary.differing_customer_count == 2
    assert list(last.summary.rerated) == [usd(4 * 1_600 + 3 * 100_000)]


async def test_the_version_that_was_applied_makes_no_difference(world: World) -> None:
    metered = await world.meter(run("wf-1"))
    *found, last = await rerate(world.server.operator, price_version_id=metered.price_version_id)
    (customer,) = [one.customer for one in found if one.HasField("customer")]
    assert customer.charged == customer.rerated == usd(RUN_MICROS)
    assert last.summary.differing_customer_count == 0


async def test_a_wrong_charge_is_found(world: World) -> None:
    metered = await world.meter(run("wf-1"))
    await world.meter(run("wf-2"))
    world.server.execute("ALTER TABLE metering.usage_event DISABLE TRIGGER append_only")
    world.server.execute(
        "UPDATE metering.usage_event SET amount_micros = amount_micros + 1 WHERE workflow_id = 'wf-1'"
    )
    *found, last = await rerate(world.server.operator)
    (mismatch,) = [one.mismatch for one in found if one.HasField("mismatch")]
    assert mismatch.charge_id == metered.charge_id
    assert (mismatch.charged, mismatch.rerated) == (usd(RUN_MICROS + 1), usd(RUN_MICROS))
    assert last.summary.reproduced_charge_count == 1
    assert last.summary.mismatched_charge_count == 1


async def test_runs_without_a_price_are_told_apart(world: World) -> None:
    await world.meter(run("wf-1"))
    listed = price_list(price(fee("1"), action_types=["other"]))
    *found, last = await rerate(world.server.operator, price_list=listed)
    assert last.summary.unpriced_run_count == 1
    (customer,) = [one.customer for one in found if one.HasField("customer")]
    assert customer.charged == customer.rerated == usd(0)
    assert last.summary.reproduced_charge_count == 1


async def test_an_owner_re_rates_its_own_agents_only(world: World) -> None:
    await world.meter(run("wf-1"))
    await world.meter(run("wf-2", agent_id="agt_b"))
    owner = await world.new_owner("org_b")
    *found, last = await rerate(owner, price_list=price_list(CHEAPER))
    assert last.summary.run_count == 1
    assert not [one for one in found if one.HasField("mismatch")]
    stranger = rerate(owner, organization_id="org_a")
    assert (await refused(stranger)).reason == "ORGANIZATION_NOT_FOUND"


async def test_the_terms_of_a_contract_go_with_the_customer(world: World, customer: Caller) -> None:
    discount = price_book_pb2.Discount(name="loyal", basis_points=1_000)
    contract = contract_pb2.Contract(
        contract_id="con_1",
        customer_id="cus_1",
        organization_id="org_a",
        currency_code="USD",
        content=contract_pb2.ContractContent(discounts=[discount]),
    )
    await world.server.operator.contracts.CreateContract(
        contract_service_pb2.CreateContractRequest(contract=contract)
    )
    quoted = await customer.rating.Quote(quote_of(customer_id="cus_1"))
    assert quoted.total == usd(RUN_MICROS * 9 // 10)
    assert [line.component_name for line in quoted.lines][-1] == "loyal"
    assert (await world.server.operator.rating.Quote(quote_of())).total == usd(RUN_MICROS)
