"""Payouts as CSV (RFC 4180), in pieces, so that any number of them takes the same memory."""

import csv
import io
from collections.abc import AsyncIterator
from typing import Final

from services.kit.db import Database
from services.kit.money import MICROS_PER_UNIT, MINOR_UNIT_DIGITS, Money
from services.kit.tenancy import Tenants, scope
from services.payouts.domain.payout import Payout
from services.payouts.store import payouts
from services.payouts.store.payouts import PayoutFilter

HEADER: Final = (
    "payout_id",
    "organization_id",
    "requested",
    "updated",
    "amount",
    "currency",
    "state",
    "bank_status",
    "method",
    "origin",
    "reversed",
    "failure_code",
    "failure_reason",
    "hold",
    "transfer_id",
    "bank_payout_id",
    "bank_failure_code",
    "bank_arrival",
)
_ROWS: Final = 1000
# A spreadsheet takes a cell that begins so for a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


async def csv_pieces(reader: Database, tenants: Tenants, wanted: PayoutFilter) -> AsyncIterator[bytes]:
    """The header and every payout of the filter, the oldest first; each piece ends with a line.

    Each piece is read in a transaction of its own: none stays open while a slow caller reads.
    """
    last: Payout | None = None
    yield _lines([HEADER])
    while True:
        async with reader.begin() as connection:
            await scope(connection, tenants)
            found = await payouts.list_oldest(connection, wanted, last, _ROWS)
        if found:
            yield _lines([_row(payout) for payout in found])
            last = found[-1]
        if len(found) < _ROWS:
            return


def _row(payout: Payout) -> tuple[str, ...]:
    currency = payout.money.currency_code
    arrival = payout.bank_arrival_time
    return (
        payout.payout_id,
        payout.organization_id,
        payout.create_time.isoformat(),
        payout.update_time.isoformat(),
        _decimal(payout.money),
        currency,
        payout.state,
        payout.bank_status,
        "stripe_transfer",
        payout.origin,
        _decimal(Money(currency, payout.reversed_micros)),
        payout.failure_code,
        _text(payout.failure_reason),
        payout.hold or "",
        payout.transfer_id or "",
        payout.bank_payout_id or "",
        payout.bank_failure_code,
        "" if arrival is None else arrival.isoformat(),
    )


def _decimal(money: Money) -> str:
    """Units of the currency with its decimals, and more where there is a fraction."""
    units, micros = divmod(money.amount_micros, MICROS_PER_UNIT)
    fraction = f"{micros:06d}".rstrip("0").ljust(MINOR_UNIT_DIGITS[money.currency_code], "0")
    return f"{units}.{fraction}" if fraction else str(units)


def _text(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _lines(rows: list[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
