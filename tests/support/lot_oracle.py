"""Credit lots, small and obviously right: what each grant has left after one thing or another was spent.

It is told what happened to a customer's credits, in order. Amounts are micros, times any numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

NEVER = float("inf")


@dataclass
class Lot:
    """What a grant has left. `funder` is '' for what was bought."""

    lot_id: str
    funder: str
    priority: int
    expires: float
    amount: int
    remaining: int = 0
    expired: int = 0


@dataclass
class LotOracle:
    """The lots of one customer, in the order in which they were added."""

    lots: list[Lot] = field(default_factory=list)
    # What was taken for each debit, lot by lot, and not given back: the last one last.
    taken: defaultdict[str, list[tuple[Lot, int]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, lot: Lot) -> None:
        lot.remaining = lot.amount
        self.lots.append(lot)

    def spend(self, debit: str, amount: int, own: str = "") -> None:
        """From the lot `own` first, then in the order of priority, expiry, promotions first, and age."""
        in_order = sorted(
            self.lots,
            key=lambda lot: (
                lot.lot_id != own,
                lot.priority,
                lot.expires,
                lot.funder == "",
                self.lots.index(lot),
            ),
        )
        for lot in in_order:
            part = min(amount, lot.remaining)
            if part:
                lot.remaining -= part
                amount -= part
                self.taken[debit].append((lot, part))
        assert amount == 0, f"{debit} took what nobody had granted"

    def give_back(self, debit: str, amount: int) -> int:
        """To the lots that paid, the one that paid last first. Answers what is more than they paid."""
        while amount and self.taken[debit]:
            last = self.taken[debit][-1][0]
            of_it = [one for one in self.taken[debit] if one[0] is last]
            self.taken[debit] = [one for one in self.taken[debit] if one[0] is not last]
            paid = sum(part for _, part in of_it)
            back = min(amount, paid)
            last.remaining += back
            amount -= back
            if paid > back:
                self.taken[debit].append((last, paid - back))
        return amount

    def expire(self, now: float, free: int) -> list[tuple[str, int]]:
        """(lot, amount) of what expires while this much is not held, the soonest first."""
        gone = []
        for lot in sorted(self.lots, key=lambda lot: (lot.expires, lot.lot_id)):
            part = min(lot.remaining, free) if lot.expires <= now else 0
            if part:
                lot.remaining -= part
                lot.expired += part
                free -= part
                gone.append((lot.lot_id, part))
        return gone

    def take_expired(self, lot_id: str, amount: int) -> int:
        """What expired of this lot goes back to who had bought it, as far as it goes; how much."""
        taken = 0
        for lot in self.lots:
            if lot.lot_id == lot_id:
                taken = min(amount, lot.expired)
                lot.expired -= taken
        return taken

    def expire_again(self, lot_id: str, amount: int) -> None:
        """It came again, and is what expired."""
        for lot in self.lots:
            if lot.lot_id == lot_id:
                lot.expired += amount

    def funded(self, debit: str) -> dict[str, int]:
        """What each organization's lots have paid of a debit."""
        sums: defaultdict[str, int] = defaultdict(int)
        for lot, part in self.taken[debit]:
            if lot.funder not in ("", "platform"):
                sums[lot.funder] += part
        return dict(sums)


def unspent(oracles: Iterable[LotOracle], funder: str) -> int:
    """What the lots of a funder have left together."""
    return sum(lot.remaining for oracle in oracles for lot in oracle.lots if lot.funder == funder)
