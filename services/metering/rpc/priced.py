"""What is recorded of reports: their prices, and what these depend on.

Most prices depend on the event alone. Others depend on what the customer used before in the billing period:
such an event is rated within the transaction that records it, by counters that it holds locked.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from services.kit.errors import InvalidArgument
from services.metering.domain.compiled_price import Execution
from services.metering.domain.outcome import DeferredOutcome, prospects
from services.metering.domain.price_counter import (
    MAX_COUNTER,
    Counted,
    CounterPeriod,
    PriceCounterKey,
)
from services.metering.domain.rating import Counters, Rated, counter_names, rate
from services.metering.domain.usage_event import EventKey, Outcome, UsageEvent
from services.metering.domain.usage_record import IntendedCharge, UsageRecord, charge_id, outcome_id
from services.metering.rpc.report import Report
from services.metering.rpc.terms import Terms


class Unrated(NamedTuple):
    """A report whose price depends on counters: what it is to be rated by, once these are locked."""

    report: Report
    terms: Terms
    execution: Execution
    period: CounterPeriod
    names: tuple[str, ...]
    now: datetime

    @property
    def key(self) -> EventKey:
        return self.report.event.key


class CounterChain:
    """Counters, locked by this transaction, that events move one after the other."""

    def __init__(self, values: Mapping[PriceCounterKey, int]) -> None:
        self._values: dict[CounterPeriod, dict[str, int]] = {}
        self._moved: dict[CounterPeriod, set[str]] = {}
        for (period, name), value in values.items():
            self._values.setdefault(period, {})[name] = value

    @property
    def moved(self) -> dict[PriceCounterKey, int]:
        """The counters that moved, and where to."""
        return {
            PriceCounterKey(period, name): self._values[period][name]
            for period, names in self._moved.items()
            for name in names
        }

    def opening(self, period: CounterPeriod, names: Iterable[str]) -> dict[str, int]:
        """These counters as they stand."""
        values = self._values[period]
        return {name: values[name] for name in names}

    def move(self, period: CounterPeriod, closing: Counters) -> None:
        """Move counters to these values."""
        self._values[period].update(closing)
        self._moved.setdefault(period, set()).update(closing)

    def rate(self, unrated: Unrated) -> UsageRecord:
        """What to record of the next report. Raises InvalidArgument, and moves nothing, if that cannot be."""
        report, terms, execution, period, names, now = unrated
        opening = self.opening(period, names)
        rated = rate(terms.price, execution, terms.agreed.compiled, opening)
        if max(rated.closing.values(), default=0) > MAX_COUNTER:
            raise InvalidArgument.of("usage", "is more than can be counted in a billing period")
        counted = Counted(period.start, opening, rated.closing)
        record = _record(report, terms, execution, now, rated, counted)
        self.move(period, rated.closing)
        return record


def price_report(report: Report, terms: Terms, now: datetime) -> UsageRecord | Unrated:
    """What to record of a report, or what it is to be rated by.

    Raises InvalidArgument if it costs too much.
    """
    event = report.event
    execution = Execution.of(event, _occur_time(event, now))
    names = counter_names(terms.price, terms.agreed.compiled)
    if names:
        period = CounterPeriod(
            event.key.customer_id,
            terms.organization_id,
            terms.currency_code,
            # That of the work, however late it is reported.
            terms.period.start,
        )
        return Unrated(report, terms, execution, period, names, now)
    rated = rate(terms.price, execution, terms.agreed.compiled)
    return _record(report, terms, execution, now, rated, None)


def counters_of(some: Iterable[Unrated]) -> list[PriceCounterKey]:
    """The counters that reports are to be rated by, each once."""
    wanted: dict[CounterPeriod, dict[str, None]] = {}
    for one in some:
        wanted.setdefault(one.period, {}).update(dict.fromkeys(one.names))
    return [PriceCounterKey(period, name) for period, names in wanted.items() for name in names]


def _record(
    report: Report, terms: Terms, execution: Execution, now: datetime, rated: Rated, counted: Counted | None
) -> UsageRecord:
    event = report.event
    deferred = None
    if execution.outcome is Outcome.PENDING:
        deferred = _deferred(report, terms, execution, now, {} if counted is None else counted.opening)
    return UsageRecord(
        charge=IntendedCharge(
            key=event.key,
            organization_id=terms.organization_id,
            agent_id=event.agent_id,
            occur_time=execution.occur_time,
            currency_code=terms.currency_code,
            amount_micros=rated.total_micros,
            price_version_id=terms.price_version_id,
            evidence_hash=event.evidence_hash,
            claim=report.claim,
            outcome_hold=None if deferred is None else deferred.hold,
        ),
        content=event.content,
        evidence_ref=event.evidence_ref,
        lines=rated.lines,
        deferred=deferred,
        contract_terms=terms.agreed.terms,
        counted=counted,
    )


def _deferred(
    report: Report, terms: Terms, execution: Execution, now: datetime, opening: Counters
) -> DeferredOutcome:
    """The outcome of an event that is reported as pending."""
    event, deferral = report.event, terms.price.deferral
    ahead = prospects(terms.price, execution, terms.agreed.compiled, opening)
    return DeferredOutcome(
        outcome_id=outcome_id(charge_id(event.key)),
        key=event.key,
        agent_id=event.agent_id,
        currency_code=terms.currency_code,
        api_key_id=report.principal.api_key_id,
        expired_outcome=deferral.expired_outcome,
        expire_time=event.outcome_expire_time or now + deferral.expire_after,
        bonuses=ahead.bonuses,
        max_bonus_micros=ahead.max_bonus_micros,
    )


def _occur_time(event: UsageEvent, now: datetime) -> datetime:
    # A host's clock may be a little ahead; money is never posted for the future.
    return now if event.occur_time is None else min(event.occur_time, now)
