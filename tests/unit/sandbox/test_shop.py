"""What customers pay by card is what a card can be charged."""

from __future__ import annotations

import pytest

from sandbox.shop import chargeable


@pytest.mark.parametrize(
    ("micros", "charged"),
    [
        (1, 500_000),
        (500_000, 500_000),
        (500_001, 510_000),
        (1_000_000, 1_000_000),
        (999_999_990_000, 999_999_990_000),
        (10**15, 999_999_990_000),
    ],
)
def test_whole_cents_from_the_minimum_to_the_most_are_charged(micros: int, charged: int) -> None:
    assert chargeable(micros) == charged
