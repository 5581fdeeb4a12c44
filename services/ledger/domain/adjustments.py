"""What an operator may adjust. Amounts are signed micros; positive is a credit."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from services.kit.money import check_amount, check_currency
from services.ledger.domain.accounts import OWNER_PREFIX, PLATFORM_OWNER, AccountKind, AccountRef
from services.ledger.domain.violations import Violations

MAX_POSTINGS = 100
MIN_REASON_LENGTH = 10
# How long a proposal waits for somebody else.
PROPOSAL_LASTS = timedelta(days=7)

# These follow from open charges, payouts and reversals, row by row; moving their total alone would
# contradict the rows.
_NOT_ADJUSTABLE = {
    AccountKind.CUSTOMER_RECEIVABLE,
    AccountKind.CUSTOMER_UNPAID,
    AccountKind.UNPAID_OFFSET,
    AccountKind.PAYOUTS_IN_TRANSIT,
    AccountKind.CUSTOMER_CHARGEBACKS,
}


def check(postings: Sequence[tuple[AccountRef, int]]) -> None:
    """Raise InvalidArgument with everything that is wrong with an adjustment."""
    violations = Violations()
    violations.require(2 <= len(postings) <= MAX_POSTINGS, "postings", f"must be two to {MAX_POSTINGS}")
    totals: defaultdict[str, int] = defaultdict(int)
    seen: set[AccountRef] = set()
    for number, (account, amount) in enumerate(postings):
        path = f"postings[{number}]"
        totals[account.currency_code] += amount
        violations.require(account not in seen, f"{path}.account", "comes twice")
        seen.add(account)
        violations.require(account.kind not in _NOT_ADJUSTABLE, f"{path}.account.kind", "cannot be adjusted")
        violations.require(
            _may_own(account.owner_id, account.kind), f"{path}.account.owner_id", f"cannot own {account.kind}"
        )
        violations.check(check_currency, account.currency_code, field=f"{path}.account.currency_code")
        # Signed: a debit is as large as its opposite.
        violations.check(check_amount, abs(amount), field=f"{path}.amount.amount_micros")
    for currency, total in totals.items():
        violations.require(
            total == 0, "postings", f"must add up to zero in {currency}, not to {total} micros"
        )
    violations.raise_if_any()


def _may_own(owner_id: str, kind: AccountKind) -> bool:
    prefix = OWNER_PREFIX[kind]
    return owner_id == PLATFORM_OWNER if prefix == PLATFORM_OWNER else owner_id.startswith(f"{prefix}_")


class AdjustmentState(StrEnum):
    """How an adjustment stands."""

    PROPOSED = "proposed"
    POSTED = "posted"
    REJECTED = "rejected"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What an operator wants to be adjusted, and what became of it."""

    adjustment_id: str
    state: AdjustmentState
    postings: tuple[tuple[AccountRef, int], ...]
    reason: str
    proposer_api_key_id: str
    create_time: datetime
    expire_time: datetime
    # Empty, and None, while nobody has decided.
    decider_api_key_id: str
    decide_time: datetime | None
    decision_reason: str
    transaction_id: str
