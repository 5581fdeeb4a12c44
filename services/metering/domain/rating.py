"""Rating: what usage costs under a price. A pure function on integers.

A price is compiled once: the price of one unit of every component becomes an integer number of parts, so
many of which (`denominator`) make a micro of the currency. What an event costs is then exact in integer
arithmetic, whatever decimals and unit sizes the price names, and is rounded once.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from math import lcm
from typing import NamedTuple

from services.kit.errors import InvalidArgument
from services.kit.money import MAX_AMOUNT_MICROS, MICROS_PER_UNIT, round_half_even
from services.metering.domain.price_book import (
    BaseFee,
    Component,
    OutcomeBonus,
    Price,
    PriceComponent,
    PriceSelector,
    TokenKind,
    TokenRate,
    UnitPrice,
)
from services.metering.domain.usage_event import Outcome, Usage

# How many units of a component an event used; 0 means that it leaves no line.
Measure = Callable[[Usage, Outcome], int]


class CompiledComponent(NamedTuple):
    """A component, ready for integer arithmetic: `rate` is the price of one unit in the price's parts."""

    name: str
    unit_price: UnitPrice
    measure: Measure
    rate: int


class CompiledPrice(NamedTuple):
    """A price, ready for integer arithmetic: `denominator` parts make one micro."""

    selector: PriceSelector
    components: tuple[CompiledComponent, ...]
    denominator: int


class RatedLine(NamedTuple):
    """What one component came to."""

    component_name: str
    quantity: int
    unit_price: UnitPrice
    amount_micros: int


class Rated(NamedTuple):
    """What an event costs: the lines add up to the total, to the micro."""

    lines: tuple[RatedLine, ...]
    total_micros: int


def compile_price(price: Price) -> CompiledPrice:
    """The price with its decimals brought over one denominator."""
    rates = [_micros_per_unit(named.component.price) for named in price.components]
    denominator = lcm(*(rate.denominator for rate in rates))
    return CompiledPrice(
        selector=price.selector,
        components=tuple(
            _compile_component(named, rate, denominator)
            for named, rate in zip(price.components, rates, strict=True)
        ),
        denominator=denominator,
    )


def select(prices: Sequence[CompiledPrice], action_type: str, agent_id: str) -> CompiledPrice | None:
    """The price of an event: the first whose selector matches it."""
    for price in prices:
        if price.selector.matches(action_type, agent_id):
            return price
    return None


def rate(price: CompiledPrice, usage: Usage, outcome: Outcome) -> Rated:
    """What the usage costs.

    The exact sum is rounded once, half to even, to micros; lines are rounded by largest remainder, ties to
    the earlier one, so that they add up to it. A base fee always leaves a line; tokens do when there are any,
    a bonus when it is earned. Raises InvalidArgument naming `usage` if the total exceeds MAX_AMOUNT_MICROS.
    """
    denominator = price.denominator
    exact = 0
    charged: list[tuple[CompiledComponent, int]] = []
    shares: list[int] = []
    remainders: list[int] = []
    for component in price.components:
        quantity = component.measure(usage, outcome)
        if quantity:
            parts = quantity * component.rate
            exact += parts
            share, remainder = divmod(parts, denominator)
            charged.append((component, quantity))
            shares.append(share)
            remainders.append(remainder)
    total = round_half_even(exact, denominator)
    if total > MAX_AMOUNT_MICROS:
        raise InvalidArgument.of("usage", f"costs {total} micros, more than {MAX_AMOUNT_MICROS}")
    left = total - sum(shares)
    if left:
        # sorted() is stable, so ties stay in the order of the lines. A line without a remainder is never
        # reached: remainders are below one micro each, so `left` counts at most the lines that have one.
        for index in sorted(range(len(shares)), key=lambda index: -remainders[index])[:left]:
            shares[index] += 1
    return Rated(
        lines=tuple(
            RatedLine(component.name, quantity, component.unit_price, share)
            for (component, quantity), share in zip(charged, shares, strict=True)
        ),
        total_micros=total,
    )


def _micros_per_unit(price: UnitPrice) -> Fraction:
    return Fraction(Decimal(price.amount)) * MICROS_PER_UNIT / price.per_units


def _compile_component(named: PriceComponent, rate: Fraction, denominator: int) -> CompiledComponent:
    return CompiledComponent(
        name=named.name,
        unit_price=named.component.price,
        measure=_measure(named.component),
        rate=rate.numerator * (denominator // rate.denominator),
    )


def _measure(component: Component) -> Measure:
    match component:
        case BaseFee():
            return lambda usage, outcome: 1
        case TokenRate(token_kind):
            if token_kind is TokenKind.INPUT:
                return lambda usage, outcome: usage.input_tokens
            return lambda usage, outcome: usage.output_tokens
        case OutcomeBonus(wanted):
            return lambda usage, outcome: int(outcome is wanted)
