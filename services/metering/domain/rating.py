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
    OutcomeDeferral,
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


# A component, how many units of it were used, and the parts that they cost.
_Charged = tuple[CompiledComponent, int, int]


class CompiledPrice(NamedTuple):
    """A price, ready for integer arithmetic: `denominator` parts make one micro."""

    selector: PriceSelector
    components: tuple[CompiledComponent, ...]
    denominator: int
    deferral: OutcomeDeferral


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
        deferral=price.deferral,
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
    a bonus when it is earned: never while the outcome is pending. Raises InvalidArgument naming `usage` if
    the total exceeds MAX_AMOUNT_MICROS.
    """
    charged: list[_Charged] = []
    exact = 0
    for component in price.components:
        quantity = component.measure(usage, outcome)
        if quantity:
            parts = quantity * component.rate
            exact += parts
            charged.append((component, quantity, parts))
    total = round_half_even(exact, price.denominator)
    if total > MAX_AMOUNT_MICROS:
        raise InvalidArgument.of("usage", f"costs {total} micros, more than {MAX_AMOUNT_MICROS}")
    return Rated(_lines(charged, total, price.denominator), total)


def rate_bonus(price: CompiledPrice, usage: Usage, outcome: Outcome) -> Rated:
    """What the outcome adds to what the usage cost while it was pending.

    Both together are what the usage costs with this outcome, to the micro, which is why the bonus is not
    rounded by itself. Its lines are those of the components that only this outcome earns. Raises
    InvalidArgument as `rate` does.
    """
    total = rate(price, usage, outcome).total_micros - rate(price, usage, Outcome.PENDING).total_micros
    earned: list[_Charged] = [
        (component, quantity, quantity * component.rate)
        for component in price.components
        if (quantity := component.measure(usage, outcome) - component.measure(usage, Outcome.PENDING))
    ]
    return Rated(_lines(earned, total, price.denominator), total)


def _lines(charged: Sequence[_Charged], total: int, denominator: int) -> tuple[RatedLine, ...]:
    """A line for each component, rounded so that they add up to `total`."""
    shares: list[int] = []
    remainders: list[int] = []
    for _, _, parts in charged:
        share, remainder = divmod(parts, denominator)
        shares.append(share)
        remainders.append(remainder)
    left = total - sum(shares)
    if left > 0:
        # sorted() is stable, so ties stay in the order of the lines. `left` counts at most the lines, and
        # for a whole price at most those that have a remainder, since each is below one micro.
        for index in sorted(range(len(shares)), key=lambda index: -remainders[index])[:left]:
            shares[index] += 1
    elif left < 0:
        # Only a bonus of whole micros can come to one less, by what it is added to being rounded to even.
        shares[shares.index(max(shares))] -= 1
    return tuple(
        RatedLine(component.name, quantity, component.unit_price, share)
        for (component, quantity, _), share in zip(charged, shares, strict=True)
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
