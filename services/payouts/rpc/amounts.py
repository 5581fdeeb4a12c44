"""Amounts of requests."""

from services.kit.money import Money, check_amount, check_currency
from services.payouts.domain.units import Operation, check_step
from tallystick.common.v1 import money_pb2


def read_amount(amount: money_pb2.Money, operation: Operation, *, field: str = "amount") -> Money:
    """An amount above zero that the operation takes; raises InvalidArgument naming `field` otherwise."""
    currency = check_currency(amount.currency_code, field=f"{field}.currency_code")
    micros = check_amount(amount.amount_micros, field=f"{field}.amount_micros")
    return check_step(Money(currency, micros), operation, field=field)
