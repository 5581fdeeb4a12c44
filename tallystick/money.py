"""Exact money: integers of millionths of a currency's unit. Never a float."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import total_ordering

MICROS_PER_UNIT = 1_000_000

_INT64_MAX = 2**63 - 1
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_AMOUNT = re.compile(r"[+-]?\d{1,20}(\.\d{1,20})?", re.ASCII)
# Digits of the minor unit of currencies (ISO 4217) that have not two; only for showing amounts.
_NO_DIGITS = (
    *("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW"),
    *("PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"),
)
_THREE_DIGITS = ("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND")
_DIGITS = dict.fromkeys(_NO_DIGITS, 0) | dict.fromkeys(_THREE_DIGITS, 3)


@total_ordering
@dataclass(frozen=True, slots=True)
class Money:
    """An exact amount of one currency: `micros` are millionths of its unit.

    >>> Money("USD", 1_500_000)
    Money(currency='USD', micros=1500000)
    >>> str(Money.of("1.50")), Money.of("1.50").decimal
    ('1.50 USD', Decimal('1.500000'))
    >>> Money.of("0.10") + Money.of("0.20") == Money.of("0.30")
    True

    Amounts of different currencies neither add up nor compare: that raises ValueError. There is no
    conversion.
    """

    currency: str
    micros: int

    def __post_init__(self) -> None:
        # bool is an int to Python, and never an amount.
        if isinstance(self.micros, bool) or not isinstance(self.micros, int):
            raise TypeError(f"micros are an int, not {type(self.micros).__name__}")
        if not _CURRENCY.fullmatch(self.currency):
            raise ValueError(f"{self.currency!r} is not an ISO 4217 code such as 'USD'")
        if abs(self.micros) > _INT64_MAX:
            raise OverflowError(f"{self.micros} micros do not fit into 64 bits")

    @classmethod
    def of(cls, amount: Money | Decimal | str | int, currency: str = "USD") -> Money:
        """An amount as people write it: "0.50" and Decimal("0.50") are units, an int is micros.

        >>> Money.of("0.50") == Money.of(500_000)
        True

        Raises TypeError for a float, which is not exact, and ValueError for what is finer than a micro, not a
        number, or Money of another currency.
        """
        if isinstance(amount, Money):
            if amount.currency != currency:
                raise ValueError(f"{amount} is not an amount of {currency}")
            return amount
        if isinstance(amount, int):
            return cls(currency, amount)
        if isinstance(amount, str):
            if not _AMOUNT.fullmatch(amount):
                raise ValueError(f"{amount!r} is not a decimal number such as '0.50'")
            amount = Decimal(amount)
        if not isinstance(amount, Decimal):
            raise TypeError(f"an amount is a str, a Decimal or an int of micros, not {type(amount).__name__}")
        return cls(currency, _micros(amount))

    @property
    def decimal(self) -> Decimal:
        """The exact amount in units of the currency, with six decimals."""
        # Built from digits: arithmetic would round to the precision of the caller's decimal context.
        digits = tuple(int(digit) for digit in str(abs(self.micros)))
        return Decimal((int(self.micros < 0), digits, -6))

    def __str__(self) -> str:
        """For people, like "1.50 USD": the decimals of the currency, more only where there is a fraction."""
        units, fraction = divmod(abs(self.micros), MICROS_PER_UNIT)
        decimals = f"{fraction:06d}".rstrip("0").ljust(_DIGITS.get(self.currency, 2), "0")
        sign = "-" if self.micros < 0 else ""
        return f"{sign}{units}{'.' if decimals else ''}{decimals} {self.currency}"

    def __add__(self, other: Money) -> Money:
        return Money(self.currency, self.micros + self._micros_of(other))

    def __sub__(self, other: Money) -> Money:
        return Money(self.currency, self.micros - self._micros_of(other))

    def __neg__(self) -> Money:
        return Money(self.currency, -self.micros)

    def __lt__(self, other: Money) -> bool:
        return self.micros < self._micros_of(other)

    def __bool__(self) -> bool:
        """Whether it is anything but zero."""
        return self.micros != 0

    def _micros_of(self, other: object) -> int:
        if not isinstance(other, Money):
            raise TypeError(f"Money goes with Money, not with {type(other).__name__}")
        if other.currency != self.currency:
            raise ValueError(f"{self.currency} and {other.currency} do not mix")
        return other.micros


def _micros(amount: Decimal) -> int:
    """The micros of an amount in units, computed on its digits: no decimal context can round it."""
    sign, digits, exponent = amount.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"{amount} is not a finite number")
    # Bounds the work below; no amount that fits into 64 bits is longer.
    if len(digits) > 40 or abs(exponent) > 40:
        raise ValueError(f"{amount} is not an amount of money")
    coefficient = int("".join(map(str, digits)))
    power = exponent + 6
    numerator: int = coefficient * 10 ** max(power, 0)
    denominator: int = 10 ** max(-power, 0)
    micros, finer = divmod(numerator, denominator)
    if finer:
        raise ValueError(f"{amount} is finer than a millionth of a unit")
    return -micros if sign else micros
