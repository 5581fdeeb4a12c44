"""How much can be charged at once in each currency."""

from decimal import Decimal
from typing import Final

from services.kit.errors import InvalidArgument
from services.kit.money import MICROS_PER_UNIT, Money
from services.payouts.domain.units import Operation, check_step, step_micros, to_minor

# Source: Stripe's page on currencies, minimum charge amounts. A currency that is not here has the minimum of
# the one that it is settled in, which only Stripe knows: there it is Stripe that refuses.
_MINIMUMS: Final = {
    **dict.fromkeys(("AUD", "BRL", "CAD", "CHF", "EUR", "INR", "NZD", "SGD", "USD"), "0.50"),
    **dict.fromkeys(("AED", "MYR", "PLN", "RON"), "2.00"),
    **dict.fromkeys(("NOK", "SEK"), "3.00"),
    **dict.fromkeys(("MXN", "THB"), "10.00"),
    "CZK": "15.00",
    "DKK": "2.50",
    "GBP": "0.30",
    "HKD": "4.00",
    "HUF": "175.00",
    "JPY": "50",
}
_MINIMUM_MICROS: Final = {code: int(Decimal(amount) * MICROS_PER_UNIT) for code, amount in _MINIMUMS.items()}
# Eight digits of minor units.
_MOST_MINOR: Final = 99_999_999


def check_chargeable(money: Money, *, field: str = "amount") -> Money:
    """`money`, if it can be charged at once; raises InvalidArgument naming `field` otherwise."""
    check_step(money, Operation.CHARGE, field=field)
    least = _MINIMUM_MICROS.get(money.currency_code, step_micros(money.currency_code, Operation.CHARGE))
    if money.amount_micros < least:
        raise InvalidArgument.of(f"{field}.amount_micros", f"must be at least {least} micros")
    if to_minor(money) > _MOST_MINOR:
        raise InvalidArgument.of(f"{field}.amount_micros", "is more than can be charged at once")
    return money
