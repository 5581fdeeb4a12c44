"""Money is exact, or refused."""

from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit import money as kit
from tallystick import Money

MICROS = st.integers(-(2**63) + 1, 2**63 - 1)


@given(MICROS)
def test_decimal_is_exact_and_comes_back(micros: int) -> None:
    money = Money("USD", micros)
    with localcontext(prec=3):  # what the caller computes with must not matter
        assert Money.of(money.decimal) == money
        assert Money.of(f"{money.decimal:f}") == money
    assert money.decimal * 1_000_000 == micros
    assert Money.of(micros) == money


@pytest.mark.parametrize(
    ("amount", "micros"),
    [
        ("0.50", 500_000),
        ("-0.5", -500_000),
        ("+3", 3_000_000),
        (Decimal("1E+3"), 1_000_000_000),
        (Decimal("0.000001"), 1),
        (Decimal("1.5000000000"), 1_500_000),
        (12, 12),
        (Money("USD", 4), 4),
    ],
)
def test_amounts(amount: Any, micros: int) -> None:
    assert Money.of(amount) == Money("USD", micros)


@pytest.mark.parametrize("amount", [0.5, True, None, b"1", 1j])
def test_what_is_no_amount_is_a_type_error(amount: Any) -> None:
    with pytest.raises(TypeError):
        Money.of(amount)


@pytest.mark.parametrize("micros", [1.0, True, "1", Decimal(1)])
def test_micros_are_integers(micros: Any) -> None:
    with pytest.raises(TypeError):
        Money("USD", micros)


@pytest.mark.parametrize(
    "amount",
    [
        *("", "1,5", "1.5 USD", "NaN", "1e3", "٣", " 1", ".5", "0.0000001"),
        *(Decimal("NaN"), Decimal("Infinity"), Decimal("1E-7"), Decimal("1E+1000000"), Decimal("1E-1000000")),
        Money("EUR", 1),
    ],
)
def test_what_is_not_exact_or_not_a_number_is_a_value_error(amount: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the texts are for people
        Money.of(amount)


def test_beyond_64_bits_is_an_overflow() -> None:
    with pytest.raises(OverflowError):
        Money.of("9223372036854.775808")
    with pytest.raises(OverflowError):
        Money("USD", 2**63 - 1) + Money("USD", 1)


@given(MICROS, st.sampled_from(sorted(kit.MINOR_UNIT_DIGITS)))
def test_it_reads_as_the_servers_write_it(micros: int, currency: str) -> None:
    assert str(Money(currency, micros)) == str(kit.Money(currency, micros))


def test_arithmetic_and_order() -> None:
    one, two = Money.of("1"), Money.of("2")
    assert (one + two, two - one, -one) == (Money.of("3"), one, Money.of("-1"))
    assert one < two
    assert two >= one
    assert not Money("USD", 0)


def test_currencies_do_not_mix() -> None:
    dollars, euros = Money("USD", 1), Money("EUR", 1)
    assert dollars != euros
    for mix in (lambda: dollars + euros, lambda: dollars - euros, lambda: dollars < euros):
        with pytest.raises(ValueError, match="do not mix"):
            mix()


@pytest.mark.parametrize("currency", ["usd", "US", "", "USDT", "US1"])
def test_a_currency_is_three_capitals(currency: str) -> None:
    with pytest.raises(ValueError, match="ISO 4217"):
        Money(currency, 1)
