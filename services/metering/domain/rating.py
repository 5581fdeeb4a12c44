"""Rating: what usage costs under a price. A pure function on integers, and the only one: charges, quotes,
simulations and re-rating all come from it.

A price is compiled once: the price of one unit of every component becomes an integer number of parts, so
many of which (`denominator`) make a micro of the currency. What the components come to is then exact in
integer arithmetic, whatever decimals and unit sizes the price names, and is rounded once, half to even.
Whatever follows (discounts, a minimum, a maximum) works on whole micros, and is rounded step by step.

What counts over a billing period is given in and answered as counters, by name: positions in tiers and
allowances in units, amounts in micros. See docs/adr/0021-rating.md.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from math import lcm
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

from services.kit.errors import InvalidArgument
from services.kit.money import MAX_AMOUNT_MICROS, round_half_even
from services.metering.domain.condition import Condition, compile_condition
from services.metering.domain.meters import (
    MODEL_METERS,
    Measure,
    compile_formulas,
    measure_of,
    of_models,
    quantities,
)
from services.metering.domain.price_book import (
    BaseFee,
    Component,
    Discount,
    MeterRate,
    OutcomeBonus,
    OutcomeDeferral,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    TierMode,
    TierScope,
    TokenKind,
    TokenRate,
    UnitPrice,
)
from services.metering.domain.tiers import (
    Charge,
    charge_close,
    charge_execution,
    charge_period,
    micros_of,
    prices_of,
)
from services.metering.domain.usage_event import FINAL_OUTCOMES, Outcome, Usage, UsageEvent

# Name -> value; a missing one is 0.
Counters = Mapping[str, int]

_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})
_NO_PRICE: Final = UnitPrice("0")
_ALL: Final = 10_000
_OUTCOME_NAMES: Final = {outcome: outcome.value for outcome in Outcome}
# Makes a named tuple of a tuple, in a third of the time that its own constructor takes.
_new: Final = tuple.__new__
# What the names of counters end with whose units only the end of a billing period charges.
UNCHARGED: Final = ":uncharged"
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


class Execution(NamedTuple):
    """A finished run or action, as far as its price can depend on it.

    `result` is what the host reported of its result, as JSON: only conditions ask for it.
    """

    usage: Usage
    outcome: Outcome
    occur_time: datetime
    result: Mapping[str, Any] = _EMPTY
    action_type: str = ""
    agent_id: str = ""
    agent_version: str = ""
    tool_name: str = ""
    outcome_candidate: str = ""

    @classmethod
    def of(cls, event: UsageEvent, occur_time: datetime) -> Self:
        """The execution that an event reports; an outcome that this release does not know is unknown."""
        return cls(
            event.usage,
            event.outcome or Outcome.UNKNOWN,
            occur_time,
            event.result,
            event.action_type,
            event.agent_id,
            event.agent_version,
            event.tool_name,
            event.outcome_candidate,
        )


class ContractTerms(NamedTuple):
    """What a contract adds to prices: discounts after those of the price, units that are included in a
    billing period by meter, and the most that it costs in one, over all its prices.
    """

    discounts: tuple[Discount, ...] = ()
    allowances: Mapping[str, int] = _EMPTY
    period_maximum_micros: int | None = None


class CompiledDiscount(NamedTuple):
    """A discount: of basis points, of micros, or of steps (from micros, basis points) of what is spent."""

    name: str
    basis_points: int
    amount_micros: int
    steps: tuple[tuple[int, int], ...]
    unit_price: UnitPrice
    start_time: datetime | None
    end_time: datetime | None

    def applies(self, moment: datetime) -> bool:
        return (self.start_time is None or self.start_time <= moment) and (
            self.end_time is None or moment < self.end_time
        )

    def off(self, spent_micros: int) -> int:
        """What the steps take off all that is spent in a billing period, rounded down.

        Down and not to even: the next micro that is spent then never takes off two.
        """
        taken = 0
        following: int | None = None
        for start, basis_points in reversed(self.steps):
            until = spent_micros if following is None else min(spent_micros, following)
            if until > start:
                taken += (until - start) * basis_points
            following = start
        return taken // _ALL


class CompiledTerms(NamedTuple):
    """Terms of a contract, ready for integer arithmetic."""

    volume_discounts: tuple[CompiledDiscount, ...]
    discounts: tuple[CompiledDiscount, ...]
    allowances: Mapping[str, int]
    period_maximum_micros: int | None


class Limit(NamedTuple):
    """A minimum or a maximum."""

    micros: int
    unit_price: UnitPrice


class CompiledComponent(NamedTuple):
    """A component, ready for integer arithmetic.

    `measure` counts its units. Without tiers each costs `rate` parts; with tiers (`charge`) they cost what
    those say, from the position of `counter` on if it has one. `models_measure` counts what is left of what
    some models consumed when a part is covered. `close` charges what is known at the end of a period only.
    """

    name: str
    unit_price: UnitPrice
    measure: Measure
    rate: int
    outcome: Outcome | None
    is_bonus: bool
    condition: Condition | None
    charge: Charge | None
    close: Charge | None
    counter: str
    meter: str
    models_measure: Callable[[Usage, int], int] | None
    # Whether it is not charged as long as the outcome is pending.
    is_deferred: bool


# What rating does for a component: its name, the price of a unit, how to count units (None counts one), the
# parts that a unit costs; in which way it is charged, and what that way needs.
_CompiledStep = tuple[str, UnitPrice, Measure | None, int, int, Any]
# All units at one price; in tiers of the execution, which are needed; once if the outcome is the one that is
# needed; and whatever else the component, which is needed, says.
_PLAIN, _TIERS, _BONUS, _SPECIAL = range(4)


class CompiledPrice(NamedTuple):
    """A price, ready for integer arithmetic: `denominator` parts make one micro.

    `steps` are its components as rating goes through them, `variables` what their conditions ask for.
    `factors` has the basis points that each outcome owes, the pending one too; None if all owe everything.
    """

    selector: PriceSelector
    components: tuple[CompiledComponent, ...]
    denominator: int
    deferral: OutcomeDeferral
    name: str
    key: str
    steps: tuple[_CompiledStep, ...]
    # The same where an allowance may cover some of the units of a meter.
    covered_steps: tuple[_CompiledStep, ...]
    variables: tuple[tuple[str, Callable[[Execution], Any]], ...]
    meters: Mapping[str, Measure]
    factors: Mapping[Outcome, int] | None
    volume_discounts: tuple[CompiledDiscount, ...]
    discounts: tuple[CompiledDiscount, ...]
    minimum: Limit | None
    maximum: Limit | None
    period_minimum: Limit | None
    period_maximum: Limit | None
    # Whether anything follows the components.
    is_adjusted: bool
    counters: tuple[str, ...]

    @property
    def gross_counter(self) -> str:
        return f"{self.key}:gross"

    @property
    def charged_counter(self) -> str:
        return f"{self.key}:charged"


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


NO_TERMS: Final = ContractTerms()


def compile_terms(terms: ContractTerms) -> CompiledTerms:
    """The terms of a contract with their decimals as integers."""
    volumes, others = _compile_discounts(terms.discounts)
    return CompiledTerms(volumes, others, terms.allowances, terms.period_maximum_micros)


NO_COMPILED_TERMS: Final = CompiledTerms((), (), NO_TERMS.allowances, None)


def compile_price_list(price_list: PriceList, price_book_id: str = "") -> tuple[CompiledPrice, ...]:
    """The prices of a version, in their order. The book's id is part of the names of counters."""
    formulas = compile_formulas(price_list.meters)
    return tuple(_compile_price(price, formulas, price_book_id) for price in price_list.prices)


