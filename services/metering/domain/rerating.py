"""Re-rating: what was charged, rated again, by the prices that were applied and by other ones.

Runs that are alike are rated once, where nothing but the run itself decides what it costs; of each such kind
it is counted how often it occurs. Prices with counters are rated run by run: with the counters and the terms
of a contract that the run was charged with; by other prices with the counters as these would have moved them.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from services.kit.errors import InvalidArgument
from services.metering.domain.billing_period import MONTH_IN_UTC
from services.metering.domain.compiled_price import NO_COMPILED_TERMS, CompiledPrice, CompiledTerms, Execution
from services.metering.domain.counter_shift import moves, moves_between, shift, shifted
from services.metering.domain.rating import (
    Counters,
    LineKind,
    Rated,
    RatedLine,
    close_period,
    counter_names,
    rate,
    rate_outcome,
    select,
)
from services.metering.domain.usage_record import Component

# Kinds of runs that are remembered: far more than there are of what repeats, far less than memory holds.
_MAX_KINDS: Final = 200_000
_NO_COUNTERS: Final[Counters] = {}


# When the billing period began that work of a customer for an organization in a currency falls into.
PeriodStart = Callable[[str, str, str, datetime], datetime]


def start_of_month(customer_id: str, organization_id: str, currency_code: str, at: datetime) -> datetime:
    """When it began without contracts: calendar months of UTC."""
    return MONTH_IN_UTC.period_containing(at).start


class PostedOutcome(NamedTuple):
    """What was charged for an outcome that was decided later: the execution with that outcome.

    `lines` are empty if it added nothing: what cancels out is no charge, and has no lines.
    `opening` are the counters that this was rated with; None for those of the run.
    """

    execution: Execution
    amount_micros: int
    lines: str
    opening: Counters | None = None


class PostedRun(NamedTuple):
    """A run as it was charged. `kind` is equal for runs that are alike: all that a price can depend on but
    the time. `lines` are as stored; `terms` are what the contract added; `opening` and `period_start` are
    None for a price without counters.
    """

    customer_id: str
    workflow_id: str
    ordinal: int
    organization_id: str
    currency_code: str
    price_version_id: str
    occur_time: datetime
    kind: Hashable
    execution: Callable[[], Execution]
    amount_micros: int
    lines: str
    opening: Counters | None = None
    outcome: PostedOutcome | None = None
    terms: CompiledTerms = NO_COMPILED_TERMS
    period_start: datetime | None = None


class Mismatch(NamedTuple):
    """A charge that the applied prices do not reproduce; `rerated_micros` is None if they do not rate it."""

    run: PostedRun
    component: Component
    charged_micros: int
    rerated_micros: int | None


@dataclass(slots=True)
class Difference:
    """What a customer was charged, and what that comes to by other prices; `unpriced_run_count` more runs are
    rated by none of these.
    """

    run_count: int = 0
    charged_micros: int = 0
    rerated_micros: int = 0
    unpriced_run_count: int = 0
    closing_micros: int = 0


class LineName(NamedTuple):
    """Lines of charges that are added up."""

    currency_code: str
    component_name: str
    kind: LineKind


class _PeriodKey(NamedTuple):
    """Whose counters, and of which billing period."""

    customer_id: str
    organization_id: str
    currency_code: str
    start: datetime


@dataclass(slots=True)
class _Period:
    """A billing period by the other prices: where its counters stood at last, by how much they would be off,
    and what the contract added then.
    """

    stood: dict[str, int] = field(default_factory=dict)
    shifts: dict[str, int] = field(default_factory=dict)
    terms: CompiledTerms = NO_COMPILED_TERMS


class _Proof(NamedTuple):
    """What a rating was made with, and what it came to; `rated` is None if it could not be made."""

    opening: Counters
    rated: Rated | None


@dataclass(slots=True)
class _Kind:
    """Runs that are alike: what the prices make of one, and how many there are. `text` is how its lines are
    stored.
    """

    currency_code: str
    applied: Rated | None
    other: Rated | None
    text: str
    count: int = 0
    reproduced: int = 0


class Rerating:
    """Rates runs again. `applied` has the prices of every version that was applied; `other` is None where
    only these are to be proved.
    """

    def __init__(
        self,
        applied: Mapping[str, Sequence[CompiledPrice]],
        other: Sequence[CompiledPrice] | None,
        parse_lines: Callable[[str], Sequence[RatedLine]],
        render_lines: Callable[[Sequence[RatedLine]], str],
        *,
        period_start: PeriodStart = start_of_month,
    ) -> None:
        self._applied = applied
        self._other = other
        self._parse_lines = parse_lines
        self._render_lines = render_lines
        self._period_start = period_start
        # When discounts begin and end: before and after, runs are not alike.
        self._cuts = _cuts([*applied.values(), other or ()])
        self._kinds: dict[Hashable, _Kind | None] = {}
        self._periods: defaultdict[_PeriodKey, _Period] = defaultdict(_Period)
        self._lines: defaultdict[LineName, list[int]] = defaultdict(lambda: [0, 0])
        self.customers: defaultdict[tuple[str, str], Difference] = defaultdict(Difference)
        self.reproduced_charge_count = 0
        self.mismatched_charge_count = 0

    @property
    def needs_order(self) -> bool:
        """Whether runs must come in the order in which they were reported, contracts aside."""
        return any(counter_names(price) for price in self._other or ())

    def add(self, run: PostedRun) -> Sequence[Mismatch]:
        """Rate a run again; the charges of it that the applied prices do not reproduce.

        If the other prices have counters, runs must come in the order in which they were reported.
        """
        if run.outcome is not None or run.opening is not None:
            return self._add_apart(run)
        key = (
            run.kind,
            run.price_version_id,
            run.currency_code,
            bisect_right(self._cuts, run.occur_time) if self._cuts else 0,
            # Part of the kind is what a contract adds, but not when.
            None if run.terms is NO_COMPILED_TERMS else _discounts_at(run.terms, run.occur_time),
        )
        try:
            kind = self._kinds[key]
        except KeyError:
            kind = self._learn(key, run)
        if kind is None:
            return self._add_apart(run)
        kind.count += 1
        amount = run.amount_micros
        customer = self.customers[run.customer_id, run.currency_code]
        if self._other is None:
            customer.run_count += 1
            customer.charged_micros += amount
        elif kind.other is None:
            customer.unpriced_run_count += 1
        else:
            customer.run_count += 1
            customer.charged_micros += amount
            customer.rerated_micros += kind.other.total_micros
        applied = kind.applied
        if applied is not None and amount == applied.total_micros:
            if kind.text == run.lines:
                kind.reproduced += 1
                self.reproduced_charge_count += 1
                return ()
            lines = tuple(self._parse_lines(run.lines))
            if lines == applied.lines:
                # The same, written another way: so it will be again.
                kind.text = run.lines
                kind.reproduced += 1
                self.reproduced_charge_count += 1
                return ()
        else:
            lines = tuple(self._parse_lines(run.lines))
        if self._other is None or kind.other is not None:
            self._add_lines(run.currency_code, lines, 0, 1)
        return [self._mismatch(run, Component.BASE, amount, applied)]

    def lines(self) -> Mapping[LineName, tuple[int, int]]:
        """What lines of the same name came to: (charged, by the other prices)."""
        self._forget()
        return {name: (charged, rerated) for name, (charged, rerated) in self._lines.items()}

    def close(self) -> None:
        """Close the billing periods of the other prices."""
        for key, period in self._periods.items():
            for price in self._other or ():
                if names := counter_names(price, period.terms):
                    counters = {
                        name: value
                        for name, value in shifted(names, period.stood, period.shifts).items()
                        # A counter that nothing moved is not there: of it nothing is owed.
                        if name in period.stood or name in period.shifts
                    }
                    closed = close_period(price, period.terms, counters)
                    customer = self.customers[key.customer_id, key.currency_code]
                    customer.closing_micros += closed.total_micros

    def _learn(self, key: Hashable, run: PostedRun) -> _Kind | None:
        """What the prices make of runs of a new kind; None if they are not alike after all."""
        if len(self._kinds) >= _MAX_KINDS:
            self._forget()
        execution = run.execution()
        prices = [self._price(run, execution)]
        if self._other is not None:
            prices.append(select(self._other, execution.action_type, execution.agent_id))
        kind = None
        if not any(price is not None and counter_names(price, run.terms) for price in prices):
            rated = [_rate(price, execution, run.terms, _NO_COUNTERS) for price in prices]
            kind = _Kind(
                run.currency_code,
                rated[0],
                rated[1] if self._other is not None else None,
                "" if rated[0] is None else self._render_lines(rated[0].lines),
            )
        self._kinds[key] = kind
        return kind

    def _forget(self) -> None:
        """Add up the lines of the kinds that are known, and forget these."""
        for kind in self._kinds.values():
            if kind is None:
                continue
            if kind.other is not None:
                self._add_lines(kind.currency_code, kind.other.lines, 1, kind.count)
            if kind.applied is not None and (self._other is None or kind.other is not None):
                self._add_lines(kind.currency_code, kind.applied.lines, 0, kind.reproduced)
        self._kinds.clear()

    def _add_apart(self, run: PostedRun) -> Sequence[Mismatch]:
        """A run that is like no other: its outcome was decided later, or counters matter."""
        execution, outcome = run.execution(), run.outcome
        applied = self._price(run, execution)
        opening = _NO_COUNTERS if run.opening is None else run.opening
        base = _Proof(opening, _rate(applied, execution, run.terms, opening))
        mismatches = self._prove(run, Component.BASE, base.rated, run.amount_micros, run.lines)
        charged, texts = run.amount_micros, [run.lines]
        later: _Proof | None = None
        if outcome is not None:
            opening = opening if outcome.opening is None else outcome.opening
            later = _Proof(opening, _rate(applied, outcome.execution, run.terms, opening, rate_outcome))
            mismatches += self._prove(
                run, Component.OUTCOME, later.rated, outcome.amount_micros, outcome.lines
            )
            charged += outcome.amount_micros
            if outcome.lines:
                texts.append(outcome.lines)
        customer = self.customers[run.customer_id, run.currency_code]
        if self._other is not None:
            rerated = self._rate_by_other(run, execution, applied, base, later)
            if rerated is None:
                customer.unpriced_run_count += 1
                return mismatches
            customer.rerated_micros += sum(one.total_micros for one in rerated)
            for number, one in enumerate(rerated):
                if number == 0 or one.total_micros:
                    self._add_lines(run.currency_code, one.lines, 1, 1)
        customer.run_count += 1
        customer.charged_micros += charged
        for text in texts:
            self._add_lines(run.currency_code, self._parse_lines(text), 0, 1)
        return mismatches

    def _rate_by_other(
        self,
        run: PostedRun,
        execution: Execution,
        applied: CompiledPrice | None,
        base: _Proof,
        later: _Proof | None,
    ) -> list[Rated] | None:
        """What the other prices make of a run: of what was known when it ended, and of its outcome."""
        other = select(self._other or (), execution.action_type, execution.agent_id)
        terms = run.terms
        period = self._period_of(run)
        period.terms = terms
        # As they are before the run: its outcome keeps the place of the run.
        shifts = dict(period.shifts)
        names = () if other is None else counter_names(other, terms)
        opening = shifted(names, base.opening, shifts)
        rated = [_rate(other, execution, terms, opening)]
        _shift(period, opening, rated[0], base)
        if later is not None and run.outcome is not None:
            decided = shifted(names, later.opening, shifts)
            rated.append(_rate(other, run.outcome.execution, terms, decided, rate_outcome))
            if names or later.opening:
                # Of what it moved, the pending run had moved some.
                before = _rate(other, execution, terms, decided)
                did = _rate(applied, execution, terms, later.opening)
                _shift(period, decided, rated[1], later, before, did)
        found = [one for one in rated if one is not None]
        return found if len(found) == len(rated) else None

    def _period_of(self, run: PostedRun) -> _Period:
        start = run.period_start
        if start is None:
            start = self._period_start(
                run.customer_id, run.organization_id, run.currency_code, run.occur_time
            )
        return self._periods[_PeriodKey(run.customer_id, run.organization_id, run.currency_code, start)]

    def _price(self, run: PostedRun, execution: Execution) -> CompiledPrice | None:
        prices = self._applied.get(run.price_version_id, ())
        return select(prices, execution.action_type, execution.agent_id)

    def _prove(
        self, run: PostedRun, component: Component, rated: Rated | None, amount_micros: int, text: str
    ) -> list[Mismatch]:
        if (
            rated is not None
            and rated.total_micros == amount_micros
            and (not text or rated.lines == tuple(self._parse_lines(text)))
        ):
            self.reproduced_charge_count += 1
            return []
        return [self._mismatch(run, component, amount_micros, rated)]

    def _mismatch(
        self, run: PostedRun, component: Component, amount_micros: int, rated: Rated | None
    ) -> Mismatch:
        self.mismatched_charge_count += 1
        return Mismatch(run, component, amount_micros, None if rated is None else rated.total_micros)

    def _add_lines(self, currency_code: str, lines: Iterable[RatedLine], side: int, count: int) -> None:
        for line in lines:
            name = LineName(currency_code, line.component_name, line.kind)
            self._lines[name][side] += line.amount_micros * count


def _rate(
    price: CompiledPrice | None,
    execution: Execution,
    terms: CompiledTerms,
    opening: Counters,
    by: Callable[..., Rated] = rate,
) -> Rated | None:
    """What a price makes of an execution; None without a price, or if it costs more than an amount may be."""
    if price is None:
        return None
    try:
        return by(price, execution, terms, opening)
    except InvalidArgument:
        return None


def _shift(
    period: _Period,
    opening: Counters,
    rated: Rated | None,
    proof: _Proof,
    rated_before: Rated | None = None,
    did_before: Rated | None = None,
) -> None:
    """Shift the counters of a period by what one rating moved more than the other one, which was charged."""
    would = {} if rated is None else _moves(opening, rated, rated_before)
    did = {} if proof.rated is None else _moves(proof.opening, proof.rated, did_before)
    shift(period.shifts, would, did)
    for name, value in proof.opening.items():
        period.stood[name] = max(period.stood.get(name, 0), value + did.get(name, 0))


def _moves(opening: Counters, rated: Rated, before: Rated | None) -> dict[str, int]:
    if before is None:
        return moves(opening, rated.closing)
    return moves_between(opening, before.closing, rated.closing)


def _discounts_at(terms: CompiledTerms, moment: datetime) -> tuple[bool, ...]:
    """Which discounts of a contract apply then."""
    return tuple(one.applies(moment) for one in terms.volume_discounts + terms.discounts)


def _cuts(price_lists: Iterable[Sequence[CompiledPrice]]) -> list[datetime]:
    """When discounts begin and end."""
    return sorted(
        {
            moment
            for prices in price_lists
            for price in prices
            for discount in price.discounts + price.volume_discounts
            for moment in (discount.start_time, discount.end_time)
            if moment is not None
        }
    )
