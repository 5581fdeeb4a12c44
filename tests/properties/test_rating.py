"""Rating, against an oracle that counts in fractions."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from random import Random

from hypothesis import assume, given
from hypothesis import strategies as st

from services.kit.money import MAX_AMOUNT_MICROS
from services.metering.domain.compiled_price import Execution, compile_price
from services.metering.domain.outcome import prospects
from services.metering.domain.price_book import (
    BaseFee,
    Component,
    MeterRate,
    OutcomeBonus,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    TokenKind,
    TokenRate,
    UnitPrice,
)
from services.metering.domain.price_checks import check_price_list
from services.metering.domain.rating import Rated, rate, rate_outcome
from services.metering.domain.usage_event import FINAL_OUTCOMES, MAX_TOKENS, Outcome, Usage

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)

amounts = st.builds(
    lambda units, places: format(Decimal(units).scaleb(-places), "f"),
    st.integers(0, 10**15),
    st.integers(4, 12),
)
fees = st.builds(UnitPrice, amounts)
unit_prices = st.builds(
    UnitPrice, amounts, st.one_of(st.sampled_from([1, 3, 7, 1_000, 1_000_000]), st.integers(1, 10**12))
)
components = st.one_of(
    st.builds(BaseFee, fees),
    st.builds(TokenRate, st.sampled_from(TokenKind), unit_prices),
    st.builds(OutcomeBonus, st.sampled_from([Outcome.SUCCESS, Outcome.FAILURE, Outcome.PARTIAL]), fees),
)
tokens = st.one_of(st.integers(0, 20), st.integers(0, 10**6), st.integers(0, MAX_TOKENS))
usages = st.builds(Usage, st.just(""), tokens, tokens)
outcomes = st.sampled_from(Outcome)


def price_of(parts: Sequence[Component]) -> Price:
    named = tuple(PriceComponent(f"part-{number}", part) for number, part in enumerate(parts))
    return Price("price", PriceSelector(), named)


prices = st.lists(components, min_size=1, max_size=8).map(price_of)


def executed(usage: Usage, outcome: Outcome) -> Execution:
    return Execution(usage, outcome, NOW)


def exact(component: Component, usage: Usage, outcome: Outcome) -> Fraction:
    """What a component costs, in micros, exactly."""
    assert not isinstance(component, MeterRate)
    unit = Fraction(component.price.amount) / component.price.per_units * 1_000_000
    match component:
        case BaseFee():
            return unit
        case TokenRate(kind):
            return unit * (usage.input_tokens if kind is TokenKind.INPUT else usage.output_tokens)
        case OutcomeBonus(wanted):
            return unit if outcome is wanted else Fraction(0)


def rate_within_bounds(price: Price, usage: Usage, outcome: Outcome) -> Rated:
    total = sum(exact(named.component, usage, outcome) for named in price.components)
    assume(round(total) <= MAX_AMOUNT_MICROS)
    return rate(compile_price(price), executed(usage, outcome))


@given(prices, usages, outcomes)
def test_the_exact_sum_is_rounded_once_half_to_even(price: Price, usage: Usage, outcome: Outcome) -> None:
    check_price_list(PriceList((price,)))
    rated = rate_within_bounds(price, usage, outcome)

    # round() of a Fraction rounds half to even.
    assert rated.total_micros == round(
        sum((exact(named.component, usage, outcome) for named in price.components), Fraction(0))
    )


@given(prices, usages, outcomes)
def test_lines_add_up_and_none_is_a_micro_away_from_exact(
    price: Price, usage: Usage, outcome: Outcome
) -> None:
    rated = rate_within_bounds(price, usage, outcome)
    by_name = {named.name: named.component for named in price.components}

    assert sum(line.amount_micros for line in rated.lines) == rated.total_micros
    for line in rated.lines:
        assert abs(line.amount_micros - exact(by_name[line.component_name], usage, outcome)) < 1


@given(prices, usages, outcomes)
def test_no_line_that_was_rounded_up_had_less_left_over_than_one_rounded_down(
    price: Price, usage: Usage, outcome: Outcome
) -> None:
    rated = rate_within_bounds(price, usage, outcome)
    by_name = {named.name: named.component for named in price.components}
    left_over = [exact(by_name[line.component_name], usage, outcome) % 1 for line in rated.lines]
    raised = [
        line.amount_micros > exact(by_name[line.component_name], usage, outcome) for line in rated.lines
    ]

    for earlier, (up, rest) in enumerate(zip(raised, left_over, strict=True)):
        for other_up, other_rest in list(zip(raised, left_over, strict=True))[earlier + 1 :]:
            if up and not other_up:
                assert rest >= other_rest
            if other_up and not up:
                assert other_rest > rest


@given(prices, usages, outcomes, st.integers())
def test_the_order_of_components_does_not_change_the_total(
    price: Price, usage: Usage, outcome: Outcome, seed: int
) -> None:
    shuffled = [named.component for named in price.components]
    Random(seed).shuffle(shuffled)

    assert (
        rate_within_bounds(price, usage, outcome).total_micros
        == rate(compile_price(price_of(shuffled)), executed(usage, outcome)).total_micros
    )


@given(prices, usages, outcomes)
def test_rating_again_gives_the_same(price: Price, usage: Usage, outcome: Outcome) -> None:
    assert rate_within_bounds(price, usage, outcome) == rate(compile_price(price), executed(usage, outcome))


@given(prices, usages, outcomes, st.integers(0, 1_000))
def test_more_usage_never_costs_less(price: Price, usage: Usage, outcome: Outcome, more: int) -> None:
    greater = Usage("", usage.input_tokens + more, usage.output_tokens + more)

    assert (
        rate_within_bounds(price, usage, outcome).total_micros
        <= rate_within_bounds(price, greater, outcome).total_micros
    )


@given(prices, usages)
def test_base_and_bonus_are_the_whole_price_whatever_the_outcome(price: Price, usage: Usage) -> None:
    compiled = compile_price(price)
    whole = {outcome: rate_within_bounds(price, usage, outcome) for outcome in FINAL_OUTCOMES}
    base = rate(compiled, executed(usage, Outcome.PENDING))
    earned = prospects(compiled, executed(usage, Outcome.PENDING)).bonuses
    assert earned is not None

    for outcome in FINAL_OUTCOMES:
        bonus = rate_outcome(compiled, executed(usage, outcome))
        assert base.total_micros + bonus.total_micros == whole[outcome].total_micros
        assert sum(line.amount_micros for line in bonus.lines) == bonus.total_micros
        assert min((line.amount_micros for line in bonus.lines), default=0) >= 0
        # Those lines and no others that the base does not have.
        names = [line.component_name for line in (*base.lines, *bonus.lines)]
        assert sorted(names) == sorted(line.component_name for line in whole[outcome].lines)
        assert earned.get(outcome, Rated((), 0)).total_micros == bonus.total_micros
    assert Outcome.UNKNOWN not in earned
    assert max(whole[outcome].total_micros for outcome in FINAL_OUTCOMES) == base.total_micros + max(
        (bonus.total_micros for bonus in earned.values()), default=0
    )
