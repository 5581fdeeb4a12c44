"""Simulations: what price lists make of the same drawn runs.

A price without counters makes the same of runs that are alike, so each profile is rated once and its charge
counted. With counters every run is rated where it stands: customer by customer, in the order of time.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from typing import Any, Final, NamedTuple

from services.kit.errors import InvalidArgument
from services.kit.model_costs import Catalogue
from services.kit.money import MICROS_PER_UNIT, round_half_even
from services.metering.domain.compiled_price import (
    NO_COMPILED_TERMS,
    CompiledPrice,
    CompiledTerms,
    ContractTerms,
    Execution,
    compile_price_list,
    compile_terms,
)
from services.metering.domain.price_book import PeriodUnit, Plan, PriceList, UnitPrice
from services.metering.domain.rating import (
    LineKind,
    Rated,
    RatedLine,
    close_period,
    counter_names,
    rate,
    select,
)
from services.metering.domain.usage_event import Outcome
from services.metering.domain.workload import OUTCOMES, Drawn, Profile, Workload

_MAX_SEATS: Final = 1_000_000
TOP_CUSTOMERS: Final = 10
_PERCENTILES: Final = (5, 25, 50, 75, 95, 99)
_MONTHS: Final = {PeriodUnit.MONTH: 1, PeriodUnit.QUARTER: 3, PeriodUnit.YEAR: 12}


@dataclass(frozen=True, slots=True)
class Work:
    """What all runs of a workload have in common."""

    action_type: str = "run"
    agent_id: str = ""
    agent_version: str = ""
    tool_name: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Book:
    """A price list that takes part, with the plan that every customer has."""

    prices: PriceList
    plan: Plan | None = None
    seat_count: int = 0


class Spread(NamedTuple):
    """How amounts are spread, in micros. A percentile is the least amount that so many are not above."""

    least: int
    p5: int
    p25: int
    p50: int
    p75: int
    p95: int
    p99: int
    most: int
    mean: int


class LineKey(NamedTuple):
    """Lines of charges that are added up."""

    price_name: str
    component_name: str
    kind: LineKind


@dataclass(slots=True)
class LineSum:
    """What lines of charges come to."""

    amount_micros: int = 0
    quantity: int = 0
    run_count: int = 0


class CustomerSum(NamedTuple):
    """What a customer comes to; numbers count from 1."""

    number: int
    run_count: int
    charge_micros: int


class OutcomeSum(NamedTuple):
    """What the runs that ended so come to."""

    outcome: Outcome
    run_count: int
    charge_micros: int


class Revenue(NamedTuple):
    """What a book makes of the runs. Without a price for them everything else is nothing."""

    total_micros: int
    period_micros: int
    runs: Spread
    customers: Spread
    lines: Mapping[LineKey, LineSum]
    top: Sequence[CustomerSum]
    outcomes: Sequence[OutcomeSum]
    unpriced_run_count: int


class ModelCost(NamedTuple):
    """What models cost in micros of USD, without the runs of which it is not known."""

    micros: int
    unpriced_run_count: int


def find_plan(prices: PriceList, name: str, seat_count: int, path: str) -> Plan | None:
    """The plan of this name; None for no name. Raises InvalidArgument by `path` for what is none."""
    if not 0 <= seat_count <= _MAX_SEATS:
        raise InvalidArgument.of(f"{path}.seat_count", f"must be 0 to {_MAX_SEATS}")
    if not name:
        return None
    for plan in prices.plans:
        if plan.name == name:
            return plan
    raise InvalidArgument.of(f"{path}.plan", f"the price list has no plan {name[:64]!r}")


def next_period(moment: datetime, unit: PeriodUnit) -> datetime:
    """When the calendar period (in UTC) that follows this moment begins."""
    length = _MONTHS[unit]
    months = (moment.year * 12 + moment.month - 1) // length * length + length
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


def periods(start: datetime, end: datetime, unit: PeriodUnit) -> list[tuple[datetime, datetime]]:
    """The calendar periods (in UTC) that a span touches, cut to it."""
    found = []
    while start < end:
        following = next_period(start, unit)
        found.append((start, min(following, end)))
        start = following
    return found


def simulate(book: Book, workload: Workload, work: Work, drawn: Drawn) -> Revenue:
    """What a book makes of drawn runs. Raises InvalidArgument if a run costs more than an amount may be."""
    price = select(compile_price_list(book.prices), work.action_type, work.agent_id)
    tally = _Tally(workload.customer_count)
    unit = PeriodUnit.MONTH if book.plan is None else book.plan.period_unit
    spans = periods(workload.start_time, workload.end_time, unit)
    if price is None:
        unpriced = len(drawn.runs)
    else:
        unpriced = 0
        terms = NO_COMPILED_TERMS if book.plan is None else compile_terms(_terms(book.plan, book.seat_count))
        times = _Times(workload, price, [start for start, _ in spans])
        if counter_names(price, terms):
            _rate_in_order(price, terms, work, drawn, times, tally)
        else:
            _rate_alike(price, terms, work, drawn, times, tally)
    if book.plan is not None:
        tally.add_fees(book.plan, book.seat_count, len(spans))
    return tally.revenue(drawn, unpriced)


def model_cost(catalogue: Catalogue, workload: Workload, drawn: Drawn) -> ModelCost:
    """What the models of the runs cost by list price, at the start of the period."""
    total, unpriced = Fraction(0), 0
    for profile, count in zip(drawn.profiles, drawn.counts(), strict=True):
        if not count:
            continue
        cost = _cost_of_run(catalogue, profile, workload.start_time)
        if cost is None:
            unpriced += count
        else:
            total += cost * count
    exact = total * MICROS_PER_UNIT
    return ModelCost(round_half_even(exact.numerator, exact.denominator), unpriced)


def spread(amounts: Mapping[int, int]) -> Spread:
    """How amounts are spread, of each how often it occurs."""
    count = sum(amounts.values())
    if not count:
        return Spread(0, 0, 0, 0, 0, 0, 0, 0, 0)
    ordered = sorted(amounts.items())
    found: list[int] = []
    seen, place = 0, iter(ordered)
    amount = ordered[0][0]
    for percent in _PERCENTILES:
        rank = -(-percent * count // 100)
        while seen < rank:
            amount, times = next(place)
            seen += times
        found.append(amount)
    mean = round_half_even(sum(amount * times for amount, times in ordered), count)
    p5, p25, p50, p75, p95, p99 = found
    return Spread(ordered[0][0], p5, p25, p50, p75, p95, p99, ordered[-1][0], mean)


def _terms(plan: Plan, seat_count: int) -> ContractTerms:
    allowances = {one.meter: one.quantity + one.quantity_per_seat * seat_count for one in plan.allowances}
    return ContractTerms(allowances=allowances)


class _Times:
    """When runs happen, as far as it matters: the period, and what part of it between the times at which a
    discount begins or ends. Runs of one part are alike.
    """

    def __init__(self, workload: Workload, price: CompiledPrice, starts: Sequence[datetime]) -> None:
        cuts = {
            cut
            for discount in price.discounts + price.volume_discounts
            for cut in (discount.start_time, discount.end_time)
            if cut is not None and workload.start_time < cut < workload.end_time
        }
        self._period_starts = starts
        self._starts = sorted({*starts, *cuts})
        self._count = workload.run_count
        self._start, self._length = workload.start_time, workload.end_time - workload.start_time

    def parts(self) -> Iterator[tuple[datetime, int, int]]:
        """Each part's time, its first run, and the one behind its last."""
        bounds = [self._first_run(start) for start in self._starts] + [self._count]
        return zip(self._starts, bounds, bounds[1:], strict=False)

    def by_period(self) -> Iterator[list[tuple[datetime, int, int]]]:
        """The parts of each period."""
        for _, parts in groupby(self.parts(), key=lambda part: bisect_right(self._period_starts, part[0])):
            yield list(parts)

    def _first_run(self, moment: datetime) -> int:
        # Run i happens at start + length * i / count.
        return -((self._start - moment) * self._count // self._length)


class _Tally:
    """What is added up while runs are rated."""

    def __init__(self, customer_count: int) -> None:
        self.charges: Counter[int] = Counter()
        self.customers = [0] * customer_count
        self.outcomes: defaultdict[Outcome, int] = defaultdict(int)
        self.lines: dict[LineKey, LineSum] = {}
        self.period_micros = 0

    def add_lines(self, price_name: str, lines: Iterable[RatedLine], count: int) -> None:
        """Lines that so many runs have."""
        for line in lines:
            key = LineKey(price_name, line.component_name, line.kind)
            found = self.lines.get(key)
            if found is None:
                found = self.lines[key] = LineSum()
            found.amount_micros += line.amount_micros * count
            found.quantity += line.quantity * count
            found.run_count += count

    def close(self, customer: int, price_name: str, rated: Rated) -> None:
        """What closing a period adds for a customer."""
        self.customers[customer] += rated.total_micros
        self.period_micros += rated.total_micros
        for line in rated.lines:
            key = LineKey(price_name, line.component_name, line.kind)
            found = self.lines.setdefault(key, LineSum())
            found.amount_micros += line.amount_micros
            found.quantity += line.quantity

    def add_fees(self, plan: Plan, seat_count: int, period_count: int) -> None:
        """The fees of a plan, which every customer pays for every period."""
        times = period_count * len(self.customers)
        for name, price, quantity in (("fee", plan.fee, 1), ("seats", plan.seat_fee, seat_count)):
            if price is None or not quantity:
                continue
            amount = _micros(price, quantity)
            key = LineKey(plan.name, name, LineKind.SUBSCRIPTION)
            self.lines[key] = LineSum(amount * times, quantity * times)
            self.period_micros += amount * times
            self.customers = [charge + amount * period_count for charge in self.customers]

    def revenue(self, drawn: Drawn, unpriced: int) -> Revenue:
        """All of it."""
        runs = Counter(drawn.customers)
        order = sorted(range(len(self.customers)), key=lambda number: (-self.customers[number], number))
        ended: Counter[Outcome] = Counter()
        for profile, count in zip(drawn.profiles, drawn.counts(), strict=True):
            ended[profile.outcome] += count
        return Revenue(
            total_micros=sum(self.customers),
            period_micros=self.period_micros,
            runs=spread(self.charges),
            customers=spread(Counter(self.customers)),
            lines=self.lines,
            top=[
                CustomerSum(number + 1, runs[number], self.customers[number])
                for number in order[:TOP_CUSTOMERS]
            ],
            outcomes=[
                OutcomeSum(outcome, ended[outcome], self.outcomes[outcome])
                for outcome in OUTCOMES
                if ended[outcome]
            ],
            unpriced_run_count=unpriced,
        )


def _execution(profile: Profile, work: Work, moment: datetime) -> Execution:
    return Execution(
        usage=profile.usage,
        outcome=profile.outcome,
        occur_time=moment,
        result=work.result,
        action_type=work.action_type,
        agent_id=work.agent_id,
        agent_version=work.agent_version,
        tool_name=work.tool_name,
    )


def _rate_alike(
    price: CompiledPrice, terms: CompiledTerms, work: Work, drawn: Drawn, times: _Times, tally: _Tally
) -> None:
    customers = tally.customers
    for moment, first, end in times.parts():
        runs = drawn.runs[first:end]
        # By profile; of those that nobody runs here nothing is read.
        charges = [0] * len(drawn.profiles)
        for number, count in Counter(runs).items():
            profile = drawn.profiles[number]
            rated = rate(price, _execution(profile, work, moment), terms)
            charges[number] = rated.total_micros
            tally.charges[rated.total_micros] += count
            tally.outcomes[profile.outcome] += rated.total_micros * count
            tally.add_lines(price.name, rated.lines, count)
        for customer, number in zip(drawn.customers[first:end], runs, strict=True):
            customers[customer] += charges[number]


def _rate_in_order(
    price: CompiledPrice, terms: CompiledTerms, work: Work, drawn: Drawn, times: _Times, tally: _Tally
) -> None:
    customers = tally.customers
    for parts in times.by_period():
        # Of each customer where the counters stand, from nothing in every period.
        counters: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for moment, first, end in parts:
            executions = [_execution(profile, work, moment) for profile in drawn.profiles]
            for customer, number in zip(drawn.customers[first:end], drawn.runs[first:end], strict=True):
                opening = counters[customer]
                rated = rate(price, executions[number], terms, opening)
                opening.update(rated.closing)
                total = rated.total_micros
                customers[customer] += total
                tally.charges[total] += 1
                tally.outcomes[drawn.profiles[number].outcome] += total
                tally.add_lines(price.name, rated.lines, 1)
        for customer in sorted(counters):
            tally.close(customer, price.name, close_period(price, terms, counters[customer]))


def _cost_of_run(catalogue: Catalogue, profile: Profile, moment: datetime) -> Fraction | None:
    """What a run's requests cost, all of them about as large: a price may depend on the size of one."""
    usage = profile.usage
    calls = max(1, usage.inference_calls)
    inputs, more_inputs = divmod(usage.input_tokens, calls)
    outputs, more_outputs = divmod(usage.output_tokens, calls)
    total = Fraction(0)
    # Requests of three sizes at most: with one token more of both, of one, and of none.
    fewer, further = sorted((more_inputs, more_outputs))
    for count, has_more_inputs, has_more_outputs in (
        (fewer, True, True),
        (further - fewer, more_inputs > more_outputs, more_outputs > more_inputs),
        (calls - further, False, False),
    ):
        if not count:
            continue
        cost = catalogue.cost(usage.model, inputs + has_more_inputs, outputs + has_more_outputs, moment)
        if cost is None:
            return None
        total += Fraction(cost) * count
    return total


def _micros(price: UnitPrice, quantity: int) -> int:
    exact = Fraction(Decimal(price.amount)) * quantity * MICROS_PER_UNIT / price.per_units
    return round_half_even(exact.numerator, exact.denominator)
