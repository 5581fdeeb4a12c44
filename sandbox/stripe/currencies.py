"""What minor units a currency has, and which amounts a bank payout may have."""

from __future__ import annotations

from sandbox.stripe.errors import invalid

# Paid out in whole units only, although their amounts are given in hundredths.
_WHOLE_UNITS_ONLY = frozenset({"huf", "twd", "isk", "ugx"})
ZERO_DECIMAL = frozenset(
    {"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "pyg", "rwf", "vnd", "vuv", "xaf", "xof"}
)
_THREE_DECIMALS = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
# A charge below about half a dollar is refused. The stand-in knows no rates: one number for all.
_LEAST_CHARGE = 50


def check_charge(amount: int, currency: str) -> None:
    """Raises:
    StripeError: too small, or in steps that the currency does not have.
    """
    if amount < (_LEAST_CHARGE if currency not in ZERO_DECIMAL else 1):
        raise invalid("Amount is below the least that can be charged", "amount_too_small", "amount")
    step = 10 if currency in _THREE_DECIMALS else 100 if currency in ("isk", "ugx") else 1
    _check_step(amount, currency, step)


def check_payout(amount: int, currency: str) -> None:
    """Raises:
    StripeError: not above zero, or in steps that payouts of the currency do not have.
    """
    if amount < 1:
        raise invalid("This value must be greater than or equal to 1.", "parameter_invalid_integer", "amount")
    _check_step(amount, currency, 100 if currency in _WHOLE_UNITS_ONLY else 1)


def _check_step(amount: int, currency: str, step: int) -> None:
    if amount % step:
        raise invalid(
            f"Amounts in {currency} must be divisible by {step} here", "invalid_charge_amount", "amount"
        )
