"""Rating with everything that a price may have: tiers, counters, conditions, discounts, limits, terms.

Oracles count in fractions, unit by unit.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from random import Random
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.metering.domain.compiled_price import (
    CompiledPrice,
    CompiledTerms,
    ContractTerms,
    Execution,
    compile_price_list,
    compile_terms,
)
from services.metering.domain.price_book import (
    BaseFee,
    Discount,
    MeterFormula,
    MeterRate,
    MeterRounding,
    MeterTerm,
    OutcomeBonus,
    OutcomeFactor,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    Tier,
    TierMode,
    TierScope,
    TokenKind,
    TokenRate,
    UnitPrice,
    VolumeDiscountStep,
)
from services.metering.domain.price_checks import check_price_list
from services.metering.domain.rating import (
    LineKind,
    Rated,
    close_period,
    counter_names,
    highest,
    rate,
    rate_outcome,
)
from services.metering.domain.usage_event import FINAL_OUTCOMES, ModelUsage, Outcome, Usage

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
BOOK = "pb_1"
CONDITIONS = [
    "",
    "result.score >= 4",
    'usage.input_tokens > 10 && action_type == "run"',
    'outcome != "failure"',
]
METERS = ["input_tokens", "uncached_input_tokens", "reasoning_tokens", "tool_calls", "pages", "compute_units"]
FORMULA = MeterFormula(
    "compute_units",
    (MeterTerm("cpu_milliseconds", "1.5", 1_000), MeterTerm("pages", "0.25")),
    MeterRounding.HALF_EVEN,
)


def decimals(most: int, places: int) -> st.SearchStrategy[str]:
    return st.integers(0, most).map(lambda number: _text(number, places))


def _text(number: int, places: int) -> str:
    whole, rest = divmod(number, 10**places)
    return f"{whole}.{rest:0{places}d}"


# Of a unit, finer than a micro; of an amount, in whole micros, some of them a few only.
rates = st.builds(UnitPrice, decimals(10**9, 9), st.sampled_from([1, 3, 7, 1_000]))
fees = st.builds(UnitPrice, decimals(10**8, 8))
small = st.builds(UnitPrice, decimals(200, 6))
limits = st.one_of(small, st.builds(UnitPrice, decimals(20 * 10**6, 6)))


@st.composite
def tiers(draw: st.DrawFn, mode: TierMode) -> tuple[Tier, ...]:
    ends: list[int | None] = [None]
    if mode in (TierMode.GRADUATED, TierMode.VOLUME):
        ends = [*sorted(draw(st.sets(st.integers(1, 60), max_size=3))), None]
    return tuple(Tier(end, draw(rates), draw(st.none() | fees)) for end in ends)


@st.composite
def meter_rates(draw: st.DrawFn, scope: TierScope | None = None, live: bool = False) -> MeterRate:
    mode = draw(st.sampled_from([one for one in TierMode if not (live and one is TierMode.VOLUME)]))
    return MeterRate(
        meter=draw(st.sampled_from(METERS)),
        tiers=draw(tiers(mode)),
        tier_mode=mode,
        tier_scope=scope or draw(st.sampled_from(TierScope)),
    )


@st.composite
def discounts(draw: st.DrawFn) -> tuple[Discount, ...]:
    found = [Discount("volume", volume=draw(volumes()))] if draw(st.booleans()) else []
    for number in range(draw(st.integers(0, 2))):
        moment = draw(st.none() | st.sampled_from([NOW, NOW + timedelta(1), NOW - timedelta(1)]))
        if draw(st.booleans()):
            found.append(
                Discount(f"part-{number}", basis_points=draw(st.integers(1, 9_999)), end_time=moment)
            )
        else:
            amount = draw(limits.filter(lambda one: Fraction(one.amount) > 0))
            found.append(Discount(f"part-{number}", amount=amount, start_time=moment))
    return tuple(found)


@st.composite
def volumes(draw: st.DrawFn) -> tuple[VolumeDiscountStep, ...]:
    starts = sorted(draw(st.sets(st.integers(0, 10**7), min_size=1, max_size=3)))
    points = draw(st.lists(st.integers(1, 10_000), min_size=3, max_size=3, unique=True))
    return tuple(
        VolumeDiscountStep(UnitPrice(_text(start, 6)), one)
        for start, one in zip(starts, points, strict=False)
    )


@st.composite
def prices(draw: st.DrawFn) -> Price:
    parts = draw(
        st.lists(
            st.one_of(
                st.builds(BaseFee, fees),
                st.builds(TokenRate, st.sampled_from(TokenKind), rates),
                st.builds(OutcomeBonus, st.sampled_from(FINAL_OUTCOMES[:3]), fees),
                meter_rates(),
            ),
            min_size=1,
            max_size=5,
        )
    )
    at_close = any(
        isinstance(one, MeterRate)
        and (one.tier_mode, one.tier_scope) == (TierMode.VOLUME, TierScope.BILLING_PERIOD)
        for one in parts
    )
    factors = [] if at_close else draw(st.lists(st.sampled_from(FINAL_OUTCOMES), unique=True, max_size=4))
    minimum, maximum, least, most = (draw(st.none() | limits) for _ in range(4))
    price = Price(
        "price",
        PriceSelector(),
        tuple(
            PriceComponent(f"part-{number}", one, draw(st.sampled_from(CONDITIONS)))
            for number, one in enumerate(parts)
        ),
        outcome_factors=tuple(OutcomeFactor(one, draw(st.integers(0, 10_000))) for one in factors),
        discounts=draw(discounts()),
        minimum=minimum,
        maximum=_above(minimum, maximum),
        period_minimum=least,
        period_maximum=_above(least, most),
    )
    check_price_list(PriceList((price,), (FORMULA,)))
    return price


def _above(least: UnitPrice | None, most: UnitPrice | None) -> UnitPrice | None:
    if least is None or most is None:
        return most
    return max(least, most, key=lambda one: Fraction(one.amount))


quantities = st.one_of(st.integers(0, 20), st.integers(0, 300))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    cached, rest, reasoning, text = (draw(quantities) for _ in range(4))
    return Usage(
        model="",
        input_tokens=cached + rest,
        output_tokens=reasoning + text,
        cached_input_tokens=cached,
        reasoning_tokens=reasoning,
        tool_calls=draw(quantities),
        cpu_milliseconds=draw(st.integers(0, 5_000)),
        meters={"pages": draw(quantities)},
    )


executions = st.builds(
    Execution,
    usages(),
    st.sampled_from(FINAL_OUTCOMES),
    st.just(NOW),
    st.sampled_from([{}, {"score": 5}, {"score": 1.5}, {"score": "x"}]),
    st.sampled_from(["run", "search"]),
)
terms = st.builds(
    lambda some, allowances, most: compile_terms(ContractTerms(some, allowances, most)),
    discounts(),
    st.dictionaries(st.sampled_from(METERS), st.integers(0, 400), max_size=2),
    st.none() | st.integers(0, 10**7),
)


@st.composite
def openings(draw: st.DrawFn, price: CompiledPrice, applied: CompiledTerms) -> dict[str, int]:
    return {
        name: draw(st.one_of(st.integers(0, 100), st.integers(0, 2 * 10**7)))
        for name in counter_names(price, applied)
        if draw(st.booleans())
    }


def compiled(price: Price) -> CompiledPrice:
    (found,) = compile_price_list(PriceList((price,), (FORMULA,)), BOOK)
    return found


def pending(execution: Execution) -> Execution:
    return execution._replace(outcome=Outcome.PENDING)


def spent(lines: Rated) -> int:
    return sum(line.amount_micros for line in lines.lines)


@given(prices(), executions, terms, st.data())
def test_lines_add_up_to_the_charge(
    price: Price, execution: Execution, applied: CompiledTerms, data: st.DataObject
) -> None:
    one = compiled(price)
    opening = data.draw(openings(one, applied))
    for rated in (
        rate(one, execution, applied, opening),
        rate(one, pending(execution), applied, opening),
        rate_outcome(one, execution, applied, opening),
        close_period(one, applied, opening),
    ):
        assert spent(rated) == rated.total_micros
        assert rated.total_micros >= 0
        assert all(line.amount_micros or line.kind not in CORRECTIONS for line in rated.lines)


CORRECTIONS = {LineKind.OUTCOME_FACTOR, LineKind.DISCOUNT, LineKind.MINIMUM, LineKind.MAXIMUM}


@given(prices(), executions, terms, st.data())
def test_rating_twice_is_the_same(
    price: Price, execution: Execution, applied: CompiledTerms, data: st.DataObject
) -> None:
    one = compiled(price)
    opening = data.draw(openings(one, applied))

    assert rate(one, execution, applied, opening) == rate(compiled(price), execution, applied, opening)


@given(prices(), executions, terms, st.data())
def test_an_outcome_adds_what_the_whole_is_more_than_a_pending_one(
    price: Price, execution: Execution, applied: CompiledTerms, data: st.DataObject
) -> None:
    one = compiled(price)
    opening = data.draw(openings(one, applied))
    base = rate(one, pending(execution), applied, opening)
    most = highest(one, execution, applied, opening)

    for outcome in FINAL_OUTCOMES:
        final = execution._replace(outcome=outcome)
        whole = rate(one, final, applied, opening)
        added = rate_outcome(one, final, applied, opening)
        assert base.total_micros + added.total_micros == whole.total_micros
        assert added.total_micros >= 0
        assert base.total_micros <= whole.total_micros <= most
        assert added.closing == whole.closing
        assert base.closing.keys() <= whole.closing.keys()


@given(prices(), st.lists(executions, max_size=5), terms, st.data())
def test_counters_chain_and_only_those_that_are_named_move(
    price: Price, some: Sequence[Execution], applied: CompiledTerms, data: st.DataObject
) -> None:
    one = compiled(price)
    names = counter_names(one, applied)
    assert len(names) == len(set(names))
    opening = data.draw(openings(one, applied))
    counters = dict(opening)
    for execution in some:
        rated = rate(one, execution, applied, counters)
        assert rated.closing.keys() <= set(names)
        for name, value in rated.closing.items():
            assert value >= counters.get(name, 0)
        for name in names:
            if name.endswith(":charged"):
                assert rated.closing[name] - counters.get(name, 0) == rated.total_micros
        # What is not named is not read.
        assert rated == rate(one, execution, applied, counters | {"other": 7})
        counters |= rated.closing


@given(prices(), st.lists(executions, min_size=1, max_size=5), terms)
def test_a_period_costs_its_minimum_at_least_and_its_maximum_at_most(
    price: Price, some: Sequence[Execution], applied: CompiledTerms
) -> None:
    assume(
        not any(
            part.component.tier_scope is TierScope.BILLING_PERIOD
            for part in price.components
            if isinstance(part.component, MeterRate)
        )
    )
    one = compiled(price)
    counters: dict[str, int] = {}
    total = 0
    for execution in some:
        rated = rate(one, execution, applied, counters)
        total += rated.total_micros
        counters |= rated.closing
    closed = close_period(one, applied, counters)
    total += closed.total_micros
    least, most, contract = one.period_minimum, one.period_maximum, applied.period_maximum_micros

    if most is not None:
        assert total <= most.micros
    if contract is not None:
        assert total <= contract
    elif least is not None:
        assert total >= least.micros
    if closed.total_micros:
        assert closed.lines[0].kind is LineKind.MINIMUM


def exact(price: UnitPrice) -> Fraction:
    """The price of a unit in micros."""
    return Fraction(price.amount) * 1_000_000 / price.per_units


def unit_by_unit(tiers: Sequence[Tier], quantity: int) -> Fraction:
    """What graduated tiers cost, counted one unit after the other."""
    total = Fraction(0)
    for unit in range(1, quantity + 1):
        tier = next(tier for tier in tiers if tier.up_to is None or unit <= tier.up_to)
        start = next((before.up_to for before, after in pairwise(tiers) if after is tier), 0) or 0
        if unit == start + 1 and tier.fee is not None:
            total += exact(tier.fee)
        total += exact(tier.price)
    return total


def whole(rate_: MeterRate, quantity: int) -> Fraction:
    """What a quantity costs, exactly."""
    if rate_.tier_mode is TierMode.PACKAGE and quantity:
        (tier,) = rate_.tiers
        fee = Fraction(0) if tier.fee is None else exact(tier.fee)
        return fee + ceil(Fraction(quantity, tier.price.per_units)) * Fraction(tier.price.amount) * 1_000_000
    if rate_.tier_mode is TierMode.VOLUME and quantity:
        tier = next(tier for tier in rate_.tiers if tier.up_to is None or quantity <= tier.up_to)
        return quantity * exact(tier.price) + (Fraction(0) if tier.fee is None else exact(tier.fee))
    return unit_by_unit(rate_.tiers, quantity)


def counting(rate_: MeterRate, **limits_: Any) -> CompiledPrice:
    """A price of one rate of pages."""
    named = PriceComponent("pages", MeterRate("pages", rate_.tiers, rate_.tier_mode, rate_.tier_scope))
    return compiled(Price("price", PriceSelector(), (named,), **limits_))


def pages(quantity: int) -> Execution:
    return Execution(Usage(meters={"pages": quantity}), Outcome.SUCCESS, NOW)


@given(meter_rates(TierScope.EXECUTION), st.integers(0, 200))
def test_an_execution_costs_what_its_units_do_one_by_one(rate_: MeterRate, quantity: int) -> None:
    one = counting(rate_)
    rated = rate(one, pages(quantity))

    assert rated.total_micros == round(whole(rate_, quantity))
    if rate_.tier_mode in (TierMode.FLAT, TierMode.GRADUATED, TierMode.VOLUME):
        assert (
            sum(line.quantity for line in rated.lines if line.unit_price not in [t.fee for t in rate_.tiers])
            <= quantity
        )
    if rate_.tier_mode is not TierMode.VOLUME:
        assert rated.total_micros <= rate(one, pages(quantity + 1)).total_micros


@given(meter_rates(TierScope.BILLING_PERIOD, live=True), st.integers(0, 200), st.integers(0, 200))
def test_the_next_units_of_a_period_cost_the_difference(rate_: MeterRate, before: int, more: int) -> None:
    one = counting(rate_)
    name = f"{BOOK}/price/pages"
    rated = rate(one, pages(more), opening={name: before})

    assert counter_names(one) == (name,)
    assert rated.total_micros == round(whole(rate_, before + more)) - round(whole(rate_, before))
    assert rated.closing == ({name: before + more} if more else {})
    assert all(line.amount_micros >= 0 for line in rated.lines)


@given(
    meter_rates(TierScope.BILLING_PERIOD, live=True),
    st.lists(st.integers(0, 60), max_size=8),
    st.integers(),
    st.none() | volumes(),
    st.none() | limits,
    st.none() | st.integers(0, 100),
    st.none() | st.integers(0, 10**7),
)
def test_however_usage_is_split_and_ordered_a_period_costs_the_same(
    rate_: MeterRate,
    parts: list[int],
    seed: int,
    steps: tuple[VolumeDiscountStep, ...] | None,
    most: UnitPrice | None,
    included: int | None,
    contract: int | None,
) -> None:
    one = counting(
        rate_,
        discounts=() if steps is None else (Discount("volume", volume=steps),),
        period_maximum=most,
    )
    allowances: Mapping[str, int] = {} if included is None else {"pages": included}
    applied = compile_terms(ContractTerms((), allowances, contract))
    shuffled = parts.copy()
    Random(seed).shuffle(shuffled)

    def period(quantities_: Sequence[int]) -> tuple[int, dict[str, int]]:
        counters: dict[str, int] = {}
        total = 0
        for quantity in quantities_:
            rated = rate(one, pages(quantity), applied, counters)
            total += rated.total_micros
            counters |= rated.closing
        return total, {name: value for name, value in counters.items() if value}

    total, counters = period(parts)
    assert period(shuffled) == (total, counters)
    assert period([sum(parts)]) == (total, counters)
    # And that is what the units cost that the allowance does not include.
    gross = round(whole(rate_, max(0, sum(parts) - (included or 0))))
    expected = gross - floor(taken(steps or (), gross))
    for maximum in (None if most is None else round(exact(most)), contract):
        expected = expected if maximum is None else min(expected, maximum)
    assert total == expected


def taken(steps: Sequence[VolumeDiscountStep], gross: int) -> Fraction:
    """What a volume discount takes off, micro by step."""
    starts = [exact(step.from_amount) for step in steps]
    ends: list[Fraction | None] = [*starts[1:], None][: len(starts)]
    return sum(
        (
            max(Fraction(0), (Fraction(gross) if end is None else min(Fraction(gross), end)) - start)
            * step.basis_points
            / 10_000
            for step, start, end in zip(steps, starts, ends, strict=True)
        ),
        Fraction(0),
    )


@given(st.lists(st.integers(0, 300), max_size=8), rates)
def test_what_counts_by_execution_is_rounded_by_execution(parts: list[int], price: UnitPrice) -> None:
    one = counting(MeterRate("pages", (Tier(None, price),)))
    total = sum(rate(one, pages(quantity)).total_micros for quantity in parts)

    assert abs(total - sum(parts) * exact(price)) <= Fraction(len(parts), 2)


@given(meter_rates(TierScope.BILLING_PERIOD), st.lists(st.integers(0, 60), max_size=8))
def test_volume_tiers_of_a_period_are_charged_when_it_is_closed(rate_: MeterRate, parts: list[int]) -> None:
    assume(rate_.tier_mode is TierMode.VOLUME)
    one = counting(rate_)
    counters: dict[str, int] = {}
    for quantity in parts:
        rated = rate(one, pages(quantity), opening=counters)
        assert rated.total_micros == 0
        counters |= rated.closing

    closed = close_period(one, compile_terms(ContractTerms()), counters)
    assert closed.total_micros == round(whole(rate_, sum(parts)))


model_names = st.sampled_from(["gpt-4o", "gpt-4o-mini", "claude-3", "o1"])


@given(
    st.dictionaries(model_names, st.tuples(quantities, quantities), max_size=4),
    st.lists(st.sampled_from(["gpt-4o", "gpt-*", "claude-*", "*", "o1"]), min_size=1, unique=True),
    st.integers(0, 500),
)
def test_models_consume_what_the_allowance_leaves_of_them(
    consumed: dict[str, tuple[int, int]], wanted: list[str], included: int
) -> None:
    parts = tuple(ModelUsage(name, count, cached_input_tokens=0) for name, (count, _) in consumed.items())
    usage = Usage(input_tokens=sum(part.input_tokens for part in parts), models=parts)
    price = UnitPrice("0.000001")
    named = (
        PriceComponent("some", MeterRate("input_tokens", (Tier(None, price),), models=tuple(wanted))),
        PriceComponent("all", MeterRate("input_tokens", (Tier(None, price),))),
    )
    one = compiled(Price("price", PriceSelector(), named))
    applied = compile_terms(ContractTerms(allowances={"input_tokens": included}))
    rated = rate(one, Execution(usage, Outcome.SUCCESS, NOW), applied)

    # Token by token, in the order in which the usage names the models.
    tokens = [part.model for part in parts for _ in range(part.input_tokens)]
    matching = [
        model
        for model in tokens[included:]
        if any(model == one or (one[-1] == "*" and model.startswith(one[:-1])) for one in wanted)
    ]
    by_name = {line.component_name: line.quantity for line in rated.lines if line.kind is LineKind.COMPONENT}
    assert by_name.get("some", 0) == len(matching)
    assert by_name.get("all", 0) == max(0, len(tokens) - included)
    assert rated.closing == (
        {"allowance:input_tokens": min(included, len(tokens))} if tokens and included else {}
    )


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**4),
    st.sampled_from(MeterRounding),
    st.integers(1, 5_000),
    st.sampled_from([1, 7, 1_000]),
)
@settings(max_examples=50)
def test_a_formula_is_an_exact_sum_rounded_once(
    cpu: int, rows: int, rounding: MeterRounding, units: int, per_units: int
) -> None:
    formula = MeterFormula(
        "units",
        (MeterTerm("cpu_milliseconds", _text(units, 3), per_units), MeterTerm("rows", "0.3")),
        rounding,
    )
    named = PriceComponent("units", MeterRate("units", (Tier(None, UnitPrice("0.000001")),)))
    (one,) = compile_price_list(PriceList((Price("price", PriceSelector(), (named,)),), (formula,)))
    usage = Usage(cpu_milliseconds=cpu, meters={"rows": rows})

    total = Fraction(units, 1_000) * cpu / per_units + Fraction(3, 10) * rows
    expected = {
        MeterRounding.UP: ceil(total),
        MeterRounding.HALF_EVEN: round(total),
        MeterRounding.DOWN: floor(total),
    }[rounding]
    assert rate(one, Execution(usage, Outcome.SUCCESS, NOW)).total_micros == expected
