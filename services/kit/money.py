"""Exact money: integers of millionths of a currency's unit. Never a float."""

from dataclasses import dataclass
from typing import Self

from services.kit.errors import InvalidArgument

MICROS_PER_UNIT = 1_000_000

# The bound on any one amount that is asked for: 100 million units. Balances, which are sums of such amounts,
# are bounded by int64, 92,233 times as much.
MAX_AMOUNT_MICROS = 10**14

_INT64_MAX = 2**63 - 1


def _digits(digits: int, codes: str) -> dict[str, int]:
    return dict.fromkeys(codes.split(), digits)


# ISO 4217: the codes that are money today, with the digits of their minor unit. Left out are precious metals,
# funds codes (BOV, CHE, CHW, CLF, COU, MXV, USN, UYI, UYW), units of account (XAD, XDR, XSU, XUA) and the
# codes for testing.
MINOR_UNIT_DIGITS: dict[str, int] = {
    **_digits(
        2,
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF"
        " CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL"
        " HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT"
        " MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB"
        " SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH"
        " USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG",
    ),
    **_digits(0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"),
    **_digits(3, "BHD IQD JOD KWD LYD OMR TND"),
}


@dataclass(frozen=True, slots=True, order=False)
class Money:
    """An exact amount of one currency.

    Arithmetic is checked: currencies must agree, and int64 must hold it.
    """

    currency_code: str
    amount_micros: int

    def __post_init__(self) -> None:
        check_currency(self.currency_code)
        if not -_INT64_MAX <= self.amount_micros <= _INT64_MAX:
            raise OverflowError(f"{self.amount_micros} micros do not fit into 64 bits")

    def __add__(self, other: Self) -> Self:
        self._same_currency(other)
        return type(self)(self.currency_code, self.amount_micros + other.amount_micros)

    def __sub__(self, other: Self) -> Self:
        self._same_currency(other)
        return type(self)(self.currency_code, self.amount_micros - other.amount_micros)

    def __neg__(self) -> Self:
        return type(self)(self.currency_code, -self.amount_micros)

    def __str__(self) -> str:
        """For people, like "1.50 USD": the decimals of the currency, more only where there is a fraction."""
        units, fraction = divmod(abs(self.amount_micros), MICROS_PER_UNIT)
        digits = MINOR_UNIT_DIGITS[self.currency_code]
        decimals = f"{fraction:06d}".rstrip("0").ljust(digits, "0")
        sign = "-" if self.amount_micros < 0 else ""
        return f"{sign}{units}{'.' if decimals else ''}{decimals} {self.currency_code}"

    def _same_currency(self, other: Self) -> None:
        if self.currency_code != other.currency_code:
            raise ValueError(f"{self.currency_code} and {other.currency_code} do not mix")


def check_currency(code: str, *, field: str = "currency_code") -> str:
    """`code`, if it is a currency; raises InvalidArgument naming `field` otherwise."""
    if code not in MINOR_UNIT_DIGITS:
        raise InvalidArgument.of(field, f"{code[:16]!r} is not an active ISO 4217 currency code")
    return code


def check_amount(amount_micros: int, *, field: str, minimum: int = 1) -> int:
    """`amount_micros`, if it is from `minimum` to MAX_AMOUNT_MICROS; raises InvalidArgument naming `field`
    otherwise.
    """
    if not minimum <= amount_micros <= MAX_AMOUNT_MICROS:
        raise InvalidArgument.of(field, f"must be from {minimum} to {MAX_AMOUNT_MICROS} micros")
    return amount_micros


def round_half_even(numerator: int, denominator: int) -> int:
    """The integer nearest to numerator / denominator; halfway, the even one.

    Raises ValueError unless denominator > 0.
    """
    if denominator <= 0:
        raise ValueError("the denominator must be positive")
    quotient, remainder = divmod(numerator, denominator)
    doubled = 2 * remainder
    if doubled > denominator or (doubled == denominator and quotient % 2 == 1):
        quotient += 1
    return quotient
