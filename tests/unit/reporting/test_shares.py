"""Shares, and how much hangs on few."""

from hypothesis import given
from hypothesis import strategies as st

from services.reporting.domain.shares import concentration_index, concentration_of, share_bps

AMOUNTS = st.lists(st.integers(-(10**15), 10**15), max_size=20)


def test_a_share_is_rounded_down() -> None:
    assert share_bps(1, 3) == 3333
    assert share_bps(2, 3) == 6666
    assert share_bps(3, 3) == 10_000


def test_there_is_no_share_of_nothing_and_none_below_zero_or_above_the_whole() -> None:
    assert [share_bps(*pair) for pair in [(0, 0), (5, 0), (-5, 10), (5, -10), (20, 10)]] == [
        0,
        0,
        0,
        0,
        10_000,
    ]


def test_concentration_is_that_of_the_textbook() -> None:
    assert concentration_index([]) == 0
    assert concentration_index([7]) == 10_000
    assert concentration_index([1, 1]) == 5_000
    assert concentration_index([30, 30, 20, 20]) == 2_600
    # A customer who was given back more than it paid in the period is no part of the whole.
    assert concentration_index([1, 1, -5, 0]) == 5_000


@given(AMOUNTS)
def test_shares_add_up_to_no_more_than_the_whole_and_the_index_stays_in_its_bounds(
    amounts: list[int],
) -> None:
    positive = [amount for amount in amounts if amount > 0]
    total = sum(positive)
    assert sum(share_bps(amount, total) for amount in amounts) <= 10_000
    index = concentration_index(amounts)
    assert index == concentration_of(total, sum(amount * amount for amount in positive))
    assert index <= 10_000
    if positive:
        assert index >= 10_000 // len(positive) - 1
