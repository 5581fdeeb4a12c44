"""What is given up because it will not be paid. Amounts are micros."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

MIN_REASON_LENGTH = 10
MAX_REASON_LENGTH = 500


class WriteOffKind(StrEnum):
    """What is given up; values as in ledger.write_off_kind."""

    UNPAID = "unpaid"
    RECEIVABLE = "receivable"
    CHARGEBACKS = "chargebacks"
    CLAWBACK = "clawback"

    @property
    def is_of_charge(self) -> bool:
        return self in (WriteOffKind.UNPAID, WriteOffKind.RECEIVABLE)


@dataclass(frozen=True, slots=True)
class WriteOff:
    """A write-off as it was posted."""

    transaction_id: str
    kind: WriteOffKind
    # Who need not pay it any more.
    owner_id: str
    # Empty unless it is of a charge.
    charge_id: str
    currency_code: str
    amount: int
    reason: str
    actor_api_key_id: str
    create_time: datetime
