"""Counters as they would stand had other prices been applied: by how much they are off from where they stood.

Charges keep the counters that they were rated with. What other prices are rated with is those, shifted by
what the other prices moved more or less before: whatever happened earlier in the billing period, and in
whichever order runs come, prices that equal the applied ones are rated with what the applied ones were.
"""

from collections.abc import Iterable, Mapping

from services.metering.domain.price_counter import MAX_COUNTER
from services.metering.domain.rating import Counters


def shifted(names: Iterable[str], stood: Counters, shifts: Mapping[str, int]) -> dict[str, int]:
    """These counters as they would stand; never below zero, which runs that come early could lead to."""
    return {name: min(max(0, stood.get(name, 0) + shifts.get(name, 0)), MAX_COUNTER) for name in names}


def moves(opening: Counters, closing: Counters) -> dict[str, int]:
    """How far counters moved."""
    return {name: value - opening.get(name, 0) for name, value in closing.items()}


def moves_between(opening: Counters, before: Counters, after: Counters) -> dict[str, int]:
    """How far they moved from one closing to another one, both from the same opening."""
    return {name: value - before.get(name, opening.get(name, 0)) for name, value in after.items()}


def shift(shifts: dict[str, int], would: Mapping[str, int], did: Mapping[str, int]) -> None:
    """Shift counters by how far they would have moved, and did not."""
    for name in {**would, **did}:
        off = would.get(name, 0) - did.get(name, 0)
        if off:
            shifts[name] = shifts.get(name, 0) + off
