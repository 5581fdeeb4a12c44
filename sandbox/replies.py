"""What metering answered to an agent host, over all replays of the same recordings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sandbox.replay import BadLine, Work
from services.kit.errors import TallystickError
from tallystick.metering.v1.metering_service_pb2 import MeteredEvent, SettleResponse
from tallystick.metering.v1.reservation_pb2 import Settlement

# What was settled, or metered without a reservation; or why neither.
Answer = SettleResponse | MeteredEvent | TallystickError

INSUFFICIENT_CREDITS = "INSUFFICIENT_CREDITS"
BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
# Why a run is refused before it starts. Whatever else is refused is a line that metering does not take.
REFUSALS = (INSUFFICIENT_CREDITS, BUDGET_EXCEEDED)


@dataclass(frozen=True, slots=True)
class RefusedRun:
    """A run that was not authorized, and so did not happen."""

    path: Path
    number: int
    name: str
    reason: str


class Replies:
    """The answers, and whether each piece of work was always answered alike."""

    def __init__(self) -> None:
        # What each charge was said to cost, in micros.
        self.prices: dict[str, int] = {}
        self.charges_of: Counter[str] = Counter()
        self.duplicates = 0
        # Workflows that were settled, and what of their reservations was used, in micros.
        self.settled: set[str] = set()
        self.reserved = self.captured = self.returned = 0
        # Outcomes that were left open.
        self.deferred: set[str] = set()
        # By workflow, the first line that was refused; and how many answers were refusals.
        self.refused: dict[str, RefusedRun] = {}
        self.refusals = 0
        # By line, what metering does not take; and how many answers said so.
        self.bad_lines: dict[tuple[Path, int], BadLine] = {}
        self.rejections = 0
        # Whether each charge was new once and cost the same every time, and no refused run was charged.
        self.consistent = True
        # Whether of every reservation the parts add up, and pay for the run.
        self.settlements_add_up = True

    @property
    def answers(self) -> int:
        """How many answers there were."""
        return len(self.prices) + self.duplicates + self.refusals + self.rejections

    def refused_runs(self, *reasons: str) -> list[str]:
        """The runs that were refused, for one of these reasons, in the order of their file."""
        runs = sorted(self.refused.values(), key=lambda run: (run.path, run.number))
        return [run.name for run in runs if run.reason in reasons]

    def hear(self, work: Work, answer: Answer) -> BadLine | None:
        """Take in one answer; answers the line, once, if metering does not take it."""
        if isinstance(answer, TallystickError):
            if answer.reason in REFUSALS:
                self._hear_refusal(work, answer.reason)
                return None
            return self._hear_rejection(work, answer)
        metered = answer.metered if isinstance(answer, SettleResponse) else answer
        is_new = metered.charge_id not in self.prices
        self._hear_charge(work, metered)
        if isinstance(answer, SettleResponse) and is_new:
            self._hear_settlement(work, answer.settlement, metered.price_charged.amount_micros)
        return None

    def _hear_charge(self, work: Work, metered: MeteredEvent) -> None:
        price = metered.price_charged.amount_micros
        if metered.charge_id not in self.prices:
            # New, even when it says duplicate: then the answer to our first attempt was lost on the way.
            self.prices[metered.charge_id] = price
            self.charges_of[work.party.organization_id] += 1
        else:
            self.duplicates += metered.duplicate
            self.consistent &= metered.duplicate and price == self.prices[metered.charge_id]
        self.consistent &= work.workflow_id not in self.refused
        if metered.HasField("deferred_outcome"):
            self.deferred.add(metered.outcome_id)

    def _hear_settlement(self, work: Work, settlement: Settlement, price: int) -> None:
        reserved, captured = settlement.reserved.amount_micros, settlement.captured.amount_micros
        returned, excess = settlement.returned.amount_micros, settlement.excess.amount_micros
        self.settled.add(work.workflow_id)
        self.reserved += reserved
        self.captured += captured
        self.returned += returned
        self.settlements_add_up &= reserved == captured + returned and price == captured + excess

    def _hear_refusal(self, work: Work, reason: str) -> None:
        self.refusals += 1
        run = RefusedRun(work.path, work.number, work.name, reason)
        first = self.refused.setdefault(work.workflow_id, run)
        self.consistent &= first.reason == reason and work.workflow_id not in self.settled

    def _hear_rejection(self, work: Work, error: TallystickError) -> BadLine | None:
        self.rejections += 1
        line = work.path, work.number
        if line in self.bad_lines:
            return None
        self.bad_lines[line] = work.refused(f"refused, {error.code.name}: {error.message}")
        return self.bad_lines[line]