def compile_price(price: Price) -> CompiledPrice:
    """A price by itself."""
    return _compile_price(price, {}, "")


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
        if factor != _ALL:
            exact = sum(one[4] for one in charged)
            net = round_half_even((exact - bonus) * factor + bonus * _ALL, denominator * _ALL)
            if net != components:
                lines.append(RatedLine(price.name, 1, _NO_PRICE, net - components, LineKind.OUTCOME_FACTOR))
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
        if way == _PLAIN:
            charged.append((name, quantity, unit_price, 0, quantity * unit_rate, False))
            continue
        if way == _TIERS:
            for units, tier_price, tier, parts in what(0, quantity):
                charged.append((name, units, tier_price, tier, parts, False))
            continue
        if way == _BONUS:
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
                allowed.append(RatedLine(name, quantity - rest, _NO_PRICE, 0, LineKind.ALLOWANCE))
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
            left = round_half_even(net * (_ALL - discount.basis_points), _ALL)
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


def _compile_price(price: Price, formulas: Mapping[str, Measure], price_book_id: str) -> CompiledPrice:
    rates = [micros for named in price.components for micros in _multiplied(named.component)]
    denominator = lcm(*(rate.denominator for rate in rates))
    key = f"{price_book_id}/{price.name}"
    components = tuple(
        _compile_component(named, denominator, formulas, f"{key}/{named.name}") for named in price.components
    )
    volumes, others = _compile_discounts(price.discounts)
    factors = None
    if price.outcome_factors:
        named_factors = {one.outcome: one.basis_points for one in price.outcome_factors}
        factors = {outcome: named_factors.get(outcome, _ALL) for outcome in FINAL_OUTCOMES}
        factors[Outcome.PENDING] = min(factors.values())
    period = (_limit(price.period_minimum), _limit(price.period_maximum))
    counters = [one.counter for one in components if one.counter]
    if volumes:
        counters.append(f"{key}:gross")
    if any(period):
        counters.append(f"{key}:charged")
    return CompiledPrice(
        selector=price.selector,
        components=components,
        denominator=denominator,
        deferral=price.deferral,
        name=price.name,
        key=key,
        meters={one.meter: measure_of(one.meter, formulas) for one in components if one.meter},
        steps=tuple(_step(one, is_covered=False) for one in components),
        covered_steps=tuple(_step(one, is_covered=True) for one in components),
        variables=_variables(components, formulas),
        factors=factors,
        volume_discounts=volumes,
        discounts=others,
        minimum=_limit(price.minimum),
        maximum=_limit(price.maximum),
        period_minimum=period[0],
        period_maximum=period[1],
        is_adjusted=bool(
            price.outcome_factors or price.discounts or price.minimum or price.maximum or any(period)
        ),
        counters=tuple(counters),
    )


