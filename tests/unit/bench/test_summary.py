"""Medians, percentiles and ratios."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.summary import median, median_ratio, percentiles


def test_the_median_is_the_middle_or_between_the_two_in_the_middle() -> None:
    assert median([9.0, 1.0, 4.0]) == 4.0
    assert median([9.0, 1.0, 4.0, 6.0]) == 5.0


def test_percentiles_are_by_nearest_rank_and_in_milliseconds() -> None:
    found = percentiles([number / 1000 for number in range(1000, 0, -1)])
    assert (found.p50, found.p99, found.p999) == (500.0, 990.0, 999.0)


def test_few_durations_have_the_longest_as_their_high_percentiles() -> None:
    found = percentiles([0.003, 0.001, 0.002])
    assert (found.p50, found.p99, found.p999) == (2.0, 3.0, 3.0)


@given(st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=1))
def test_percentiles_rise_and_are_durations_that_were_measured(seconds: list[float]) -> None:
    found = percentiles(seconds)
    assert found.p50 <= found.p99 <= found.p999
    assert {found.p50, found.p99, found.p999} <= {one * 1000 for one in seconds}


def test_a_round_that_was_slow_for_both_sides_does_not_move_the_ratio() -> None:
    assert median_ratio([50.0, 5.0, 60.0], [100.0, 10.0, 100.0]) == 0.5


@pytest.mark.parametrize("summarize", [median, percentiles])
def test_nothing_has_no_summary(summarize: object) -> None:
    assert callable(summarize)
    with pytest.raises(ValueError, match="no "):
        summarize([])


def test_sides_of_different_length_are_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        median_ratio([1.0, 2.0], [1.0])
