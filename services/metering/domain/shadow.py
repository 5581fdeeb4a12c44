"""Shadows: a candidate version rates live traffic beside what is charged, and charges nothing."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from services.kit.errors import InvalidArgument
from services.metering.domain.price_book import PriceList
from services.metering.domain.rating import (
    NO_COMPILED_TERMS,
    CompiledPrice,
    CompiledTerms,
    Counters,
    Execution,
    counter_names,
    rate,
    rate_outcome,
    select,
)
from services.metering.domain.usage_event import EventKey, Outcome

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
    that was decided. `charged_micros` is what that charged; `terms` and `period_start` are what was
    agreed with the customer then, and when the billing period began.
    """

    key: EventKey
    organization_id: str
    execution: Execution
    charged_micros: int
    is_decision: bool
    period_start: datetime
    terms: CompiledTerms = NO_COMPILED_TERMS

    @property
    def counters(self) -> CounterKey:
        return CounterKey(self.key.customer_id, self.organization_id, self.period_start)


class Shadowing:
    """Rates what happened by a candidate. `counters` and `openings` are what is stored of what happened; both
    are moved, and say what to store.
    """

    def __init__(
        self,
        prices: Sequence[CompiledPrice],
        counters: dict[CounterKey, dict[str, int]],
        openings: dict[EventKey, Counters],
    ) -> None:
        self._prices = prices
        self.counters = counters
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
        is_counted = bool(counter_names(price, one.terms))
        counters = self.counters.setdefault(one.counters, {}) if is_counted else {}
        try:
            if one.is_decision:
                opening = self.openings.pop(one.key, counters)
                self.closed.add(one.key)
                rated = rate_outcome(price, one.execution, one.terms, opening)
            else:
                if one.execution.outcome is Outcome.PENDING and is_counted:
                    self.openings[one.key] = self.opened[one.key] = dict(counters)
                rated = rate(price, one.execution, one.terms, counters)
        except InvalidArgument:
            # More than an amount may be: it would have been refused.
            return None
        if rated.closing:
            if one.is_decision:
                # Absolute values, of where the event stood: what the decision adds moves what stands now.
                pending = one.execution._replace(outcome=Outcome.PENDING)
                base = rate(price, pending, one.terms, opening)
                for name, value in rated.closing.items():
                    before = base.closing.get(name, opening.get(name, 0))
                    counters[name] = counters.get(name, 0) + value - before
            else:
                counters.update(rated.closing)
            self.moved.add(one.counters)
        return rated.total_micros
