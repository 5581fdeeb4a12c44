"""Rating: what usage costs under a price. A pure function on integers, and the only one: charges, quotes,
simulations and re-rating all come from it.

What the components of a compiled price come to is exact (see compiled_price), and is rounded once, half to
even. Whatever follows (discounts, a minimum, a maximum) works on whole micros, and is rounded step by step.

What counts over a billing period is given in and answered as counters, by name: positions in tiers and
allowances in units, amounts in micros. See docs/adr/0021-rating.md.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from services.kit.errors import InvalidArgument
from services.kit.money import MAX_AMOUNT_MICROS, round_half_even
from services.metering.domain.compiled_price import (
    ALL_BASIS_POINTS,
    BONUS,
    NO_COMPILED_TERMS,
    NO_PRICE,
    PLAIN,
    TIERS,
    CompiledComponent,
    CompiledDiscount,
    CompiledPrice,
    CompiledTerms,
    Execution,
    Limit,
)
from services.metering.domain.price_book import UnitPrice
from services.metering.domain.usage_event import FINAL_OUTCOMES, Outcome, Usage

# Name -> value; a missing one is 0.
Counters = Mapping[str, int]

_EMPTY: Final[Mapping[str, int]] = MappingProxyType({})
# Makes a named tuple of a tuple, in a third of the time that its own constructor takes.
_new: Final = tuple.__new__
# The counter of what a contract's maximum counts.
_CONTRACT_CHARGED: Final = "contract:charged"


class LineKind(StrEnum):
    """What a line of a charge is for."""

    COMPONENT = "component"
    # What an allowance covers of a component: a quantity, no amount.
    ALLOWANCE = "allowance"
    # What the outcome does not owe.
    OUTCOME_FACTOR = "outcome_factor"
    DISCOUNT = "discount"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    SUBSCRIPTION = "subscription"
    PRORATION = "proration"


_COMPONENT: Final = LineKind.COMPONENT


class RatedLine(NamedTuple):
    """What one component came to, or one step of what follows them. See LineKind for the names."""

    component_name: str
    quantity: int
    unit_price: UnitPrice
    amount_micros: int
    kind: LineKind = LineKind.COMPONENT
    tier: int = 0


class Rated(NamedTuple):
    """What an execution costs: the lines add up to the total, to the micro.

    `closing` has the new values of the counters that it moved.
    """

    lines: tuple[RatedLine, ...]
    total_micros: int
    closing: Counters = _EMPTY


# Units of a component that have one price: its name, how many, their price, their tier, the parts that they
# cost, and whether a pending outcome leaves them out. Plain tuples: naming their parts would take longer than
# to rate by them.
_Charged = tuple[str, int, UnitPrice, int, int, bool]


def select(prices: Sequence[CompiledPrice], action_type: str, agent_id: str) -> CompiledPrice | None:
    """The price of an event: the first whose selector matches it."""
    for price in prices:
        if price.selector.matches(action_type, agent_id):
            return price
    return None


def counter_names(price: CompiledPrice, terms: CompiledTerms = NO_COMPILED_TERMS) -> tuple[str, ...]:
    """The counters that rating by this price reads or moves; none for a price without state."""
    names = price.counters
    if terms.allowances:
        names += tuple(_allowance_counter(meter) for meter in terms.allowances if meter in price.meters)
    if terms.volume_discounts and not price.volume_discounts:
        names += (price.gross_counter,)
    if terms.period_maximum_micros is not None:
        names += (_CONTRACT_CHARGED,)
    return names


def rate(
    price: CompiledPrice,
    execution: Execution,
    terms: CompiledTerms = NO_COMPILED_TERMS,
    opening: Counters = _EMPTY,
) -> Rated:
    """What the execution costs, with the counters of its billing period as they stand.

    A base fee always leaves a line; units do when there are any, a bonus when it is earned. While the outcome
    is pending it is what is owed in any case: no bonus, no component with a condition, the smallest part that
    an outcome owes. Raises InvalidArgument naming `usage` if the components exceed MAX_AMOUNT_MICROS.
    """
    return _rate(price, execution, terms, opening, execution.outcome is Outcome.PENDING)[0]


def rate_outcome(
    price: CompiledPrice,
    execution: Execution,
    terms: CompiledTerms = NO_COMPILED_TERMS,
    opening: Counters = _EMPTY,
) -> Rated:
    """What a final outcome adds to what the execution cost while it was pending: never less than nothing.

    `opening` are the counters as they stood for the pending one. Both together are what the execution costs
    with this outcome, to the micro, which is why the rest is not rounded by itself. Its lines are those of
    the components that the pending one did not have, and what changes in what follows them. `closing` is of
    the whole execution. Raises InvalidArgument as `rate` does.
    """
    whole, charged, final = _rate(price, execution, terms, opening, False)
    base, _, certain = _rate(price, execution, terms, opening, True)
    earned = [one for one in charged if one[5]]
    lines = _lines(earned, final - certain, price.denominator)
    changes = _changes(base.lines, whole.lines)
    return Rated((*lines, *changes), whole.total_micros - base.total_micros, whole.closing)


def highest(
    price: CompiledPrice,
    execution: Execution,
    terms: CompiledTerms = NO_COMPILED_TERMS,
    opening: Counters = _EMPTY,
) -> int:
    """The most micros that the execution costs, with any outcome and any result."""
    return max(
        _rate(price, execution._replace(outcome=outcome), terms, opening, False, True)[0].total_micros
        for outcome in FINAL_OUTCOMES
    )


def close_period(price: CompiledPrice, terms: CompiledTerms, counters: Counters) -> Rated:
    """What a billing period costs once it is over: volume tiers over the period, and what is missing up to
    the period's minimum.

    Discounts of a part apply if they always do: a period has no moment. Nothing is charged for a period
    without executions, in which no counter moved.
    """
    charged: list[_Charged] = []
    for component in price.components:
        if component.close is not None and (quantity := counters.get(component.counter, 0)):
            for units, unit_price, tier, parts in component.close(0, quantity):
                charged.append((component.name, units, unit_price, tier, parts, False))
    lines, net = _rounded(charged, price.denominator)
    closing: dict[str, int] = {}
    net = _discounted(price, terms, net, None, counters, closing, lines)
    minimum = price.period_minimum
    if minimum is not None and price.charged_counter in counters:
        missing = minimum.micros - counters[price.charged_counter] - net
        if missing > 0:
            lines.append(_line(price.name, minimum, missing, LineKind.MINIMUM))
            net += missing
    net = _limited(price, terms, net, counters, closing, lines)
    return Rated(tuple(lines), net, closing)


def _rate(
    price: CompiledPrice,
    execution: Execution,
    terms: CompiledTerms,
    opening: Counters,
    pending: bool,
    assume: bool = False,
) -> tuple[Rated, list[_Charged], int]:
    """The execution, with its outcome or as if that was pending; `assume` takes conditions for true. Besides,
    what its components are made of, and what they come to in micros.
    """
    closing: dict[str, int] = {}
    found = _charge(price, execution, terms, opening, closing, pending, assume)
    charged, allowed, bonus = found
    denominator = price.denominator
    lines, components = _rounded(charged, denominator)
    if components > MAX_AMOUNT_MICROS:
        raise InvalidArgument.of("usage", f"costs {components} micros, more than {MAX_AMOUNT_MICROS}")
    if allowed:
        lines += allowed
    if not price.is_adjusted and terms is NO_COMPILED_TERMS:
        return _new(Rated, (tuple(lines), components, closing)), charged, components
    net = components
    if price.factors is not None:
        factor = price.factors[Outcome.PENDING if pending else execution.outcome]
        if factor != ALL_BASIS_POINTS:
            exact = sum(one[4] for one in charged)
            net = round_half_even(
                (exact - bonus) * factor + bonus * ALL_BASIS_POINTS, denominator * ALL_BASIS_POINTS
            )
            if net != components:
                lines.append(RatedLine(price.name, 1, NO_PRICE, net - components, LineKind.OUTCOME_FACTOR))
    net = _discounted(price, terms, net, execution.occur_time, opening, closing, lines)
    if price.minimum is not None and net < price.minimum.micros:
        lines.append(_line(price.name, price.minimum, price.minimum.micros - net, LineKind.MINIMUM))
        net = price.minimum.micros
    if price.maximum is not None and net > price.maximum.micros:
        lines.append(_line(price.name, price.maximum, price.maximum.micros - net, LineKind.MAXIMUM))
        net = price.maximum.micros
    net = _limited(price, terms, net, opening, closing, lines)
    return Rated(tuple(lines), net, closing), charged, components


def _charge(
    price: CompiledPrice,
    execution: Execution,
    terms: CompiledTerms,
    opening: Counters,
    closing: dict[str, int],
    pending: bool,
    assume: bool,
) -> tuple[list[_Charged], list[RatedLine] | None, int]:
    """What the components of a price charge, what allowances cover of them, and the parts of bonuses."""
    usage, outcome = execution.usage, execution.outcome
    covered = _cover(price, terms, usage, opening, closing) if terms.allowances else None
    charged: list[_Charged] = []
    allowed: list[RatedLine] | None = None
    bonus = 0
    values: dict[str, Any] | None = None
    for name, unit_price, measure, unit_rate, way, what in price.covered_steps if covered else price.steps:
        quantity = 1 if measure is None else measure(usage)
        if not quantity:
            continue
        if way == PLAIN:
            charged.append((name, quantity, unit_price, 0, quantity * unit_rate, False))
            continue
        if way == TIERS:
            for units, tier_price, tier, parts in what(0, quantity):
                charged.append((name, units, tier_price, tier, parts, False))
            continue
        if way == BONUS:
            if what is outcome and not pending:
                charged.append((name, quantity, unit_price, 0, unit_rate, True))
                bonus += unit_rate
            continue
        special: CompiledComponent = what
        if special.is_deferred:
            if pending or special.outcome not in (None, outcome):
                continue
            if special.condition is not None and not assume:
                if values is None:
                    values = {name: value(execution) for name, value in price.variables}
                if not special.condition.holds(values):
                    continue
        if covered and (units := covered.get(special.meter, 0)):
            count = special.models_measure
            rest = quantity - units if count is None else count(usage, units)
            if rest < quantity:
                allowed = [] if allowed is None else allowed
                allowed.append(RatedLine(name, quantity - rest, NO_PRICE, 0, LineKind.ALLOWANCE))
                quantity = rest
                if not quantity:
                    continue
        charge = special.charge
        if charge is None:
            parts = quantity * unit_rate
            charged.append((name, quantity, unit_price, 0, parts, special.is_deferred))
            if special.is_bonus:
                bonus += parts
            continue
        position = 0
        if special.counter:
            position = opening.get(special.counter, 0)
            closing[special.counter] = position + quantity
            if special.close is not None:
                continue
        for units, tier_price, tier, parts in charge(position, position + quantity):
            charged.append((name, units, tier_price, tier, parts, special.is_deferred))
    return charged, allowed, bonus


def _cover(
    price: CompiledPrice, terms: CompiledTerms, usage: Usage, opening: Counters, closing: dict[str, int]
) -> dict[str, int]:
    """How many units of each meter that the price counts are covered by allowances, which this uses up."""
    covered: dict[str, int] = {}
    for meter, included in terms.allowances.items():
        measure = price.meters.get(meter)
        if measure is None:
            continue
        name = _allowance_counter(meter)
        used = opening.get(name, 0)
        units = min(measure(usage), included - used)
        if units > 0:
            covered[meter] = units
            closing[name] = used + units
    return covered


def _discounted(
    price: CompiledPrice,
    terms: CompiledTerms,
    gross: int,
    moment: datetime | None,
    opening: Counters,
    closing: dict[str, int],
    lines: list[RatedLine],
) -> int:
    """What discounts leave of an amount: those by volume first, since they count what is spent without
    discounts; then the others, one after the other, the contract's last. Without a moment it is what a closed
    period costs: there only those apply that always do, and none of so much for each execution.
    """
    net = gross
    volumes = price.volume_discounts + terms.volume_discounts
    if volumes:
        before = opening.get(price.gross_counter, 0)
        after = before + gross
        closing[price.gross_counter] = after
        for discount in volumes:
            if not _applies(discount, moment):
                continue
            # A later one counts what the one before it left.
            before, after = before - discount.off(before), after - discount.off(after)
            _take(lines, discount, after - before - net)
            net = after - before
    for discount in price.discounts + terms.discounts:
        if not _applies(discount, moment):
            continue
        if discount.basis_points:
            left = round_half_even(net * (ALL_BASIS_POINTS - discount.basis_points), ALL_BASIS_POINTS)
        elif moment is None:
            continue
        else:
            left = max(0, net - discount.amount_micros)
        _take(lines, discount, left - net)
        net = left
    return net


def _applies(discount: CompiledDiscount, moment: datetime | None) -> bool:
    if moment is None:
        return discount.start_time is None and discount.end_time is None
    return discount.applies(moment)


def _take(lines: list[RatedLine], discount: CompiledDiscount, amount_micros: int) -> None:
    if amount_micros:
        lines.append(RatedLine(discount.name, 1, discount.unit_price, amount_micros, LineKind.DISCOUNT))


def _limited(
    price: CompiledPrice,
    terms: CompiledTerms,
    net: int,
    opening: Counters,
    closing: dict[str, int],
    lines: list[RatedLine],
) -> int:
    """At most what the maximums of the billing period leave; counts what is charged."""
    counts = price.period_minimum is not None or price.period_maximum is not None
    charged = opening.get(price.charged_counter, 0) if counts else 0
    if price.period_maximum is not None:
        room = max(0, price.period_maximum.micros - charged)
        if net > room:
            lines.append(_line(price.name, price.period_maximum, room - net, LineKind.MAXIMUM))
            net = room
    if terms.period_maximum_micros is not None:
        spent = opening.get(_CONTRACT_CHARGED, 0)
        room = max(0, terms.period_maximum_micros - spent)
        if net > room:
            limit = Limit(terms.period_maximum_micros, _decimal(terms.period_maximum_micros))
            lines.append(_line(price.name, limit, room - net, LineKind.MAXIMUM))
            net = room
        closing[_CONTRACT_CHARGED] = spent + net
    if counts:
        # Even if that is nothing: the counter tells that there was an execution.
        closing[price.charged_counter] = charged + net
    return net


def _line(name: str, limit: Limit, amount_micros: int, kind: LineKind) -> RatedLine:
    return RatedLine(name, 1, limit.unit_price, amount_micros, kind)


def _changes(before: Sequence[RatedLine], after: Sequence[RatedLine]) -> list[RatedLine]:
    """What differs in what follows the components of a final outcome and of a pending one."""
    amounts: dict[tuple[LineKind, str, UnitPrice], int] = {}
    for sign, lines in ((1, after), (-1, before)):
        for line in lines:
            if line.kind is _COMPONENT:
                continue
            key = (line.kind, line.component_name, line.unit_price)
            amounts[key] = amounts.get(key, 0) + sign * line.amount_micros
    return [
        RatedLine(name, 1, unit_price, amount, kind)
        for (kind, name, unit_price), amount in amounts.items()
        if amount
    ]


def _rounded(charged: Sequence[_Charged], denominator: int) -> tuple[list[RatedLine], int]:
    """A line for each piece, and what they add up to: the exact sum, rounded once, half to even.

    Lines are rounded by largest remainder, ties to the earlier one.
    """
    lines: list[RatedLine] = []
    remainders: list[int] = []
    total = 0
    for name, quantity, unit_price, tier, parts, _ in charged:
        share, remainder = divmod(parts, denominator)
        total += share
        remainders.append(remainder)
        lines.append(_new(RatedLine, (name, quantity, unit_price, share, _COMPONENT, tier)))
    left, remainder = divmod(sum(remainders), denominator)
    # Nothing above half, and half only if the total would be odd without.
    if 2 * remainder > denominator or (2 * remainder == denominator and (total + left) % 2):
        left += 1
    if left:
        _raise_lines(lines, remainders, left)
    return lines, total + left


def _raise_lines(lines: list[RatedLine], remainders: list[int], left: int) -> None:
    """Give a micro to each of the `left` lines with the largest remainders."""
    if left == 1:
        raised = [remainders.index(max(remainders))]
    else:
        # sorted() is stable, so ties stay in the order of the lines.
        raised = sorted(range(len(lines)), key=lambda index: -remainders[index])[:left]
    for index in raised:
        name, quantity, unit_price, share, kind, tier = lines[index]
        lines[index] = _new(RatedLine, (name, quantity, unit_price, share + 1, kind, tier))


def _lines(charged: Sequence[_Charged], total: int, denominator: int) -> list[RatedLine]:
    """A line for each piece that an outcome adds, rounded so that they add up to `total`.

    It may differ from their exact sum by a micro, by what they are added to being rounded.
    """
    lines: list[RatedLine] = []
    remainders: list[int] = []
    left = total
    for name, quantity, unit_price, tier, parts, _ in charged:
        share, remainder = divmod(parts, denominator)
        left -= share
        remainders.append(remainder)
        lines.append(RatedLine(name, quantity, unit_price, share, _COMPONENT, tier))
    if left > 0:
        _raise_lines(lines, remainders, left)
    elif left < 0:
        # Only a bonus of whole micros can come to one less, by what it is added to being rounded to even.
        greatest = max(range(len(lines)), key=lambda index: lines[index].amount_micros)
        lines[greatest] = lines[greatest]._replace(amount_micros=lines[greatest].amount_micros - 1)
    return lines


def _allowance_counter(meter: str) -> str:
    return f"allowance:{meter}"


def _decimal(amount_micros: int) -> UnitPrice:
    return UnitPrice(format(Decimal(amount_micros).scaleb(-6), "f"))