def _step(component: CompiledComponent, *, is_covered: bool) -> _CompiledStep:
    way: int = _SPECIAL
    what: Any = component
    if component.condition is None and not component.counter and not (component.meter and is_covered):
        if component.is_bonus:
            way, what = _BONUS, component.outcome
        elif component.charge is not None:
            way, what = _TIERS, component.charge
        else:
            way, what = _PLAIN, None
    measure = None if component.measure is _one else component.measure
    return component.name, component.unit_price, measure, component.rate, way, what


def _variables(
    components: Sequence[CompiledComponent], formulas: Mapping[str, Measure]
) -> tuple[tuple[str, Callable[[Execution], Any]], ...]:
    """What the conditions of a price ask for, and how to tell it."""
    wanted = {name for one in components if one.condition for name in one.condition.variables}
    special: dict[str, Callable[[Execution], Any]] = {
        "outcome": lambda execution: _OUTCOME_NAMES[execution.outcome],
        "usage": lambda execution: quantities(execution.usage, formulas),
    }
    return tuple((name, special.get(name) or attrgetter(name)) for name in sorted(wanted))


def _compile_component(
    named: PriceComponent, denominator: int, formulas: Mapping[str, Measure], counter: str
) -> CompiledComponent:
    component = named.component
    outcome = None
    charge = close = models_measure = None
    is_counted = False
    meter = ""
    match component:
        case BaseFee(unit_price) | OutcomeBonus(_, unit_price):
            measure: Measure = _one
            if isinstance(component, OutcomeBonus):
                outcome = component.outcome
        case TokenRate(kind, unit_price):
            meter = "input_tokens" if kind is TokenKind.INPUT else "output_tokens"
            measure = measure_of(meter, formulas)
        case MeterRate():
            meter = component.meter
            unit_price = component.tiers[0].price
            measure = measure_of(meter, formulas)
            if component.models and meter in MODEL_METERS:
                models_measure = of_models(meter, component.models)
                measure = _uncovered(models_measure)
            is_counted = component.tier_scope is TierScope.BILLING_PERIOD
            charge, close = _compile_charge(component, denominator)
    micros = micros_of(unit_price)
    return CompiledComponent(
        name=named.name,
        unit_price=unit_price,
        measure=measure,
        # Not of packages, whose units have no price by themselves.
        rate=micros.numerator * (denominator // micros.denominator) if charge is None else 0,
        outcome=outcome,
        is_bonus=isinstance(component, OutcomeBonus),
        condition=compile_condition(named.condition) if named.condition else None,
        charge=charge,
        close=close,
        # What is charged at the end only has counters of its own: a version that charges the same component
        # when work is reported has charged its units then.
        counter=(counter if close is None else uncharged_counter(counter)) if is_counted else "",
        meter=meter,
        models_measure=models_measure,
        is_deferred=isinstance(component, OutcomeBonus) or bool(named.condition),
    )


def _compile_charge(rate: MeterRate, denominator: int) -> tuple[Charge | None, Charge | None]:
    """How units are charged, and how they are when a period is closed; neither if all just have one price."""
    if rate.tier_scope is TierScope.BILLING_PERIOD:
        if rate.tier_mode is TierMode.VOLUME:
            close = charge_close(rate, denominator)
            return close, close
        return charge_period(rate, denominator), None
    if rate.tier_mode is TierMode.FLAT and rate.tiers[0].fee is None:
        return None, None
    return charge_execution(rate, denominator), None


def _multiplied(component: Component) -> Sequence[Any]:
    """All that a component multiplies by, in micros."""
    return prices_of(component) if isinstance(component, MeterRate) else [micros_of(component.price)]


def _one(usage: Usage) -> int:
    return 1


def _uncovered(count: Callable[[Usage, int], int]) -> Measure:
    return lambda usage: count(usage, 0)


def _compile_discounts(
    discounts: Sequence[Discount],
) -> tuple[tuple[CompiledDiscount, ...], tuple[CompiledDiscount, ...]]:
    """Those by volume, and the others."""
    compiled = [
        CompiledDiscount(
            name=one.name,
            basis_points=one.basis_points or 0,
            amount_micros=0 if one.amount is None else round(micros_of(one.amount)),
            steps=tuple((round(micros_of(step.from_amount)), step.basis_points) for step in one.volume),
            unit_price=_NO_PRICE if one.amount is None else one.amount,
            start_time=one.start_time,
            end_time=one.end_time,
        )
        for one in discounts
    ]
    return tuple(one for one in compiled if one.steps), tuple(one for one in compiled if not one.steps)


def _limit(price: UnitPrice | None) -> Limit | None:
    return None if price is None else Limit(round(micros_of(price)), price)


def uncharged_counter(name: str) -> str:
    """The counter of units of a component that only the end of a billing period charges."""
    return f"{name}{UNCHARGED}"


def _allowance_counter(meter: str) -> str:
    return f"allowance:{meter}"


def _decimal(amount_micros: int) -> UnitPrice:
    return UnitPrice(format(Decimal(amount_micros).scaleb(-6), "f"))
