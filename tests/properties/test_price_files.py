"""Price lists as files: what is written is read back as the same, and nothing that is read is an accident."""

from __future__ import annotations

from decimal import Decimal

import yaml
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.metering.v1 import price_book_pb2 as pb
from tallystick.metering.v1 import usage_pb2
from tallystick.prices import differences, document
from tallystick.prices.file import PriceFileError, parse
from tallystick.prices.nodes import Problem
from tallystick.prices.text import to_yaml

BOOK = pb.PriceBook(price_book_id="pb_a", organization_id="org_a", currency_code="USD")
numbers = st.builds(
    lambda units, places: format(Decimal(units).scaleb(-places), "f"),
    st.integers(0, 10**8 - 1),
    st.integers(0, 6),
)
# Names that YAML would take for something else: numbers, truths, nothing.
names = st.one_of(
    st.text("aZ09_.-", min_size=1, max_size=6), st.sampled_from(["1.0", "on", "null", "-", "---", "0x1"])
)
meters = st.one_of(st.text("az09_", min_size=1, max_size=6), st.sampled_from(["null", "no", "1_000"]))
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)
units = st.one_of(st.just(0), st.integers(2, 10**12))
points = st.integers(1, 10_000)
times = st.integers(0, 4 * 10**9).map(lambda seconds: Timestamp(seconds=seconds))
fees = st.builds(pb.UnitPrice, amount=numbers)
rates = st.builds(pb.UnitPrice, amount=numbers, per_units=units)
maybe_fee = st.one_of(st.none(), fees)


@st.composite
def meter_rates(draw: st.DrawFn) -> pb.MeterRate:
    mode = draw(st.sampled_from(pb.TierMode.values()))
    ends: list[int] = []
    if mode in (pb.TIER_MODE_GRADUATED, pb.TIER_MODE_VOLUME):
        ends = sorted(draw(st.sets(st.integers(1, 10**12), max_size=3)))
    return pb.MeterRate(
        meter=draw(meters),
        models=draw(st.lists(texts, max_size=2)),
        tier_mode=mode,
        tiers=[pb.Tier(up_to=end, price=draw(rates), fee=draw(maybe_fee)) for end in [*ends, 0]],
        tier_scope=draw(st.sampled_from(pb.TierScope.values())),
    )


@st.composite
def price_components(draw: st.DrawFn, name: str) -> pb.PriceComponent:
    component = pb.PriceComponent(name=name, condition=draw(st.one_of(st.just(""), texts)))
    match draw(st.integers(0, 3)):
        case 0:
            component.base_fee.price.CopyFrom(draw(fees))
        case 1:
            component.token_rate.token_kind = pb.TOKEN_KIND_OUTPUT
            component.token_rate.price.CopyFrom(draw(rates))
        case 2:
            component.outcome_bonus.outcome = usage_pb2.OUTCOME_PARTIAL
            component.outcome_bonus.price.CopyFrom(draw(fees))
        case _:
            component.meter_rate.CopyFrom(draw(meter_rates()))
    return component


@st.composite
def discounts(draw: st.DrawFn, name: str) -> pb.Discount:
    discount = pb.Discount(name=name)
    match draw(st.integers(0, 2)):
        case 0:
            discount.basis_points = draw(points)
        case 1:
            discount.amount.CopyFrom(draw(fees))
        case _:
            froms = sorted(draw(st.sets(st.integers(0, 10**7), min_size=1, max_size=3)))
            steps = [
                pb.VolumeDiscountStep(from_amount=pb.UnitPrice(amount=str(one)), basis_points=draw(points))
                for one in froms
            ]
            discount.volume.steps.extend(steps)
    if draw(st.booleans()):
        discount.start_time.CopyFrom(draw(times))
    elif draw(st.booleans()):
        discount.end_time.CopyFrom(draw(times))
    return discount


