"""What payouts take from organizations' earnings. Amounts are micros."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class PayoutDebitState(StrEnum):
    """What became of a debit; values as in ledger.payout_debit_state."""

    IN_TRANSIT = "in_transit"
    COMPLETED = "completed"
    RETURNED = "returned"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class PayoutDebit:
    """What one payout took. `available` is what could have been paid when it was asked for.

    `freeze_reason`: why payouts were frozen, if it was refused for that.
    """

    organization_id: str
    payout_id: str
    currency_code: str
    amount: int
    state: PayoutDebitState
    reversed: int
    available: int
    transaction_id: str
    end_transaction_id: str
    create_time: datetime
    end_time: datetime | None
    freeze_reason: str | None


@dataclass(frozen=True, slots=True)
class PayableEarnings:
    """What an organization could be paid now in one currency, and the part that was earned before a date."""

    currency_code: str
    payable: int
    available: int
