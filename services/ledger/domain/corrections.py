"""What is taken back of charges. Amounts are micros."""

from dataclasses import dataclass
from datetime import datetime

MAX_CORRECTION_ID_LENGTH = 128
MIN_REASON_LENGTH = 1
MAX_REASON_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Refund:
    """What the customer got; the amounts add up to the correction's."""

    unpaid: int
    receivable: int
    credits: int


@dataclass(frozen=True, slots=True)
class CorrectedEarning:
    """What was taken of one payee's share."""

    organization_id: str
    net: int
    platform_fee: int
    processing_fee: int

    @property
    def gross(self) -> int:
        return self.net + self.platform_fee + self.processing_fee


@dataclass(frozen=True, slots=True)
class Correction:
    """A correction as a reader may see it: without what is none of the reader's business."""

    charge_id: str
    correction_id: str
    # Among those of its charge, from 1.
    number: int
    amount: int
    refund: Refund | None
    earnings: tuple[CorrectedEarning, ...]
    reason: str
    transaction_id: str
    create_time: datetime
