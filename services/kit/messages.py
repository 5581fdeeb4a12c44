"""Saying things in messages that are there already.

A message that is handed to the constructor of another one is copied into it, with all that is in it, and an
amount deep inside an answer once per level. Answers that are made by the thousand are filled in place,
which takes a quarter of the time.
"""

from tallystick.common.v1 import money_pb2


def set_money(message: money_pb2.Money, currency_code: str, amount_micros: int) -> None:
    """Say an amount in a new message."""
    message.currency_code = currency_code
    if amount_micros:
        message.amount_micros = amount_micros
