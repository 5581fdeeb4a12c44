"""What amounts the payment processor takes, in each currency.

Inside, money is micros. Stripe wants minor units, whose size is not always that of ISO 4217, and some
operations take only some of them. Source: Stripe's page on currencies (zero-decimal, three-decimal and
special cases).
"""

from enum import StrEnum
from typing import Final

from services.kit.errors import InvalidArgument
from services.kit.money import MICROS_PER_UNIT, Money, check_amount, check_currency


class Operation(StrEnum):
    """What the money is for: the rules differ."""

    CHARGE = "charge"
    PAYOUT = "payout"


_ZERO_DECIMAL: Final = frozenset(
    ["BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"]
)
_THREE_DECIMAL: Final = frozenset(["BHD", "JOD", "KWD", "OMR", "TND"])
# Minor units per step where not every number of them is taken. ISK and UGX have no decimals, but are written
# with two; three-decimal currencies end in a zero; the banks of HUF and TWD take whole units only.
_STEPS: Final[dict[tuple[str, Operation], int]] = {
    **{(code, operation): 100 for code in ("ISK", "UGX") for operation in Operation},
    **{(code, operation): 10 for code in _THREE_DECIMAL for operation in Operation},
    ("HUF", Operation.PAYOUT): 100,
    ("TWD", Operation.PAYOUT): 100,
}


def micros_per_minor(currency_code: str) -> int:
    """How many micros one of Stripe's minor units is."""
    if currency_code in _ZERO_DECIMAL:
        return MICROS_PER_UNIT
    return MICROS_PER_UNIT // (1000 if currency_code in _THREE_DECIMAL else 100)


def step_micros(currency_code: str, operation: Operation) -> int:
    """The smallest amount that the operation takes, of which every other is a multiple."""
    return micros_per_minor(currency_code) * _STEPS.get((currency_code, operation), 1)


def to_minor(money: Money) -> int:
    """The amount as Stripe writes it. Raises ValueError if that would lose something."""
    minor, rest = divmod(money.amount_micros, micros_per_minor(money.currency_code))
    if rest:
        raise ValueError(f"{money} is not a whole number of minor units")
    return minor


def from_minor(amount: int, currency: str) -> Money:
    """The amount that Stripe writes so; it writes currencies in lower case."""
    code = currency.upper()
    return Money(code, amount * micros_per_minor(code))


def round_down(amount_micros: int, currency_code: str, operation: Operation) -> int:
    """The most of an amount that the operation takes; the rest stays where it is."""
    return amount_micros - amount_micros % step_micros(currency_code, operation)


def check_step(money: Money, operation: Operation, *, field: str = "amount") -> Money:
    """`money`, if the operation takes it; raises InvalidArgument naming `field` otherwise."""
    check_currency(money.currency_code, field=f"{field}.currency_code")
    name = f"{field}.amount_micros"
    check_amount(money.amount_micros, field=name)
    step = step_micros(money.currency_code, operation)
    if money.amount_micros % step:
        raise InvalidArgument.of(
            name, f"must be a multiple of {step} micros: what can be moved in {money.currency_code}"
        )
    return money
