"""How much can be charged at once."""

import pytest

from services.kit.errors import InvalidArgument
from services.kit.money import Money
from services.payouts.domain.charges import check_chargeable


@pytest.mark.parametrize(
    ("currency", "micros"),
    [
        ("USD", 500_000),
        ("USD", 999_999_990_000),
        ("GBP", 300_000),
        ("JPY", 50_000_000),
        ("HUF", 175_000_000),
        # Thousandths, of which Stripe takes tens only.
        ("KWD", 10_000),
        # Whole units, which Stripe writes with two decimals.
        ("ISK", 1_000_000),
    ],
)
def test_amounts_that_can_be_charged(currency: str, micros: int) -> None:
    assert check_chargeable(Money(currency, micros)) == Money(currency, micros)


@pytest.mark.parametrize(
    ("currency", "micros"),
    [
        ("USD", 490_000),
        ("USD", 500_001),
        ("USD", 1_000_000_000_000),
        ("GBP", 290_000),
        ("JPY", 49_000_000),
        ("JPY", 50_500_000),
        ("HUF", 174_000_000),
        ("KWD", 11_000),
        ("ISK", 1_500_000),
    ],
)
def test_amounts_that_cannot(currency: str, micros: int) -> None:
    with pytest.raises(InvalidArgument):
        check_chargeable(Money(currency, micros))
