"""Price lists: what is refused, by the path of each field; how they travel, and are stored."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from services.kit.errors import InvalidArgument
from services.metering.domain.meters import BUILT_IN_METERS
from services.metering.domain.price_book import (
    Allowance,
    BaseFee,
    Component,
    Discount,
    MeterFormula,
    MeterRate,
    MeterRounding,
    MeterTerm,
    OutcomeBonus,
    OutcomeFactor,
    PeriodUnit,
    Plan,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    PriceVersion,
    Tier,
    TierMode,
    TierScope,
    TokenKind,
    TokenRate,
    UnitPrice,
    VolumeDiscountStep,
)
from services.metering.domain.price_checks import check_price_list
from services.metering.domain.usage_event import METERS, Outcome
from services.metering.rpc.prices import price_list_from_proto, version_to_proto
from services.metering.store import price_format
from tallystick.metering.v1 import price_book_pb2

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ONE = UnitPrice("1")
CENT = UnitPrice("0.01")
UNITS = MeterFormula("compute_units", (MeterTerm("cpu_milliseconds", "1", 1_000), MeterTerm("pages", "0.5")))


def listed(*components: Component | PriceComponent, **fields: Any) -> PriceList:
    named = tuple(
        one if isinstance(one, PriceComponent) else PriceComponent(f"part-{number}", one)
        for number, one in enumerate(components or (BaseFee(ONE),))
    )
    return PriceList((Price("run", PriceSelector(), named, **fields),))


def tiered(*ends: int | None, mode: TierMode = TierMode.GRADUATED, **fields: Any) -> MeterRate:
    return MeterRate("pages", tuple(Tier(end, CENT) for end in ends), mode, **fields)


def volume(*steps: tuple[str, int], name: str = "volume") -> Discount:
    return Discount(name, volume=tuple(VolumeDiscountStep(UnitPrice(start), one) for start, one in steps))


FULL = PriceList(
    prices=(
        Price(
            "resolve",
            PriceSelector(frozenset({"ticket.resolve"}), frozenset({"agt_a"})),
            (
                PriceComponent("fee", BaseFee(ONE)),
                PriceComponent("input", TokenRate(TokenKind.INPUT, UnitPrice("0.60", 1_000_000))),
                PriceComponent("solved", OutcomeBonus(Outcome.SUCCESS, CENT), "result.score >= 4"),
                PriceComponent("praised", OutcomeBonus(None, CENT), "result.stars == 5"),
                PriceComponent(
                    "gpt",
                    MeterRate(
                        "output_tokens",
                        (Tier(10, CENT, ONE), Tier(None, UnitPrice("0.001", 7))),
                        TierMode.GRADUATED,
                        TierScope.BILLING_PERIOD,
                        ("gpt-*", "o1"),
                    ),
                ),
                PriceComponent("units", MeterRate("compute_units", (Tier(None, CENT),))),
                PriceComponent(
                    "blocks", MeterRate("pages", (Tier(None, UnitPrice("2", 50)),), TierMode.PACKAGE)
                ),
                PriceComponent("tools", tiered(5, None, mode=TierMode.VOLUME)),
            ),
            outcome_factors=(OutcomeFactor(Outcome.FAILURE, 0), OutcomeFactor(Outcome.PARTIAL, 5_000)),
            discounts=(
                volume(("100", 500), ("1000.5", 1_000)),
                Discount("spring", basis_points=2_000, start_time=NOW, end_time=NOW.replace(year=2027)),
                Discount("welcome", amount=CENT),
            ),
            minimum=CENT,
            maximum=ONE,
            period_minimum=ONE,
            period_maximum=UnitPrice("500"),
        ),
        Price("rest", PriceSelector(), (PriceComponent("fee", BaseFee(ONE)),)),
    ),
    meters=(UNITS, MeterFormula("half", (MeterTerm("rows", "0.5"),), MeterRounding.DOWN)),
    plans=(
        Plan("team", UnitPrice("20"), UnitPrice("5"), (Allowance("pages", 100, 10),), PeriodUnit.YEAR),
        Plan("free", allowances=(Allowance("compute_units", 7),)),
    ),
)


def a_version(price_list: PriceList) -> PriceVersion:
    return PriceVersion(
        "pv_1", "pb_1", 1, price_list.prices, NOW, meters=price_list.meters, plans=price_list.plans
    )


def violated(price_list: PriceList) -> list[str]:
    with pytest.raises(InvalidArgument) as refused:
        check_price_list(price_list)
    return [violation.field for violation in refused.value.field_violations]


def test_all_that_a_version_may_say_is_accepted_travels_and_is_stored() -> None:
    check_price_list(FULL)

    message = version_to_proto(a_version(FULL))
    assert price_list_from_proto(price_book_pb2.PriceVersion.FromString(message.SerializeToString())) == FULL
    assert price_format.from_json(price_format.to_json(FULL.prices)) == FULL.prices
    assert price_format.meters_from_json(price_format.meters_to_json(FULL.meters)) == FULL.meters
    assert price_format.plans_from_json(price_format.plans_to_json(FULL.plans)) == FULL.plans


def test_prices_that_older_releases_stored_read_as_before() -> None:
    stored = {
        "name": "run",
        "selector": {"action_types": ["run"], "agent_ids": []},
        "components": [
            {"name": "fee", "base_fee": {"price": {"amount": "1", "per_units": 1}}},
            {
                "name": "in",
                "token_rate": {"token_kind": "input", "price": {"amount": "2", "per_units": 1_000}},
            },
            {
                "name": "won",
                "outcome_bonus": {"outcome": "success", "price": {"amount": "3", "per_units": 1}},
            },
        ],
    }
    (price,) = prices = price_format.from_json([stored])

    assert price.components == (
        PriceComponent("fee", BaseFee(UnitPrice("1"))),
        PriceComponent("in", TokenRate(TokenKind.INPUT, UnitPrice("2", 1_000))),
        PriceComponent("won", OutcomeBonus(Outcome.SUCCESS, UnitPrice("3"))),
    )
    # And are stored again as they were: nothing that is new says anything of them.
    assert price_format.to_json(prices) == [stored]


def test_the_meters_that_are_checked_are_those_that_are_counted() -> None:
    assert BUILT_IN_METERS.keys() == METERS


AT = "prices[0].components[0]"


@pytest.mark.parametrize(
    ("rate", "fields"),
    [
        (tiered(10, 10, None), ["meter_rate.tiers[1].up_to"]),
        (tiered(10, 5, None), ["meter_rate.tiers[1].up_to"]),
        (tiered(-1, None), ["meter_rate.tiers[0].up_to"]),
        (tiered(10**18 + 1, None), ["meter_rate.tiers[0].up_to"]),
        (tiered(None, 10, None), ["meter_rate.tiers[0].up_to"]),
        (tiered(10, 20), ["meter_rate.tiers[1].up_to"]),
        (tiered(), ["meter_rate.tiers"]),
        (tiered(*range(1, 101), None), ["meter_rate.tiers"]),
        (tiered(10, None, mode=TierMode.PACKAGE), ["meter_rate.tiers[1]"]),
        (tiered(10, None, mode=TierMode.FLAT), ["meter_rate.tiers[1]"]),
        (tiered(10, mode=TierMode.PACKAGE), ["meter_rate.tiers[0].up_to"]),
        (MeterRate("Pages", (Tier(None, ONE),)), ["meter_rate.meter"]),
        # Hardly a meter of the host's own.
        (MeterRate("input_token", (Tier(None, ONE),)), ["meter_rate.meter"]),
        (MeterRate("toolcalls", (Tier(None, ONE),)), ["meter_rate.meter"]),
        (MeterRate("tool_calls", (Tier(None, ONE),), models=("gpt",)), ["meter_rate.models"]),
        (MeterRate("pages", (Tier(None, ONE),), models=("gpt",)), ["meter_rate.models"]),
        (
            MeterRate("input_tokens", (Tier(None, ONE),), models=("g*t", "")),
            ["meter_rate.models[0]", "meter_rate.models[1]"],
        ),
        (MeterRate("input_tokens", (Tier(None, ONE),), models=("gpt", "gpt")), ["meter_rate.models[1]"]),
        (MeterRate("input_tokens", (Tier(None, ONE),), models=("m",) * 101), ["meter_rate.models"]),
        (MeterRate("pages", (Tier(None, UnitPrice("-1")),)), ["meter_rate.tiers[0].price.amount"]),
        (MeterRate("pages", (Tier(None, UnitPrice("")),)), ["meter_rate.tiers[0].price.amount"]),
        (MeterRate("pages", (Tier(None, UnitPrice("1", 0)),)), ["meter_rate.tiers[0].price.per_units"]),
        (MeterRate("pages", (Tier(None, ONE, UnitPrice("1", 2)),)), ["meter_rate.tiers[0].fee.per_units"]),
        (OutcomeBonus(None, ONE), ["outcome_bonus.outcome"]),
        (PriceComponent("a", BaseFee(ONE), "outcome = 1"), ["condition"]),
    ],
)
def test_a_component_that_cannot_be_is_refused(rate: Component | PriceComponent, fields: list[str]) -> None:
    assert violated(listed(rate)) == [f"{AT}.{field}" for field in fields]


def test_a_condition_is_refused_with_line_and_column() -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_price_list(listed(PriceComponent("a", BaseFee(ONE), "true &&\n  scor > 1")))

    (violation,) = refused.value.field_violations
    assert violation.description == "line 2, column 3: undeclared reference to 'scor'"


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"outcome_factors": (OutcomeFactor(Outcome.PENDING, 1),)}, ["outcome_factors[0].outcome"]),
        ({"outcome_factors": (OutcomeFactor(Outcome.SUCCESS, 1),) * 2}, ["outcome_factors[1].outcome"]),
        ({"outcome_factors": (OutcomeFactor(Outcome.SUCCESS, 10_001),)}, ["outcome_factors[0].basis_points"]),
        ({"outcome_factors": (OutcomeFactor(Outcome.SUCCESS, -1),)}, ["outcome_factors[0].basis_points"]),
        ({"minimum": ONE, "maximum": CENT}, ["maximum"]),
        ({"period_minimum": ONE, "period_maximum": CENT}, ["period_maximum"]),
        ({"minimum": UnitPrice("0.0000001")}, ["minimum.amount"]),
        ({"maximum": UnitPrice("1", 2)}, ["maximum.per_units"]),
        ({"discounts": (Discount("a"),)}, ["discounts[0]"]),
        ({"discounts": (Discount("a", basis_points=1, amount=ONE),)}, ["discounts[0]"]),
        ({"discounts": (Discount("a", basis_points=0),)}, ["discounts[0].basis_points"]),
        ({"discounts": (Discount("a", basis_points=10_001),)}, ["discounts[0].basis_points"]),
        ({"discounts": (Discount("a", amount=UnitPrice("0")),)}, ["discounts[0].amount.amount"]),
        ({"discounts": (Discount("a", amount=UnitPrice("-1")),)}, ["discounts[0].amount.amount"]),
        ({"discounts": (Discount("a", basis_points=1),) * 2}, ["discounts[1].name"]),
        (
            {"discounts": (Discount("a", basis_points=10_000), Discount("b", basis_points=1))},
            ["discounts[1]"],
        ),
        (
            {"discounts": (Discount("a", basis_points=1, start_time=NOW, end_time=NOW),)},
            ["discounts[0].end_time"],
        ),
        ({"discounts": (Discount("a", basis_points=1), volume(("1", 1)))}, ["discounts[1].volume"]),
        (
            {"discounts": (volume(("1", 1), ("1.0", 2)),)},
            ["discounts[0].volume.steps[1].from_amount.amount"],
        ),
        ({"discounts": (volume(("1", 5), ("2", 5)),)}, ["discounts[0].volume.steps[1].basis_points"]),
        ({"discounts": (volume(("1", 0)),)}, ["discounts[0].volume.steps[0].basis_points"]),
        ({"discounts": (volume(("x", 1)),)}, ["discounts[0].volume.steps[0].from_amount.amount"]),
        (
            {"discounts": tuple(Discount(f"d{number}", basis_points=1) for number in range(21))},
            ["discounts"],
        ),
    ],
)
def test_what_follows_the_components_is_refused_if_it_cannot_be(
    fields: dict[str, Any], paths: list[str]
) -> None:
    assert violated(listed(**fields)) == [f"prices[0].{path}" for path in paths]


def test_volume_tiers_of_a_period_owe_everything_whatever_the_outcome() -> None:
    rate = tiered(10, None, mode=TierMode.VOLUME, tier_scope=TierScope.BILLING_PERIOD)
    factors = (OutcomeFactor(Outcome.FAILURE, 0),)

    assert violated(listed(rate, outcome_factors=factors)) == [f"{AT}.meter_rate.tier_mode"]
    check_price_list(listed(tiered(10, None, mode=TierMode.VOLUME), outcome_factors=factors))


def formula(*terms: MeterTerm, meter: str = "units") -> MeterFormula:
    return MeterFormula(meter, terms)


@pytest.mark.parametrize(
    ("meters", "fields"),
    [
        ((formula(),), ["meters[0].terms"]),
        ((formula(*[MeterTerm(f"m{number}", "1") for number in range(33)]),), ["meters[0].terms"]),
        ((formula(MeterTerm("pages", "1"), meter="Units"),), ["meters[0].meter"]),
        ((formula(MeterTerm("pages", "1"), meter="tool_calls"),), ["meters[0].meter"]),
        ((formula(MeterTerm("pages", "1")),) * 2, ["meters[1].meter"]),
        ((UNITS, formula(MeterTerm("compute_units", "1"))), ["meters[1].terms[0].meter"]),
        ((formula(MeterTerm("units", "1")),), ["meters[0].terms[0].meter"]),
        ((formula(MeterTerm("cpu_millisecond", "1")),), ["meters[0].terms[0].meter"]),
        ((formula(MeterTerm("pages", "1"), MeterTerm("pages", "2")),), ["meters[0].terms[1].meter"]),
        ((formula(MeterTerm("pages", "-1")),), ["meters[0].terms[0].units"]),
        ((formula(MeterTerm("pages", "0.0")),), ["meters[0].terms[0].units"]),
        ((formula(MeterTerm("pages", "1", 0)),), ["meters[0].terms[0].per_units"]),
        (tuple(formula(MeterTerm("pages", "1"), meter=f"m{number}") for number in range(101)), ["meters"]),
    ],
)
def test_a_formula_that_cannot_be_is_refused(meters: tuple[MeterFormula, ...], fields: list[str]) -> None:
    assert violated(replace(listed(), meters=meters)) == fields


@pytest.mark.parametrize(
    ("plans", "fields"),
    [
        ((Plan("a"),), ["plans[0]"]),
        ((Plan("a b", ONE),), ["plans[0].name"]),
        ((Plan("a", ONE), Plan("a", ONE)), ["plans[1].name"]),
        ((Plan("a", UnitPrice("0.0000001")),), ["plans[0].fee.amount"]),
        ((Plan("a", seat_fee=UnitPrice("1", 2)),), ["plans[0].seat_fee.per_units"]),
        ((Plan("a", allowances=(Allowance("pages"),)),), ["plans[0].allowances[0].quantity"]),
        ((Plan("a", allowances=(Allowance("pages", -1),)),), ["plans[0].allowances[0].quantity"]),
        (
            (Plan("a", allowances=(Allowance("pages", 1, 10**15 + 1),)),),
            ["plans[0].allowances[0].quantity_per_seat"],
        ),
        ((Plan("a", allowances=(Allowance("toolcalls", 1),)),), ["plans[0].allowances[0].meter"]),
        ((Plan("a", allowances=(Allowance("pages", 1),) * 2),), ["plans[0].allowances[1].meter"]),
        (
            (Plan("a", allowances=tuple(Allowance(f"m{number}", 1) for number in range(33))),),
            ["plans[0].allowances"],
        ),
        (tuple(Plan(f"p{number}", ONE) for number in range(101)), ["plans"]),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plans: tuple[Plan, ...], fields: list[str]) -> None:
    assert violated(replace(listed(), plans=plans)) == fields


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda price: price.components[0].ClearField("base_fee"), "prices[0].components[0]"),
        (lambda price: price.discounts.add(name="a"), "prices[0].discounts[0]"),
        (
            lambda price: price.discounts.add(name="a").volume.SetInParent(),
            "prices[0].discounts[0].volume.steps",
        ),
        (
            lambda price: setattr(price.components.add().meter_rate, "tier_mode", 99),
            "prices[0].components[1].meter_rate.tier_mode",
        ),
        (
            lambda price: setattr(price.components.add().meter_rate, "tier_scope", 99),
            "prices[0].components[1].meter_rate.tier_scope",
        ),
        (
            lambda price: setattr(
                price.discounts.add(name="a", basis_points=1).start_time, "seconds", 10**15
            ),
            "prices[0].discounts[0].start_time",
        ),
    ],
)
def test_what_is_of_no_kind_is_refused_when_it_comes(change: Any, field: str) -> None:
    message = version_to_proto(a_version(listed()))
    change(message.prices[0])

    with pytest.raises(InvalidArgument) as refused:
        price_list_from_proto(message)
    assert [violation.field for violation in refused.value.field_violations] == [field]


def test_a_version_has_only_so_many_conditions() -> None:
    named = tuple(PriceComponent(f"part-{number}", BaseFee(ONE), "true") for number in range(100))
    prices = tuple(Price(f"price-{number}", PriceSelector(), named) for number in range(11))

    check_price_list(PriceList(prices[:10]))
    assert violated(PriceList(prices)) == ["prices"]


def test_an_outcome_that_this_release_does_not_know_owes_no_part() -> None:
    message = version_to_proto(a_version(listed()))
    message.prices[0].outcome_factors.add(outcome=99, basis_points=1)

    assert violated(price_list_from_proto(message)) == ["prices[0].outcome_factors[0].outcome"]


def test_a_version_weighs_only_so_much() -> None:
    message = version_to_proto(a_version(listed()))
    price = message.prices[0]
    for number in range(99):
        rate = price.components.add(name=f"c{number}").meter_rate
        for end in range(101):
            rate.tiers.add(up_to=end)
    with pytest.raises(InvalidArgument) as refused:
        price_list_from_proto(message)

    assert [violation.field for violation in refused.value.field_violations] == ["prices"]
