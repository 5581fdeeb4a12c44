"""What amounts Stripe takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument
from services.kit.money import MINOR_UNIT_DIGITS, Money
from services.payouts.domain.minimums import MinimumsError, check_minimum, minimum_of, parse_minimums
from services.payouts.domain.units import (
    Operation,
    check_step,
    from_minor,
    round_down,
    step_micros,
    to_minor,
)

CURRENCIES = st.sampled_from(sorted(MINOR_UNIT_DIGITS))


@pytest.mark.parametrize(
    ("money", "minor"),
    [
        (Money("USD", 1_230_000), 123),
        (Money("JPY", 500_000_000), 500),
        # No decimals, yet written with two.
        (Money("ISK", 5_000_000), 500),
        (Money("UGX", 5_000_000), 500),
        # Stripe writes it without decimals, ISO 4217 with two.
        (Money("MGA", 5_000_000), 5),
        (Money("KWD", 1_230_000), 1_230),
        (Money("HUF", 1_045_000_000), 104_500),
    ],
)
def test_amounts_are_written_as_stripe_writes_them(money: Money, minor: int) -> None:
    assert to_minor(money) == minor
    assert from_minor(minor, money.currency_code.lower()) == money


def test_what_would_lose_something_is_not_written() -> None:
    with pytest.raises(ValueError, match="whole number"):
        to_minor(Money("USD", 1_230_001))


@given(CURRENCIES, st.integers(0, 10**14), st.sampled_from(Operation))
def test_rounding_down_gives_what_the_operation_takes_and_leaves_less_than_a_step(
    currency: str, amount: int, operation: Operation
) -> None:
    taken = round_down(amount, currency, operation)
    step = step_micros(currency, operation)
    assert 0 <= amount - taken < step
    assert to_minor(Money(currency, taken)) * (step // to_minor(Money(currency, step))) >= 0
    if taken:
        assert check_step(Money(currency, taken), operation).amount_micros == taken


@pytest.mark.parametrize(
    ("money", "operation", "takes"),
    [
        (Money("HUF", 1_045_000_000), Operation.PAYOUT, True),
        (Money("HUF", 10_450_000), Operation.PAYOUT, False),
        (Money("HUF", 10_450_000), Operation.CHARGE, True),
        (Money("TWD", 10_450_000), Operation.PAYOUT, False),
        (Money("ISK", 1_500_000), Operation.CHARGE, False),
        (Money("KWD", 1_235_000), Operation.CHARGE, False),
        (Money("KWD", 1_230_000), Operation.CHARGE, True),
        (Money("USD", 1_234_567), Operation.PAYOUT, False),
    ],
)
def test_some_amounts_are_not_taken(money: Money, operation: Operation, takes: bool) -> None:
    if takes:
        assert check_step(money, operation) == money
    else:
        with pytest.raises(InvalidArgument, match="multiple"):
            check_step(money, operation)


def test_minimums_are_read_from_text() -> None:
    assert parse_minimums(" USD=1.00, EUR=0.5 ,") == {"USD": 1_000_000, "EUR": 500_000}
    assert parse_minimums("") == {}


@pytest.mark.parametrize("text", ["USD", "USD=", "XXX=1", "USD=0.0000001", "USD=-1", "USD=NaN", "USD=1=2"])
def test_what_is_not_a_minimum_is_said(text: str) -> None:
    with pytest.raises(MinimumsError):
        parse_minimums(text)


def test_a_minimum_is_at_least_what_can_be_moved() -> None:
    assert minimum_of({}, "USD") == 10_000
    assert minimum_of({"USD": 5_000_000}, "USD") == 5_000_000
    with pytest.raises(InvalidArgument, match="at least 5000000"):
        check_minimum(Money("USD", 4_000_000), {"USD": 5_000_000})
