"""What prices and terms compile to, once: integers, so that rating only multiplies and adds.

The price of one unit of every component becomes an integer number of parts, so many of which (`denominator`)
make a micro of the currency. What the components come to is then exact, whatever decimals and unit sizes the
price names.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from math import lcm
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

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

_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})
NO_PRICE: Final = UnitPrice("0")
# What the names of counters end with whose units only the end of a billing period charges.
UNCHARGED: Final = ":uncharged"
ALL_BASIS_POINTS: Final = 10_000
_OUTCOME_NAMES: Final = {outcome: outcome.value for outcome in Outcome}


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
        return taken // ALL_BASIS_POINTS


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
CompiledStep = tuple[str, UnitPrice, Measure | None, int, int, Any]
# All units at one price; in tiers of the execution, which are needed; once if the outcome is the one that is
# needed; and whatever else the component, which is needed, says.
PLAIN, TIERS, BONUS, SPECIAL = range(4)


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
    steps: tuple[CompiledStep, ...]
    # The same where an allowance may cover some of the units of a meter.
    covered_steps: tuple[CompiledStep, ...]
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
        factors = {outcome: named_factors.get(outcome, ALL_BASIS_POINTS) for outcome in FINAL_OUTCOMES}
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


def _step(component: CompiledComponent, *, is_covered: bool) -> CompiledStep:
    way: int = SPECIAL
    what: Any = component
    if component.condition is None and not component.counter and not (component.meter and is_covered):
        if component.is_bonus:
            way, what = BONUS, component.outcome
        elif component.charge is not None:
            way, what = TIERS, component.charge
        else:
            way, what = PLAIN, None
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
            unit_price=NO_PRICE if one.amount is None else one.amount,
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
