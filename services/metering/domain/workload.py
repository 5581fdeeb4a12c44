"""Workloads: runs that never happened, drawn for simulations.

A run is drawn from a pool of executions: the recorded ones, or a few thousand that follow distributions. Runs
that are alike are thus many, so that each execution is rated once however many runs there are. Every column
has a stream of random numbers of its own, made from the seed and its name: the same request draws the same
runs, and to change one thing leaves the others as they were.
"""

import json
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.money import round_half_even
from services.metering.domain.usage_event import MAX_TOKENS, Outcome, Usage

_FILE: Final = Path(__file__).parent.parent / "data" / "workloads.json"

MAX_RUNS: Final = 1_000_000
MAX_CUSTOMERS: Final = 100_000
MAX_SKEW: Final = 5_000
MAX_DISTRIBUTIONS: Final = 32
MAX_QUANTILES: Final = 101
MAX_PERIOD: Final = timedelta(days=366)
ALL_BASIS_POINTS: Final = 10_000
# How many executions stand for a distribution: one for the middle of each basis point, so that averages are
# those of the distribution and only how meters meet is by chance.
_POOL: Final = ALL_BASIS_POINTS
# Shares of customers as whole numbers: a power may differ in its last bit from machine to machine.
_SHARE_SCALE: Final = 10**9
OUTCOMES: Final = (Outcome.SUCCESS, Outcome.FAILURE, Outcome.PARTIAL, Outcome.UNKNOWN)
# Of these fields of Usage a part cannot be more than the whole.
_PARTS: Final = {"cached_input_tokens": "input_tokens", "reasoning_tokens": "output_tokens"}
_FIELDS: Final = tuple(name for name in Usage._fields if name not in ("model", "meters", "models"))


@dataclass(frozen=True, slots=True)
class Distribution:
    """How much of a meter a run consumes: `points` are (basis points, value), in between it is even."""

    meter: str
    points: tuple[tuple[int, int], ...]

    @classmethod
    def fixed(cls, meter: str, value: int) -> "Distribution":
        """The same for every run."""
        return cls(meter, ((0, value), (ALL_BASIS_POINTS, value)))

    def values(self) -> list[int]:
        """A value for the middle of each basis point."""
        found: list[int] = []
        for (start, least), (end, most) in pairwise(self.points):
            width = 2 * (end - start)
            found += [
                least + round_half_even((most - least) * (2 * index + 1), width)
                for index in range(end - start)
            ]
        return found


@dataclass(frozen=True, slots=True)
class OutcomeRates:
    """How runs end, in basis points of all; the rest fail."""

    success: int = 0
    partial: int = 0
    unknown: int = 0

    @property
    def weights(self) -> tuple[int, ...]:
        """In the order of OUTCOMES."""
        failure = ALL_BASIS_POINTS - self.success - self.partial - self.unknown
        return self.success, failure, self.partial, self.unknown


@dataclass(frozen=True, slots=True)
class Workload:
    """What to draw. With `distributions` nothing is taken from what was recorded."""

    run_count: int
    start_time: datetime
    end_time: datetime
    recorded: str = "agent_runs"
    distributions: tuple[Distribution, ...] = ()
    model: str = ""
    outcome_rates: OutcomeRates | None = None
    customer_count: int = 100
    customer_skew: int = 0
    seed: int = 0


class Profile(NamedTuple):
    """What a run may consume, and how it ends."""

    usage: Usage
    outcome: Outcome


class Drawn(NamedTuple):
    """Runs in the order of their time: of each its profile and its customer, by number from 0."""

    profiles: Sequence[Profile]
    runs: Sequence[int]
    customers: Sequence[int]

    def counts(self) -> list[int]:
        """How many runs each profile has."""
        found = [0] * len(self.profiles)
        for profile in self.runs:
            found[profile] += 1
        return found


def recorded_names() -> tuple[str, ...]:
    """The names of what was recorded."""
    return tuple(_recorded())


def check_workload(workload: Workload) -> None:
    """Raise InvalidArgument with everything that is wrong with a workload, by paths in `workload`."""
    found = list(_violations(workload))
    if found:
        raise InvalidArgument(f"{found[0].field}: {found[0].description}", field_violations=found)


def draw(workload: Workload) -> Drawn:
    """The runs of a workload that was checked."""
    size, usage_of, recorded_outcome_of = _pool(workload)
    count = workload.run_count
    picked = _stream(workload, "runs").choices(range(size), k=count)
    if workload.outcome_rates is None:
        ended = [recorded_outcome_of(index) for index in picked]
    else:
        cumulated = list(accumulate(workload.outcome_rates.weights))
        ended = _stream(workload, "outcomes").choices(OUTCOMES, cum_weights=cumulated, k=count)
    # An execution may be in the pool several times: it then has one profile and several chances.
    numbers: dict[Hashable, int] = {}
    profiles: list[Profile] = []
    drawn: dict[tuple[int, Outcome], int] = {}
    for index, outcome in dict.fromkeys(zip(picked, ended, strict=True)):
        usage = usage_of(index)
        number = numbers.setdefault((_identity(usage), outcome), len(profiles))
        if number == len(profiles):
            profiles.append(Profile(usage, outcome))
        drawn[index, outcome] = number
    shares = list(accumulate(_shares(workload.customer_count, workload.customer_skew)))
    customers = _stream(workload, "customers").choices(
        range(workload.customer_count), cum_weights=shares, k=count
    )
    return Drawn(profiles, [drawn[pair] for pair in zip(picked, ended, strict=True)], customers)


