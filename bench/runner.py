"""Takes turns: warm-up, then rounds in which each contestant runs once, so that noise hits all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.contestants import Contestant, UnexpectedAnswerError
from bench.load import Load, drive
from bench.machine import CpuClock
from bench.world import LedgerCalls, Suite, World

# Calls of a warm-up, per one in flight: enough for plans, caches and connections, and to guess the rate.
_WARM_UP_CALLS: Final = 12
# A round that takes this much longer than meant sends no more.
_PATIENCE: Final = 4.0
_NO_CALLS: Final = LedgerCalls(0, 0)
# CPUs that other programs may take of a round before it counts as disturbed.
_QUIET_CPUS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of one contestant; `operations` are those that were answered in it.

    `ledger_calls` are those that the ledger served meanwhile.
    """

    operations: int
    load: Load
    cpu: CpuClock
    ledger_calls: LedgerCalls = _NO_CALLS

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.load.seconds

    @property
    def other_cpus(self) -> float:
        """How many CPUs were busy with programs that have no part in this."""
        return self.cpu.others / self.cpu.at


@dataclass
class Record:
    """The rounds of one contestant that count, and how many operations it did in all."""

    contestant: Contestant
    rounds: list[Round] = field(default_factory=list)
    operations: int = 0

    def add(self, one: Round) -> None:
        """Note one more round."""
        self.rounds.append(one)
        self.operations += one.operations


def keep_quietest(records: Sequence[Record], count: int) -> None:
    """Leave the `count` rounds in which other programs took the least CPU.

    A round is kept or dropped for all sides alike, and never for what it measured.
    """
    disturbance = [
        sum(one.other_cpus for one in turns)
        for turns in zip(*(record.rounds for record in records), strict=True)
    ]
    kept = sorted(sorted(range(len(disturbance)), key=disturbance.__getitem__)[:count])
    for record in records:
        record.rounds = [record.rounds[number] for number in kept]


class Runner:
    """Runs contestants `rounds` times, about `seconds` each time; half as often again on a busy machine."""

    def __init__(self, world: Suite, *, rounds: int, seconds: float, say: Callable[[str], None]) -> None:
        self._world = world
        self._rounds = rounds
        self._seconds = seconds
        self._say = say

    async def run(self, contestants: Sequence[Contestant]) -> dict[str, Record]:
        """The records of contestants that are compared with each other."""
        records = [Record(one) for one in contestants]
        calls = [await self._warm_up(record) for record in records]
        quiet = 0
        for number in range(self._rounds + self._rounds // 2):
            await self._take_turns(records, calls, number)
            quiet += all(record.rounds[-1].other_cpus <= _QUIET_CPUS for record in records)
            if quiet >= self._rounds:
                break
        keep_quietest(records, self._rounds)
        return {record.contestant.name: record for record in records}

    async def _take_turns(self, records: Sequence[Record], calls: Sequence[int], number: int) -> None:
        # Who begins changes, since the first may find the machine in another state than the last.
        first = number % len(records)
        for turn in (*range(first, len(records)), *range(first)):
            record = records[turn]
            record.add(await self._round(record.contestant, calls[turn]))
        rates = ", ".join(f"{record.contestant.name} {record.rounds[-1].rate:,.0f}" for record in records)
        busiest = max(record.rounds[-1].other_cpus for record in records)
        self._say(f"round {number + 1}: operations/s: {rates}; CPUs taken by others: {busiest:.1f}")

    async def _warm_up(self, record: Record) -> int:
        """How many calls make a round, by the rate of a warm-up."""
        contestant = record.contestant
        done = await self._round(contestant, _WARM_UP_CALLS * max(contestant.in_flight, 8))
        record.operations += done.operations
        calls = int(done.rate * self._seconds / contestant.size)
        return max(calls, contestant.in_flight)

    async def _round(self, contestant: Contestant, calls: int) -> Round:
        requests = contestant.prepare(calls)
        calls_before = await self._world.ledger_calls()
        before = self._world.processes.cpu()
        load = await drive(
            contestant.call,
            requests,
            contestant.in_flight,
            self._seconds * _PATIENCE,
            per_second=contestant.per_second,
        )
        # What the work leaves to the background belongs to its CPU, and not to the next one's time.
        await self._world.drained()
        cpu = self._world.processes.cpu().since(before)
        served = (await self._world.ledger_calls()).since(calls_before)
        return Round(len(load.latencies) * contestant.size, load, cpu, served)


async def check_books(world: World, records: Mapping[str, Record], charges: int, events: int) -> None:
    """Raise unless every answered operation left its row, and nothing else did. `charges` and `events` are
    how many there were before.
    """
    posted = sum(one.operations for one in records.values() if one.contestant.posts)
    metered = sum(one.operations for one in records.values() if one.contestant.meters)
    for what, expected, query in (
        ("charges", charges + posted, "SELECT count(*) FROM ledger.charge"),
        ("usage events", events + metered, "SELECT count(*) FROM metering.usage_event"),
    ):
        stored = await world.count(query)
        if stored != expected:
            raise UnexpectedAnswerError(f"{expected} {what} were answered, and {stored} are stored")
