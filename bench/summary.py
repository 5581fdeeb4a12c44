"""What a list of durations, or of rates, comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Durations, in milliseconds."""

    p50: float
    p99: float
    p999: float


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values have no median")
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """By nearest rank: every figure is a duration that was measured. Raises ValueError for no durations."""
    if not seconds:
        raise ValueError("no durations have no percentiles")
    ordered = sorted(seconds)

    def milliseconds(per_mille: int) -> float:
        return ordered[max(ceil(len(ordered) * per_mille / 1000), 1) - 1] * 1000

    return Percentiles(milliseconds(500), milliseconds(990), milliseconds(999))


def median_ratio(values: Sequence[float], floors: Sequence[float]) -> float:
    """Median of the ratios of each round: what slowed one whole round slowed both of its sides.

    Raises ValueError if the sides differ in length.
    """
    return median([value / floor for value, floor in zip(values, floors, strict=True)])
