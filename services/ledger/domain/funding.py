"""What money at the payment processor does by itself. Amounts are micros."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.ledger.domain.accounts import TransactionType


class ReversalKind(StrEnum):
    """Why money of a purchase went back; values are the types of the transactions that post it."""

    REFUND = TransactionType.PURCHASE_REFUND.value
    CHARGEBACK = TransactionType.PURCHASE_CHARGEBACK.value


@dataclass(frozen=True, slots=True)
class Purchase:
    """What a customer paid, under the key that it was granted with."""

    customer_id: str
    purchase_key: str
    currency_code: str
    amount: int


@dataclass(frozen=True, slots=True)
class PurchaseReversal:
    """Money of a purchase that went back, and what came again of it."""

    customer_id: str
    reversal_id: str
    purchase_key: str
    kind: ReversalKind
    currency_code: str
    amount: int
    # What the customer's credits covered.
    from_credits: int
    # What of it had expired, which the platform had kept. The customer owed the rest from then on.
    from_expired: int
    transaction_id: str
    create_time: datetime
    reinstated: int
    reinstatement_id: str
    reinstatement_transaction_id: str


@dataclass(frozen=True, slots=True)
class ClearingMovement:
    """An entry of stripe_clearing: negative when money came to the platform, positive when it left."""

    transaction_id: str
    entry_number: int
    type: TransactionType
    owner_id: str
    external_id: str
    payout_id: str
    currency_code: str
    amount: int
    create_time: datetime
