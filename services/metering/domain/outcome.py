"""Deferred outcomes: how work ended, said after it was metered."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from services.metering.domain.claim import OutcomeHold
from services.metering.domain.compiled_price import NO_COMPILED_TERMS, CompiledPrice, CompiledTerms, Execution
from services.metering.domain.price_counter import MAX_COUNTER, Counted, counts_charges
from services.metering.domain.rating import Counters, Rated, highest, rate, rate_outcome
from services.metering.domain.usage_event import FINAL_OUTCOMES, EventKey, Outcome

_NOTHING: Final[Counters] = MappingProxyType({})


class OutcomeState(StrEnum):
    """The life of a deferred outcome. It leaves PENDING once."""

    PENDING = "pending"
    RESOLVED = "resolved"
    EXPIRED = "expired"


class DeferredOutcome(NamedTuple):
    """The outcome of an event that was reported as pending.

    `bonuses` and `max_bonus_micros` are those of its prospects; but once an outcome is decided of which
    nobody could say before what it adds, `bonuses` says that. `outcome` is PENDING until the state is another
    one. `result` is what the resolver said came of the work, as a serialized google.protobuf.Struct; None
    where that of the event counts. `counted` is what a bonus was rated with that was rated when it was
    decided.
    """

    outcome_id: str
    key: EventKey
    agent_id: str
    currency_code: str
    # Who reported the event: budgets count by it.
    api_key_id: str
    expired_outcome: Outcome
    expire_time: datetime
    bonuses: Mapping[Outcome, Rated] | None
    max_bonus_micros: int
    state: OutcomeState = OutcomeState.PENDING
    outcome: Outcome = Outcome.PENDING
    resolve_time: datetime | None = None
    evidence_ref: str = ""
    evidence_hash: bytes = b""
    result: bytes | None = None
    counted: Counted | None = None

    @property
    def hold(self) -> OutcomeHold | None:
        """What to hold until it is decided; None if it adds nothing in any case."""
        amount = self.max_bonus_micros
        return OutcomeHold(self.outcome_id, amount, self.expire_time) if amount else None

    @property
    def bonus(self) -> Rated | None:
        """What the outcome added; None if that is nothing, or it is pending."""
        return None if self.bonuses is None else self.bonuses.get(self.outcome)

    @property
    def bonus_micros(self) -> int:
        """What the outcome added; 0 as long as it is pending."""
        return 0 if self.bonus is None else self.bonus.total_micros


class Prospects(NamedTuple):
    """What a pending outcome may add.

    `bonuses` says it of each outcome that adds anything; None if nobody can say before it is decided: it
    depends on the result, which the resolver may bring, or moves counters, which others move meanwhile.
    """

    bonuses: Mapping[Outcome, Rated] | None
    max_bonus_micros: int


def prospects(
    price: CompiledPrice,
    execution: Execution,
    terms: CompiledTerms = NO_COMPILED_TERMS,
    opening: Counters = _NOTHING,
) -> Prospects:
    """What the outcome of a pending execution may add, with the counters that it was rated with."""
    pending = rate(price, execution._replace(outcome=Outcome.PENDING), terms, opening)
    rated = {
        outcome: rate_outcome(price, execution._replace(outcome=outcome), terms, opening)
        for outcome in FINAL_OUTCOMES
    }
    if _asks_for_result(price) or any(bonus.closing != pending.closing for bonus in rated.values()):
        return Prospects(None, highest(price, execution, terms, opening) - pending.total_micros)
    bonuses = {outcome: bonus for outcome, bonus in rated.items() if bonus.total_micros}
    return Prospects(bonuses, max((bonus.total_micros for bonus in bonuses.values()), default=0))


class Decision(NamedTuple):
    """What an outcome adds, and what that was rated with; None for prices that depend on no counters."""

    bonus: Rated
    counted: Counted | None


def decide(
    price: CompiledPrice,
    execution: Execution,
    terms: CompiledTerms,
    counted: Counted | None,
    current: Counters,
) -> Decision:
    """What an outcome adds of which nobody could say before.

    The execution has its final outcome and result; `counted` is what the event was rated with, and `current`
    the same counters as they stand, locked. The work keeps its place: tiers, allowances and discounts by
    volume are those of its event. But of a maximum of the period there is what others have left of it by now.
    What the outcome adds to a counter is added to what that stands at.
    """
    if counted is None:
        return Decision(rate_outcome(price, execution, terms), None)
    opening = {
        name: current[name] - _added(counted, name) if counts_charges(name) else value
        for name, value in counted.opening.items()
    }
    pending = rate(price, execution._replace(outcome=Outcome.PENDING), terms, opening)
    bonus = rate_outcome(price, execution, terms, opening)
    closing = {
        name: min(current[name] + value - before, MAX_COUNTER)
        for name, value in bonus.closing.items()
        if value != (before := pending.closing.get(name, opening[name]))
    }
    return Decision(bonus, Counted(counted.period_start, opening, closing))


def _added(counted: Counted, name: str) -> int:
    before = counted.opening[name]
    return counted.closing.get(name, before) - before


def _asks_for_result(price: CompiledPrice) -> bool:
    return any(
        component.condition is not None and "result" in component.condition.variables
        for component in price.components
    )
