"""Deferred outcomes: how work ended, said after it was metered."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from services.metering.domain.claim import OutcomeHold
from services.metering.domain.rating import CompiledPrice, Execution, Rated, rate_outcome
from services.metering.domain.usage_event import FINAL_OUTCOMES, EventKey, Outcome


class OutcomeState(StrEnum):
    """The life of a deferred outcome. It leaves PENDING once."""

    PENDING = "pending"
    RESOLVED = "resolved"
    EXPIRED = "expired"


class DeferredOutcome(NamedTuple):
    """The outcome of an event that was reported as pending.

    `bonuses` says what each outcome adds that adds anything, by the price that the event was charged by;
    `outcome` is PENDING until the state is another one.
    """

    outcome_id: str
    key: EventKey
    agent_id: str
    currency_code: str
    # Who reported the event: budgets count by it.
    api_key_id: str
    expired_outcome: Outcome
    expire_time: datetime
    bonuses: Mapping[Outcome, Rated]
    state: OutcomeState = OutcomeState.PENDING
    outcome: Outcome = Outcome.PENDING
    resolve_time: datetime | None = None
    evidence_ref: str = ""
    evidence_hash: bytes = b""

    @property
    def max_bonus_micros(self) -> int:
        """The most that any outcome adds."""
        return max((bonus.total_micros for bonus in self.bonuses.values()), default=0)

    @property
    def hold(self) -> OutcomeHold | None:
        """What to hold until it is decided; None if it adds nothing in any case."""
        amount = self.max_bonus_micros
        return OutcomeHold(self.outcome_id, amount, self.expire_time) if amount else None

    @property
    def bonus_micros(self) -> int:
        """What the outcome added; 0 as long as it is pending."""
        bonus = self.bonuses.get(self.outcome)
        return 0 if bonus is None else bonus.total_micros


def bonuses(price: CompiledPrice, execution: Execution) -> dict[Outcome, Rated]:
    """What each outcome adds to the price of the execution, of those that add anything."""
    rated = {outcome: rate_outcome(price, execution._replace(outcome=outcome)) for outcome in FINAL_OUTCOMES}
    return {outcome: bonus for outcome, bonus in rated.items() if bonus.total_micros}
