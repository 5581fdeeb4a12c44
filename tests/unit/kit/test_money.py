import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument
from services.kit.money import (
    MAX_AMOUNT_MICROS,
    MINOR_UNIT_DIGITS,
    Money,
    check_amount,
    check_currency,
    round_half_even,
)


def test_arithmetic_is_exact() -> None:
    assert Money("USD", 1_500_000) + Money("USD", 1) == Money("USD", 1_500_001)
    assert Money("USD", 1_500_000) - Money("USD", 1_500_001) == Money("USD", -1)
    assert -Money("USD", 5) == Money("USD", -5)


def test_currencies_do_not_mix() -> None:
    with pytest.raises(ValueError, match="USD and EUR do not mix"):
        Money("USD", 1) + Money("EUR", 1)
    with pytest.raises(ValueError, match="USD and EUR do not mix"):
        Money("USD", 1) - Money("EUR", 1)


def test_a_sum_beyond_64_bits_is_refused() -> None:
    largest = Money("USD", 2**63 - 1)
    with pytest.raises(OverflowError):
        largest + Money("USD", 1)
    with pytest.raises(OverflowError):
        -largest - Money("USD", 1)


@pytest.mark.parametrize("code", ["usd", "US", "XXX", "XAU", "HRK", "BGN", "", "USD ", "CLF"])
def test_what_is_not_money_today_is_no_currency(code: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_currency(code, field="price.currency_code")
    assert raised.value.field_violations[0].field == "price.currency_code"


def test_minor_units() -> None:
    digits = {code: MINOR_UNIT_DIGITS[code] for code in ("USD", "EUR", "JPY", "KRW", "ISK", "KWD", "TND")}
    assert digits == {"USD": 2, "EUR": 2, "JPY": 0, "KRW": 0, "ISK": 0, "KWD": 3, "TND": 3}


@pytest.mark.parametrize(
    ("money", "text"),
    [
        (Money("USD", 1_500_000), "1.50 USD"),
        (Money("USD", -1), "-0.000001 USD"),
        (Money("USD", 5_003_000), "5.003 USD"),
        (Money("JPY", 7_000_000), "7 JPY"),
        (Money("JPY", 7_500_000), "7.5 JPY"),
        (Money("KWD", 0), "0.000 KWD"),
    ],
)
def test_text_for_people(money: Money, text: str) -> None:
    assert str(money) == text


def test_an_amount_is_bounded() -> None:
    assert check_amount(MAX_AMOUNT_MICROS, field="amount") == MAX_AMOUNT_MICROS
    assert check_amount(0, field="amount", minimum=0) == 0
    for wrong in (0, -1, MAX_AMOUNT_MICROS + 1):
        with pytest.raises(InvalidArgument):
            check_amount(wrong, field="amount")


@pytest.mark.parametrize(
    ("numerator", "denominator", "rounded"),
    [
        (5, 2, 2),
        (7, 2, 4),
        (-5, 2, -2),
        (-7, 2, -4),
        (1, 3, 0),
        (2, 3, 1),
        (-1, 3, 0),
        (-2, 3, -1),
        (6, 2, 3),
    ],
)
def test_halves_round_to_even(numerator: int, denominator: int, rounded: int) -> None:
    assert round_half_even(numerator, denominator) == rounded


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**12))
def test_rounding_is_to_the_nearest(numerator: int, denominator: int) -> None:
    rounded = round_half_even(numerator, denominator)
    error = abs(rounded * denominator - numerator)
    assert 2 * error <= denominator
    assert 2 * error < denominator or rounded % 2 == 0


def test_a_denominator_is_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        round_half_even(1, 0)
