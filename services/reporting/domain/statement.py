"""Movements of accounts, between the balances before and after them. Amounts are micros."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.kit.runs import ChargeKind, ServicePeriod
from services.reporting.domain.owner import OwnerKind

# Whose balance means something to its owner: not the other side of a memorandum, nor the platform's fees.
STATEMENT_KINDS: Final[Mapping[OwnerKind, tuple[str, ...]]] = {
    OwnerKind.ORGANIZATION: ("organization_payable", "payouts_in_transit", "promotions"),
    OwnerKind.CUSTOMER: (
        "customer_credits",
        "customer_receivable",
        "customer_unpaid",
        "customer_chargebacks",
    ),
}


@dataclass(frozen=True, slots=True)
class Movement:
    """One entry of an account."""

    kind: str
    position: int
    entry_number: int
    transaction_id: str
    type: str
    amount: int
    charge_id: str
    correction_id: str
    payout_id: str
    reason: str
    occur_time: datetime
    create_time: datetime
    # What its charge is for; None if it has none, or for no charge.
    charge_kind: ChargeKind | None
    service: ServicePeriod | None


@dataclass(frozen=True, slots=True)
class Total:
    """What one type of transaction moved an account by."""

    kind: str
    type: str
    amount: int
    movement_count: int


@dataclass(frozen=True, slots=True)
class StatementAccount:
    """An account over a period."""

    kind: str
    opening: int
    totals: tuple[Total, ...]

    @property
    def closing(self) -> int:
        """Its balance after the period."""
        return self.opening + sum(total.amount for total in self.totals)


def accounts(
    owner: OwnerKind, openings: Mapping[str, int], totals: Iterable[Total]
) -> list[StatementAccount]:
    """The accounts that have a balance or a movement, in the order of STATEMENT_KINDS."""
    by_kind: dict[str, list[Total]] = {}
    for total in totals:
        by_kind.setdefault(total.kind, []).append(total)
    return [
        StatementAccount(kind, openings.get(kind, 0), tuple(by_kind.get(kind, ())))
        for kind in STATEMENT_KINDS[owner]
        if openings.get(kind, 0) or kind in by_kind
    ]
