"""Which results meet their bars."""

import pytest

from bench.bars import BARS, Bar
from bench.results import NAMES

MEMORIES = (
    "ledger_memory",
    "metering_memory",
    "payouts_memory",
    "payout_run_growth",
    "reporting_memory",
    "export_growth",
)


@pytest.mark.parametrize(
    ("bar", "value", "ratio", "met"),
    [
        (Bar(min_ratio=0.6, min_value=12_000), 12_000, 0.6, True),
        (Bar(min_ratio=0.6, min_value=12_000), 11_999, 0.6, False),
        (Bar(min_ratio=0.6, min_value=12_000), 12_000, 0.59, False),
        (Bar(min_ratio=0.6), 12_000, None, False),
        (Bar(max_ratio=1.25), 160.0, 1.25, True),
        (Bar(max_ratio=1.25), 160.0, 1.26, False),
        (Bar(max_ratio=1.25), 160.0, None, False),
        (Bar(max_value=4.0), 4.0, 20.0, True),
        (Bar(max_value=4.0), 4.1, None, False),
    ],
)
def test_a_bar_is_met_when_every_bound_is(bar: Bar, value: float, ratio: float | None, met: bool) -> None:
    assert bar.is_met(value, ratio) is met


def test_a_bar_says_what_it_asks_for() -> None:
    assert str(Bar(min_ratio=0.6, min_value=12_000)) == "ratio ≥ 0.6, ≥ 12,000"
    assert str(Bar(max_value=4.0)) == "≤ 4"
    assert str(Bar(max_ratio=1.25)) == "ratio ≤ 1.25"


def test_every_benchmark_has_a_bar_and_every_bar_a_benchmark() -> None:
    assert set(BARS) == {*NAMES, *MEMORIES}
