"""The ledger, small and obviously right: one charge after the other, in exact fractions.

It knows one currency. Amounts are micros.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor


def largest_remainder(amount: int, weights: list[int]) -> list[int]:
    """amount in proportion to the weights; what is left goes to the largest fractions, in order."""
    total = sum(weights)
    if total == 0:
        return [0] * len(weights)
    exact = [Fraction(amount * weight, total) for weight in weights]
    shares = [floor(share) for share in exact]
    by_fraction = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_fraction[: amount - sum(shares)]:
        shares[i] += 1
    return shares


@dataclass
class Charge:
    """A charge and what is still open of its legs: net, platform fee and processing fee of each payee."""

    content: tuple[object, ...]
    organizations: list[str]
    from_credits: int
    uncollected: list[int]
    unearned: list[int]


@dataclass
class LedgerOracle:
    """Balances by owner, and every charge by its id."""

    shares: dict[str, tuple[int, int]]  # organization -> platform and processing basis points
    credits: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    credit_limit: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    collected: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    uncollected: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    platform_fees: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    processing_fees: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    charges: dict[tuple[str, str], Charge] = field(default_factory=dict)
    grants: dict[tuple[str, str], int] = field(default_factory=dict)

    def receivable(self, customer: str) -> int:
        return sum(
            sum(charge.uncollected) for (payer, _), charge in self.charges.items() if payer == customer
        )

    def unpaid(self, customer: str) -> int:
        return sum(sum(charge.unearned) for (payer, _), charge in self.charges.items() if payer == customer)

    def charge(self, customer: str, workflow: str, gross: int, payees: list[tuple[str, int]]) -> str:
        """'posted', 'duplicate' or 'reused'."""
        content = (gross, tuple(payees))
        known = self.charges.get((customer, workflow))
        if known is not None:
            return "duplicate" if known.content == content else "reused"
        from_credits = min(gross, self.credits[customer])
        room = max(0, self.credit_limit[customer] - self.receivable(customer))
        from_receivable = min(gross - from_credits, room)
        legs = self._legs(gross, payees)
        paid = largest_remainder(from_credits, legs)
        rest = [leg - part for leg, part in zip(legs, paid, strict=True)]
        owed = largest_remainder(from_receivable, rest)
        charge = Charge(
            content=content,
            organizations=[organization for organization, _ in payees],
            from_credits=from_credits,
            uncollected=owed,
            unearned=[leg - part for leg, part in zip(rest, owed, strict=True)],
        )
        self.credits[customer] -= from_credits
        self._earn(charge, paid, collected=True)
        self._earn(charge, owed, collected=False)
        self.charges[customer, workflow] = charge
        return "posted"

    def grant(self, customer: str, key: str, amount: int) -> str:
        """'posted', 'duplicate' or 'reused'. Collects receivables before unpaid charges, oldest first."""
        if (customer, key) in self.grants:
            return "duplicate" if self.grants[customer, key] == amount else "reused"
        self.grants[customer, key] = amount
        self.credits[customer] += amount
        own = [charge for (payer, _), charge in self.charges.items() if payer == customer]
        for charge in own:
            parts = self._take(customer, charge.uncollected)
            self._earn(charge, parts, collected=True, fees=False)
            for organization, net in zip(charge.organizations, parts[::3], strict=True):
                self.uncollected[organization] -= net
        for charge in own:
            self._earn(charge, self._take(customer, charge.unearned), collected=True)
        return "posted"

    def _take(self, customer: str, legs: list[int]) -> list[int]:
        amount = min(self.credits[customer], sum(legs))
        parts = largest_remainder(amount, legs)
        self.credits[customer] -= amount
        legs[:] = [leg - part for leg, part in zip(legs, parts, strict=True)]
        return parts

    def _legs(self, gross: int, payees: list[tuple[str, int]]) -> list[int]:
        legs = []
        shares = largest_remainder(gross, [weight for _, weight in payees])
        for (organization, _), share in zip(payees, shares, strict=True):
            platform_bps, processing_bps = self.shares[organization]
            platform_fee = floor(Fraction(share * platform_bps, 10_000))
            processing_fee = floor(Fraction(share * processing_bps, 10_000))
            legs += [share - platform_fee - processing_fee, platform_fee, processing_fee]
        return legs

    def _earn(self, charge: Charge, parts: list[int], *, collected: bool, fees: bool = True) -> None:
        for number, organization in enumerate(charge.organizations):
            net, platform_fee, processing_fee = parts[3 * number : 3 * number + 3]
            (self.collected if collected else self.uncollected)[organization] += net
            if fees:
                self.platform_fees[organization] += platform_fee
                self.processing_fees[organization] += processing_fee