@st.composite
def prices(draw: st.DrawFn, name: str) -> pb.Price:
    price = pb.Price(
        name=name,
        selector=pb.PriceSelector(action_types=sorted(draw(st.sets(texts, max_size=3)))),
        components=[draw(price_components(one)) for one in draw(distinct(1))],
        discounts=[draw(discounts(one)) for one in draw(distinct(0))],
        outcome_factors=[
            pb.OutcomeFactor(outcome=outcome, basis_points=draw(st.integers(0, 10_000)))
            for outcome in draw(st.sets(st.sampled_from(usage_pb2.Outcome.values()[1:5])))
        ],
        minimum=draw(maybe_fee),
        period_maximum=draw(maybe_fee),
    )
    if draw(st.booleans()):
        price.deferral.expire_after.CopyFrom(Duration(seconds=draw(st.integers(1, 90 * 86_400))))
        price.deferral.expired_outcome = draw(st.sampled_from(usage_pb2.Outcome.values()[1:5]))
    return price


@st.composite
def versions(draw: st.DrawFn) -> pb.PriceVersion:
    return pb.PriceVersion(
        prices=[draw(prices(name)) for name in draw(distinct(1))],
        meters=[
            pb.MeterFormula(
                meter=name,
                terms=[
                    pb.MeterTerm(meter=meter, units=draw(numbers), per_units=draw(units))
                    for meter in draw(st.sets(meters, min_size=1, max_size=3))
                ],
                rounding=draw(st.sampled_from(pb.MeterRounding.values())),
            )
            for name in draw(st.sets(meters, max_size=2))
        ],
        plans=[
            pb.Plan(
                name=name,
                fee=draw(maybe_fee),
                period_unit=draw(st.sampled_from([pb.PERIOD_UNIT_UNSPECIFIED, pb.PERIOD_UNIT_YEAR])),
                allowances=[
                    pb.Allowance(
                        meter=meter,
                        quantity=draw(st.integers(0, 10**15)),
                        quantity_per_seat=draw(st.integers(0, 9)),
                    )
                    for meter in draw(st.sets(meters, max_size=2))
                ],
            )
            for name in draw(distinct(0))
        ],
    )


def distinct(least: int) -> st.SearchStrategy[list[str]]:
    return st.lists(names, min_size=least, max_size=2, unique=True)


def says(version: pb.PriceVersion) -> dict[str, object]:
    return document(version.prices, version.meters, version.plans)


@settings(max_examples=50)
@given(versions())
def test_what_is_written_is_read_back_as_the_same(version: pb.PriceVersion) -> None:
    text = to_yaml(BOOK, version)
    found = parse(text)
    assert differences(says(version), found.document) == []
    assert found.document == says(version)
    assert [one.components for one in found.prices] == [one.components for one in version.prices]
    assert found.meters == list(version.meters)
    # What is exported is the one form of what it says.
    again = pb.PriceVersion(prices=found.prices, meters=found.meters, plans=found.plans)
    assert to_yaml(BOOK, again) == text
    # Other readers of YAML find the same keys.
    assert set(yaml.safe_load(text)) >= {"book", "prices"}


@settings(max_examples=50)
@given(versions(), versions())
def test_lists_that_differ_have_differences(one: pb.PriceVersion, other: pb.PriceVersion) -> None:
    there, back = differences(says(one), says(other)), differences(says(other), says(one))
    assert bool(there) == bool(back)
    assert {path for path, _, _ in there} == {path for path, _, _ in back}
    if says(one) == says(other):
        assert there == []


@settings(max_examples=50)
@given(versions(), st.data())
def test_no_text_makes_it_stumble(version: pb.PriceVersion, data: st.DataObject) -> None:
    lines = to_yaml(BOOK, version).splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] = data.draw(st.one_of(st.just(""), st.text(max_size=30), st.just(lines[number] + ": ]")))
    problems = mistakes("\n".join(lines))
    assert all(at.line <= len(lines) + 1 and at.column >= 1 for at, _ in problems)


def mistakes(text: str) -> list[Problem]:
    """What is wrong with a text: nothing, or all that a PriceFileError says."""
    try:
        parse(text)
    except PriceFileError as error:
        return error.problems
    return []
