"""Shadows: a candidate version rates live traffic beside what is charged, and charges nothing."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from services.kit.errors import InvalidArgument
from services.metering.domain.compiled_price import NO_COMPILED_TERMS, CompiledPrice, CompiledTerms, Execution
from services.metering.domain.counter_shift import moves, moves_between, shift, shifted
from services.metering.domain.price_book import PriceList
from services.metering.domain.price_counter import MAX_COUNTER, counts_charges
from services.metering.domain.rating import Counters, Rated, counter_names, rate, rate_outcome, select
from services.metering.domain.usage_event import EventKey, Outcome

_NOTHING: Final[Counters] = {}

# An owner has at most so many that run: each looks at everything that happens.
MAX_RUNNING = 10


@dataclass(frozen=True, slots=True)
class Shadow:
    """A candidate, as it was when the shadow began, and how far the shadow is in the usage feed.

    `owner_id` is an organization, whose agents' work is rated, or PLATFORM_OWNER for everybody's. It runs
    until it has a stop time.
    """

    shadow_id: str
    owner_id: str
    price_version_id: str
    price_book_id: str
    currency_code: str
    price_list: PriceList
    api_key_id: str
    create_time: datetime
    stop_time: datetime | None
    log_id: str
    position: int


class DivergenceKey(NamedTuple):
    """Charges that are added up."""

    customer_id: str
    agent_id: str
    agent_version: str
    organization_id: str


@dataclass(slots=True)
class Divergence:
    """What was charged, and what the candidate makes of it; the charges that it has no price for are only
    counted.
    """

    charge_count: int = 0
    unpriced_charge_count: int = 0
    differing_charge_count: int = 0
    charged_micros: int = 0
    shadowed_micros: int = 0


class CounterKey(NamedTuple):
    """Whose counters, and of which billing period."""

    customer_id: str
    organization_id: str
    period_start: datetime


class Happened(NamedTuple):
    """What stands at a position of the feed: an event that was recorded, or, with `is_decision`, an outcome
    that was decided. `charged_micros` is what that charged; `terms` are what a contract added to the event,
    and `period_start` is when its billing period began.

    `opening` and `closing` are the counters that the event was charged with, and those of them that it moved;
    `decided_opening` and `decided_closing` those of the decision. Nothing where no price depended on any.
    """

    key: EventKey
    organization_id: str
    execution: Execution
    charged_micros: int
    is_decision: bool
    period_start: datetime
    terms: CompiledTerms = NO_COMPILED_TERMS
    opening: Counters = _NOTHING
    closing: Counters = _NOTHING
    decided_opening: Counters | None = None
    decided_closing: Counters = _NOTHING

    @property
    def counters(self) -> CounterKey:
        return CounterKey(self.key.customer_id, self.organization_id, self.period_start)


class Shadowing:
    """Rates what happened by a candidate. `shifts` say by how much its counters are off from those that were
    charged with, and `openings` what pending events were rated with; both are moved, and say what to store.
    """

    def __init__(
        self,
        prices: Sequence[CompiledPrice],
        shifts: dict[CounterKey, dict[str, int]],
        openings: dict[EventKey, Counters],
    ) -> None:
        self._prices = prices
        self.shifts = shifts
        self.openings = openings
        self.closed: set[EventKey] = set()
        self.opened: dict[EventKey, Counters] = {}
        self.moved: set[CounterKey] = set()
        self.divergences: defaultdict[DivergenceKey, Divergence] = defaultdict(Divergence)

    def add(self, one: Happened) -> None:
        """Rate one thing that happened."""
        execution = one.execution
        found = self.divergences[
            DivergenceKey(
                one.key.customer_id, execution.agent_id, execution.agent_version, one.organization_id
            )
        ]
        price = select(self._prices, execution.action_type, execution.agent_id)
        shadowed = None if price is None else self._rate(price, one)
        if one.is_decision and not one.charged_micros and not shadowed:
            # Adds nothing either way: it is no charge.
            return
        found.charge_count += 1
        if shadowed is None:
            found.unpriced_charge_count += 1
            return
        found.differing_charge_count += shadowed != one.charged_micros
        found.charged_micros += one.charged_micros
        found.shadowed_micros += shadowed

    def _rate(self, price: CompiledPrice, one: Happened) -> int | None:
        """What the candidate makes of it; None if that is more than an amount may be."""
        try:
            return self._rate_decision(price, one) if one.is_decision else self._rate_event(price, one)
        except InvalidArgument:
            # It would have been refused.
            return None

    def _rate_event(self, price: CompiledPrice, one: Happened) -> int:
        names = counter_names(price, one.terms)
        opening = shifted(names, one.opening, self._shifts_of(one)) if names else _NOTHING
        if names and one.execution.outcome is Outcome.PENDING:
            self.openings[one.key] = self.opened[one.key] = opening
        rated = _countable(rate(price, one.execution, one.terms, opening))
        self._shift(one, moves(opening, rated.closing), moves(one.opening, one.closing))
        return rated.total_micros

    def _rate_decision(self, price: CompiledPrice, one: Happened) -> int:
        """As domain/outcome.py decides: the work keeps its place, but of what is charged at most in a period
        there is what others have left.
        """
        pending = one.execution._replace(outcome=Outcome.PENDING)
        opening = dict(self.openings.pop(one.key, _NOTHING))
        self.closed.add(one.key)
        shifts = self._shifts_of(one)
        stood = one.opening if one.decided_opening is None else one.decided_opening
        own, did = (
            moves(opening, rate(price, pending, one.terms, opening).closing),
            moves(one.opening, one.closing),
        )
        for name in opening:
            if counts_charges(name):
                # Without what the event itself has charged, which the shift of now has in it.
                own_part = own.get(name, 0) - did.get(name, 0)
                opening[name] = max(0, stood.get(name, 0) + shifts.get(name, 0) - own_part)
        base = rate(price, pending, one.terms, opening)
        rated = _countable(rate_outcome(price, one.execution, one.terms, opening))
        would = moves_between(opening, base.closing, rated.closing)
        decided = {
            name: value - stood[name] - did.get(name, 0) if counts_charges(name) else would.get(name, 0)
            # Where others stood by then is stored of charges alone: the rest moved as the work says.
            for name, value in one.decided_closing.items()
            if name in stood
        }
        self._shift(one, would, decided)
        return rated.total_micros

    def _shifts_of(self, one: Happened) -> dict[str, int]:
        return self.shifts.setdefault(one.counters, {})

    def _shift(self, one: Happened, would: Counters, did: Counters) -> None:
        if would or did:
            shift(self._shifts_of(one), would, did)
            self.moved.add(one.counters)


def _countable(rated: Rated) -> Rated:
    """Raise InvalidArgument if a counter would be more than can be stored, as charging does."""
    if max(rated.closing.values(), default=0) > MAX_COUNTER:
        raise InvalidArgument.of("usage", "is more than can be counted in a billing period")
    return rated
