"""Credit lots: what each grant has left. Amounts are micros."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from services.ledger.domain.accounts import PLATFORM_OWNER, TransactionType

DEFAULT_PRIORITY: Final = 50
MAX_PRIORITY: Final = 100


@dataclass(frozen=True, slots=True)
class GrantTerms:
    """What credits are granted on: the transaction that adds them, and what their lot is to be like."""

    type: TransactionType
    # Who pays for what a promotion buys.
    funder_id: str = PLATFORM_OWNER
    # Lower is spent first.
    priority: int = DEFAULT_PRIORITY
    expire_time: datetime | None = None


class LotSource(StrEnum):
    """Where the credits of a lot came from; values as in ledger.lot_source, promotions by who funds them."""

    PURCHASE = "purchase"
    PLATFORM_PROMOTION = "platform_promotion"
    ORGANIZATION_PROMOTION = "organization_promotion"
    ADJUSTMENT = "adjustment"
    REINSTATEMENT = "reinstatement"


class LotState(StrEnum):
    """What may still become of a lot."""

    OPEN = "open"
    SPENT = "spent"
    EXPIRED = "expired"
    EXPIRE_DUE = "expire_due"


@dataclass(frozen=True, slots=True)
class CreditLot:
    """What a grant has left."""

    customer_id: str
    currency_code: str
    lot_id: str
    source: LotSource
    # Empty unless it is an organization's promotion.
    funder_organization_id: str
    amount: int
    remaining: int
    expired: int
    expire_time: datetime | None
    priority: int
    create_time: datetime

    def state(self, now: datetime) -> LotState:
        """What it is at this time."""
        if self.remaining:
            is_over = self.expire_time is not None and self.expire_time <= now
            return LotState.EXPIRE_DUE if is_over else LotState.OPEN
        return LotState.EXPIRED if self.expired else LotState.SPENT
