"""Bar charts as SVG, drawn here so that they are there without JavaScript. Scripts replace them by livelier
ones, from the figures of the table beside them.

Pictures, not books: coordinates are whole thousandths of the height.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

HEIGHT: Final = 1_000
_STEP: Final = 10
_GAP: Final = 2
# Something that is not zero is to be seen.
_LEAST: Final = 12


class Bar(NamedTuple):
    """One bar, in the coordinates of its chart."""

    x: int
    y: int
    width: int
    height: int


class Bars(NamedTuple):
    """A chart `width` × HEIGHT, whose values are zero at `baseline`."""

    width: int
    baseline: int
    bars: Sequence[Bar]


def bars(values: Sequence[int]) -> Bars:
    """The bars of some values, of any unit; negative ones hang below the baseline."""
    top, bottom = max([0, *values]), min([0, *values])
    span = top - bottom or 1
    baseline = top * HEIGHT // span if top or bottom else HEIGHT
    drawn = []
    for index, value in enumerate(values):
        height = max(abs(value) * HEIGHT // span, _LEAST) if value else 0
        y = baseline - height if value > 0 else baseline
        drawn.append(Bar(index * _STEP + _GAP // 2, max(0, min(y, HEIGHT - height)), _STEP - _GAP, height))
    return Bars(len(values) * _STEP, baseline, drawn)
