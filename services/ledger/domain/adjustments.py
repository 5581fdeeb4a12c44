"""What an operator may adjust. Amounts are signed micros; positive is a credit."""

from collections import defaultdict
from collections.abc import Sequence

from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.money import MAX_AMOUNT_MICROS, MINOR_UNIT_DIGITS
from services.ledger.domain.accounts import OWNER_PREFIX, PLATFORM_OWNER, AccountKind, AccountRef

MAX_POSTINGS = 100
MIN_REASON_LENGTH = 10

# These follow from open charges, row by row; moving their total alone would contradict the rows.
_NOT_ADJUSTABLE = {
    AccountKind.CUSTOMER_RECEIVABLE,
    AccountKind.CUSTOMER_UNPAID,
    AccountKind.UNPAID_OFFSET,
}


def check(postings: Sequence[tuple[AccountRef, int]]) -> None:
    """Raise InvalidArgument with everything that is wrong with an adjustment."""
    violations: list[FieldViolation] = []
    if not 2 <= len(postings) <= MAX_POSTINGS:
        violations.append(FieldViolation("postings", f"must be two to {MAX_POSTINGS}"))
    totals: defaultdict[str, int] = defaultdict(int)
    seen: set[AccountRef] = set()
    for number, (account, amount) in enumerate(postings):
        path = f"postings[{number}]"
        totals[account.currency_code] += amount
        if account in seen:
            violations.append(FieldViolation(f"{path}.account", "comes twice"))
        seen.add(account)
        if account.kind in _NOT_ADJUSTABLE:
            violations.append(FieldViolation(f"{path}.account.kind", "cannot be adjusted"))
        if not _may_own(account.owner_id, account.kind):
            violations.append(FieldViolation(f"{path}.account.owner_id", f"cannot own {account.kind}"))
        if account.currency_code not in MINOR_UNIT_DIGITS:
            violations.append(
                FieldViolation(f"{path}.account.currency_code", "is not an active ISO 4217 currency code")
            )
        if not 0 < abs(amount) <= MAX_AMOUNT_MICROS:
            violations.append(
                FieldViolation(
                    f"{path}.amount.amount_micros", f"must be from 1 to {MAX_AMOUNT_MICROS}, signed"
                )
            )
    violations.extend(
        FieldViolation("postings", f"must add up to zero in {currency}, not to {total} micros")
        for currency, total in totals.items()
        if total != 0
    )
    if violations:
        raise InvalidArgument(
            "; ".join(f"{violation.field}: {violation.description}" for violation in violations),
            field_violations=violations,
        )


def _may_own(owner_id: str, kind: AccountKind) -> bool:
    prefix = OWNER_PREFIX[kind]
    return owner_id == PLATFORM_OWNER if prefix == PLATFORM_OWNER else owner_id.startswith(f"{prefix}_")
