"""The smallest payout of each currency."""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from services.kit.errors import InvalidArgument
from services.kit.money import MICROS_PER_UNIT, MINOR_UNIT_DIGITS, Money
from services.payouts.domain.units import Operation, step_micros


class MinimumsError(ValueError):
    """The text does not say minimums; the message says why."""


def parse_minimums(text: str) -> dict[str, int]:
    """Micros by currency, from "USD=1.00,EUR=0.50". Raises MinimumsError."""
    minimums = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        code, _, amount = (side.strip() for side in part.partition("="))
        if code not in MINOR_UNIT_DIGITS:
            raise MinimumsError(f"{part!r} does not begin with a currency and '='")
        try:
            micros = Decimal(amount) * MICROS_PER_UNIT
            if not micros.is_finite() or micros != int(micros) or micros < 0:
                raise MinimumsError(f"{part!r} is not an amount of whole micros")
        except InvalidOperation:
            raise MinimumsError(f"{part!r} has no amount") from None
        minimums[code] = int(micros)
    return minimums


def minimum_of(minimums: Mapping[str, int], currency_code: str) -> int:
    """The smallest payout in a currency, in micros: never less than what can be moved."""
    return max(minimums.get(currency_code, 0), step_micros(currency_code, Operation.PAYOUT))


def check_minimum(money: Money, minimums: Mapping[str, int], *, field: str = "amount") -> Money:
    """`money`, if it is not below the minimum; raises InvalidArgument naming `field` otherwise."""
    minimum = minimum_of(minimums, money.currency_code)
    if money.amount_micros < minimum:
        raise InvalidArgument.of(f"{field}.amount_micros", f"must be at least {minimum} micros")
    return money