def _stream(workload: Workload, name: str) -> random.Random:
    # A string is hashed by SHA-512: the streams of neighbouring seeds have nothing in common.
    return random.Random(f"{workload.seed}/{name}")  # noqa: S311 - not a secret


def _shares(count: int, skew: int) -> list[int]:
    """The expected shares of customers, the largest first."""
    return [max(1, round(_SHARE_SCALE / number ** (skew / 1_000))) for number in range(1, count + 1)]


def _pool(workload: Workload) -> tuple[int, Callable[[int], Usage], Callable[[int], Outcome]]:
    """Executions of which each is as likely as the other: how many, each by its number, and how it ended."""
    if not workload.distributions:
        columns, rows = _recorded()[workload.recorded]

        def recorded(index: int) -> Usage:
            row = dict(zip(columns, rows[index], strict=True))
            row.pop("outcome", None)
            return Usage(**row | {"model": workload.model} if workload.model else row)

        place = columns.index("outcome") if "outcome" in columns else None
        outcomes = [Outcome.SUCCESS if place is None else Outcome(row[place]) for row in rows]
        return len(rows), recorded, outcomes.__getitem__
    drawn: dict[str, list[int]] = {}
    for distribution in workload.distributions:
        values = distribution.values()
        # A Latin hypercube: every value once, in an order that has nothing to do with that of other meters.
        _stream(workload, f"meters/{distribution.meter}").shuffle(values)
        drawn[distribution.meter] = values
    for part, whole in _PARTS.items():
        if part in drawn:
            wholes = drawn.get(whole, [0] * _POOL)
            drawn[part] = [min(pair) for pair in zip(drawn[part], wholes, strict=True)]

    def of_distributions(index: int) -> Usage:
        return _usage(workload.model, {meter: values[index] for meter, values in drawn.items()})

    return _POOL, of_distributions, lambda _: Outcome.SUCCESS


def _usage(model: str, quantities: Mapping[str, int]) -> Usage:
    own = {name: quantity for name, quantity in quantities.items() if name not in _FIELDS}
    reported: dict[str, Any] = {name: quantities[name] for name in _FIELDS if name in quantities}
    if own:
        reported["meters"] = own
    return Usage(model=model, **reported)


def _identity(usage: Usage) -> tuple[Hashable, ...]:
    """Equal for usages that are alike: a mapping cannot be told apart by its hash."""
    return usage.model, *(getattr(usage, name) for name in _FIELDS), *sorted(usage.meters.items())


@cache
def _recorded() -> Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
    """What was recorded, by name: the names of its columns, and its rows."""
    document = json.loads(_FILE.read_text())
    return {name: (workload["columns"], workload["rows"]) for name, workload in document.items()}


def _violations(workload: Workload) -> Iterator[FieldViolation]:
    if not 1 <= workload.run_count <= MAX_RUNS:
        yield FieldViolation("workload.run_count", f"must be 1 to {MAX_RUNS}")
    if not 1 <= workload.customer_count <= MAX_CUSTOMERS:
        yield FieldViolation("workload.customer_count", f"must be 1 to {MAX_CUSTOMERS}")
    if not 0 <= workload.customer_skew <= MAX_SKEW:
        yield FieldViolation("workload.customer_skew", f"must be 0 to {MAX_SKEW}")
    if not timedelta(0) < workload.end_time - workload.start_time <= MAX_PERIOD:
        yield FieldViolation(
            "workload.end_time", f"must be after start_time, by at most {MAX_PERIOD.days} days"
        )
    if not workload.distributions and workload.recorded not in _recorded():
        yield FieldViolation("workload.recorded", f"must be one of {', '.join(_recorded())}")
    if len(workload.distributions) > MAX_DISTRIBUTIONS:
        yield FieldViolation("workload.distributions", f"must be at most {MAX_DISTRIBUTIONS}")
    seen: set[str] = set()
    for index, distribution in enumerate(workload.distributions):
        path = f"workload.distributions[{index}]"
        if distribution.meter in seen:
            yield FieldViolation(f"{path}.meter", f"{distribution.meter!r} is given twice")
        seen.add(distribution.meter)
        yield from _point_violations(path, distribution.points)
    if workload.outcome_rates is not None and min(workload.outcome_rates.weights) < 0:
        yield FieldViolation(
            "workload.outcome_rates", f"must not be negative, and at most {ALL_BASIS_POINTS} in all"
        )


def _point_violations(path: str, points: Sequence[tuple[int, int]]) -> Iterator[FieldViolation]:
    if not 2 <= len(points) <= MAX_QUANTILES:
        yield FieldViolation(path, f"must have 2 to {MAX_QUANTILES} quantiles")
        return
    if points[0][0] != 0 or points[-1][0] != ALL_BASIS_POINTS:
        yield FieldViolation(path, f"must begin at 0 and end at {ALL_BASIS_POINTS} basis points")
    pairs = list(pairwise(points))
    if any(after[0] <= before[0] or after[1] < before[1] for before, after in pairs):
        yield FieldViolation(path, "must ascend")
    if not all(0 <= value <= MAX_TOKENS for _, value in points):
        yield FieldViolation(path, f"must be from 0 to {MAX_TOKENS}")
