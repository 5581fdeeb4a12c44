"""Accounts, and the balances that people ask for. Amounts are micros."""

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import NamedTuple

PLATFORM_OWNER = "platform"
DEFAULT_CURRENCY = "USD"


class AccountKind(StrEnum):
    """Positions of the chart of accounts (docs/accounting.md); values as in ledger.account_kind."""

    CUSTOMER_CREDITS = "customer_credits"
    CUSTOMER_RECEIVABLE = "customer_receivable"
    CUSTOMER_UNPAID = "customer_unpaid"
    UNPAID_OFFSET = "unpaid_offset"
    ORGANIZATION_PAYABLE = "organization_payable"
    PLATFORM_FEES = "platform_fees"
    PROCESSING_FEES = "processing_fees"
    STRIPE_CLEARING = "stripe_clearing"
    PROMOTIONS = "promotions"
    ADJUSTMENTS = "adjustments"
    PAYOUTS_IN_TRANSIT = "payouts_in_transit"
    CUSTOMER_CHARGEBACKS = "customer_chargebacks"
    STRIPE_FEES = "stripe_fees"
    WRITE_OFFS = "write_offs"
    CLAWBACK_LOSSES = "clawback_losses"
    EXPIRED_CREDITS = "expired_credits"


# Who may own an account of each kind, by the prefix of the id.
OWNER_PREFIX = {
    AccountKind.CUSTOMER_CREDITS: "cus",
    AccountKind.CUSTOMER_RECEIVABLE: "cus",
    AccountKind.CUSTOMER_UNPAID: "cus",
    AccountKind.UNPAID_OFFSET: "cus",
    AccountKind.ORGANIZATION_PAYABLE: "org",
    AccountKind.PLATFORM_FEES: "org",
    AccountKind.PROCESSING_FEES: "org",
    AccountKind.STRIPE_CLEARING: PLATFORM_OWNER,
    AccountKind.PROMOTIONS: PLATFORM_OWNER,
    AccountKind.ADJUSTMENTS: PLATFORM_OWNER,
    AccountKind.PAYOUTS_IN_TRANSIT: "org",
    AccountKind.CUSTOMER_CHARGEBACKS: "cus",
    AccountKind.STRIPE_FEES: PLATFORM_OWNER,
    AccountKind.WRITE_OFFS: PLATFORM_OWNER,
    AccountKind.CLAWBACK_LOSSES: PLATFORM_OWNER,
    AccountKind.EXPIRED_CREDITS: PLATFORM_OWNER,
}


class TransactionType(StrEnum):
    """What happened; values as in ledger.transaction_type."""

    CHARGE = "charge"
    COLLECTION = "collection"
    PURCHASE = "purchase"
    PROMOTION = "promotion"
    ADJUSTMENT = "adjustment"
    PAYOUT = "payout"
    PAYOUT_COMPLETION = "payout_completion"
    PAYOUT_RETURN = "payout_return"
    PAYOUT_REVERSAL = "payout_reversal"
    PURCHASE_REFUND = "purchase_refund"
    PURCHASE_CHARGEBACK = "purchase_chargeback"
    PURCHASE_REINSTATEMENT = "purchase_reinstatement"
    PROCESSOR_FEE = "processor_fee"
    CORRECTION = "correction"
    WRITE_OFF = "write_off"
    CREDIT_EXPIRY = "credit_expiry"
    PROMOTION_SETTLEMENT = "promotion_settlement"


@dataclass(frozen=True, slots=True)
class AccountRef:
    """Names an account."""

    owner_id: str
    kind: AccountKind
    currency_code: str


@dataclass(frozen=True, slots=True)
class Account:
    """An account with all that was ever posted to it."""

    ref: AccountRef
    credits: int
    debits: int


@dataclass(frozen=True, slots=True)
class HeldCredits:
    """What a customer's held credits are held for; the four amounts add up to what is held."""

    leased: int
    # 0 if there is no current lease.
    lease_epoch: int
    draining: int
    runs: int
    outcomes: int


class CustomerBalance(NamedTuple):
    """What a customer has and owes in one currency."""

    customer_id: str
    currency_code: str
    available: int = 0
    held: int = 0
    receivable: int = 0
    unpaid: int = 0
    credit_limit: int = 0
    held_receivable: int = 0
    chargebacks: int = 0
    # Not every answer says so much.
    held_credits: HeldCredits | None = None
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class EarningsBalance:
    """What an organization has earned and not been paid, in one currency."""

    organization_id: str
    currency_code: str
    available: int = 0
    pending: int = 0
    uncollected: int = 0
    platform_fees: int = 0
    processing_fees: int = 0

    @property
    def clawed_back(self) -> int:
        """How far the available earnings are below zero."""
        return max(0, -self.available)


@dataclass(frozen=True, slots=True)
class EarningsBucket:
    """What must still happen before an entry on organization_payable can be paid out."""

    collected: bool
    earned_on: date
    available_on: date


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a transaction; a positive amount is a credit."""

    entry_number: int
    account: AccountRef
    amount: int
    bucket: EarningsBucket | None
    account_version: int | None


@dataclass(frozen=True, slots=True)
class Transaction:
    """An immutable, balanced set of entries (of which a reader may see some only)."""

    transaction_id: str
    partition_id: str
    type: TransactionType
    charge_id: str
    payout_id: str
    external_id: str
    correction_id: str
    occur_time: datetime
    create_time: datetime
    reason: str
    actor_api_key_id: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class PostedEntry:
    """An entry with what its transaction says of it."""

    transaction_id: str
    type: TransactionType
    charge_id: str
    payout_id: str
    correction_id: str
    create_time: datetime
    entry: Entry
