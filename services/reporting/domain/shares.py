"""Parts of a whole in basis points, and how much hangs on few of them. Integers only."""

from collections.abc import Iterable
from typing import Final

WHOLE_BPS: Final = 10_000


def share_bps(part: int, total: int) -> int:
    """A part of a total in basis points, rounded down; zero unless both are above zero.

    Never more than the whole: where corrections make other parts negative, one part exceeds the total.
    """
    if part <= 0 or total <= 0:
        return 0
    return min(part * WHOLE_BPS // total, WHOLE_BPS)


def concentration_index(parts: Iterable[int]) -> int:
    """Herfindahl-Hirschman index of parts, from 0 to 10,000: 10,000 for one part, 0 for none."""
    total = squares = 0
    for part in parts:
        # What was taken back more of than earned is no part of the whole.
        if part > 0:
            total += part
            squares += part * part
    return concentration_of(total, squares)


def concentration_of(total: int, squares: int) -> int:
    """The same from the sum of the parts above zero, and from that of their squares."""
    return squares * WHOLE_BPS // (total * total) if total > 0 else 0
