"""The ledger, small and obviously right: one thing after the other, in exact fractions.

It knows one currency. Amounts are micros. It has no clock: a claim says itself whether it comes too late, and
what time ends is told to it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.support.correction_oracle import correct, largest_remainder, minus, split


class Claim(NamedTuple):
    """What a charge claims: up to an amount of a lease, unless it is too late, or (epoch 0) a hold."""

    reservation_id: str
    epoch: int = 0
    amount: int = 0
    too_late: bool = False


class AskedHold(NamedTuple):
    """A hold that is asked for; `of` is the allocation that becomes it."""

    hold_id: str
    purpose: str
    amount: int
    content: str
    too_late: bool = False
    of: Claim | None = None


class Item(NamedTuple):
    """A charge that is asked for. `outcome` is the id and amount of a hold that goes with it."""

    customer: str
    workflow: str
    gross: int
    payees: tuple[tuple[str, int], ...]
    claim: Claim | None = None
    outcome: tuple[str, int] | None = None

    @property
    def content(self) -> tuple[object, ...]:
        """What makes two of them the same charge."""
        return self.gross, self.payees


class Ended(NamedTuple):
    """How a reservation ended, and what was captured of it: of credits, and of the room."""

    state: str
    credits: int = 0
    room: int = 0


@dataclass
class Charge:
    """A charge, and its legs in three parts: net, platform fee and processing fee of each payee."""

    item: Item
    reservation_id: str = ""
    captured_credits: int = 0
    captured_room: int = 0
    legs: list[int] = field(default_factory=list)
    collected: list[int] = field(default_factory=list)
    uncollected: list[int] = field(default_factory=list)
    unearned: list[int] = field(default_factory=list)
    # By id: how much, why, and of each leg.
    corrections: dict[str, tuple[int, str, list[int]]] = field(default_factory=dict)
    # Of each leg, what was given up; empty for nothing.
    given_up: list[int] = field(default_factory=list)
    # While it is being paid.
    ended: Ended | None = None
    kept_room: int = 0
    from_credits: int = 0
    owed: int = 0

    @property
    def rest(self) -> int:
        return self.item.gross - self.from_credits - self.owed

    @property
    def corrected(self) -> int:
        return sum(amount for amount, _, _ in self.corrections.values())

    @property
    def written_off(self) -> int:
        return sum(self.given_up)

    @property
    def paid(self) -> int:
        """From credits, at once or later, and not given back."""
        gone = self.corrected + self.written_off
        return self.item.gross - gone - sum(self.uncollected) - sum(self.unearned)

    @property
    def organizations(self) -> list[str]:
        return [organization for organization, _ in self.item.payees]


@dataclass
class Lease:
    """A lease. Only the newest of a customer is current, unless it is over."""

    remaining: int
    return_number: int = 0
    recall: bool = False
    over: bool = False


@dataclass
class Hold:
    """Money kept for one piece of work."""

    purpose: str
    content: str
    state: str = "held"
    credits: int = 0
    room: int = 0
    captured: tuple[int, int] = (0, 0)
    # What was allocated for it in a lease until then.
    took_over: bool = False

    @property
    def is_refused(self) -> bool:
        return self.state in ("insufficient", "frozen")

    @property
    def is_gone(self) -> bool:
        """Whether it ended by itself, and nothing else that has its id."""
        return self.state == "expired" and not self.took_over


@dataclass
class Payout:
    """What a payout took, or was refused."""

    amount: int
    state: str
    reversals: dict[str, int] = field(default_factory=dict)

    @property
    def reversed(self) -> int:
        return sum(self.reversals.values())


@dataclass
class Reversal:
    """Money of a purchase that went back, and what came again of it, under which id."""

    purchase: str
    kind: str
    amount: int
    from_credits: int
    reinstated: int = 0
    reinstatement: str = ""


@dataclass
class LedgerOracle:
    """Balances by owner; every charge, lease and hold by its id. `credits` are those that nobody holds."""

    shares: dict[str, tuple[int, int]]  # organization -> platform and processing basis points
    credits: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    credit_limit: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    collected: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    uncollected: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    platform_fees: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    processing_fees: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    charges: dict[tuple[str, str], Charge] = field(default_factory=dict)
    grants: dict[tuple[str, str], int] = field(default_factory=dict)
    leases: dict[tuple[str, int], Lease] = field(default_factory=dict)
    holds: dict[tuple[str, str], Hold] = field(default_factory=dict)
    released: set[tuple[str, str]] = field(default_factory=set)
    captured_by: dict[tuple[str, str], Charge] = field(default_factory=dict)
    payouts: dict[tuple[str, str], Payout] = field(default_factory=dict)
    chargebacks: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    reversals: dict[tuple[str, str], Reversal] = field(default_factory=dict)
    fees: dict[str, int] = field(default_factory=dict)
    # By owner and key: what of, and how much if that was said.
    write_offs: dict[tuple[str, str], tuple[object, int | None]] = field(default_factory=dict)
    # What the platform lost by them, by who did not pay.
    lost: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    # Customers, and organizations whose payouts are.
    frozen: set[str] = field(default_factory=set)

    # What there is.

    def charges_of(self, customer: str) -> list[Charge]:
        return [charge for (payer, _), charge in self.charges.items() if payer == customer]

    def holds_of(self, customer: str) -> list[Hold]:
        return [hold for (owner, _), hold in self.holds.items() if owner == customer and hold.state == "held"]

    def receivable(self, customer: str) -> int:
        return sum(sum(charge.uncollected) for charge in self.charges_of(customer))

    def unpaid(self, customer: str) -> int:
        return sum(sum(charge.unearned) for charge in self.charges_of(customer))

    def owed(self, customer: str) -> int:
        return self.receivable(customer) + self.unpaid(customer) + self.chargebacks[customer]

    def granted(self, customer: str) -> int:
        return sum(amount for (owner, _), amount in self.grants.items() if owner == customer)

    def spent(self, customer: str) -> int:
        return sum(charge.paid for charge in self.charges_of(customer))

    def reversals_of(self, customer: str, purchase: str | None = None) -> list[Reversal]:
        return [
            one
            for (owner, _), one in self.reversals.items()
            if owner == customer and purchase in (None, one.purchase)
        ]

    def gone(self, customer: str, purchase: str | None = None) -> int:
        """What went back and did not come again, of one purchase or of all."""
        return sum(one.amount - one.reinstated for one in self.reversals_of(customer, purchase))

    def leased(self, customer: str) -> int:
        return sum(lease.remaining for (owner, _), lease in self.leases.items() if owner == customer)

    def held(self, customer: str) -> int:
        return self.leased(customer) + sum(hold.credits for hold in self.holds_of(customer))

    def room(self, customer: str, promised: int = 0) -> int:
        """What the credit limit leaves beside what is owed, held, and `promised`."""
        held = sum(hold.room for hold in self.holds_of(customer))
        return max(0, self.credit_limit[customer] - self.receivable(customer) - held - promised)

    def newest(self, customer: str) -> int:
        """The epoch of the newest lease; 0 if there was none."""
        return max((epoch for owner, epoch in self.leases if owner == customer), default=0)

    def is_on_hold(self, customer: str, claim: Claim) -> bool:
        """Whether it claims a hold: also by its lease, if the reservation became one, or is one as well.

        One that is gone ended by itself.
        """
        hold = self.holds.get((customer, claim.reservation_id))
        return claim.epoch == 0 or (
            hold is not None and hold.purpose == "run" and not hold.is_refused and not hold.is_gone
        )

    def ended(self, customer: str, claim: Claim) -> Ended | None:
        """How a reservation ended; None if it stands."""
        charge = self.captured_by.get((customer, claim.reservation_id))
        if charge is not None:
            return Ended("settled", charge.captured_credits, charge.captured_room)
        if self.is_on_hold(customer, claim):
            hold = self.holds.get((customer, claim.reservation_id))
            if hold is not None and hold.state in ("settled", "released"):
                return Ended(hold.state)
            return None if hold is not None and hold.state == "held" else Ended("expired")
        if (customer, claim.reservation_id) in self.released:
            return Ended("released")
        lease = self.leases.get((customer, claim.epoch))
        return Ended("expired") if lease is None or lease.over or claim.too_late else None

    # Charges.

    def post(self, items: Sequence[Item]) -> list[tuple[str, Ended | None]]:
        """'posted', 'duplicate' or 'reused' for each, and how its reservation ended.

        Paid source by source, each in the order of the charges. Of items for one charge the first is judged
        with the batch; those of another content only after it.
        """
        first: dict[tuple[str, str], Item] = {}
        for item in items:
            first.setdefault((item.customer, item.workflow), item)
        judged = {
            key: self.ended(item.customer, item.claim) if item.claim else None
            for key, item in first.items()
            if key in self.charges
        }
        fresh = {key: Charge(item) for key, item in first.items() if key not in self.charges}
        self._pay(list(fresh.values()))
        judged |= {key: charge.ended for key, charge in fresh.items()}
        return [self._said(item, first, judged, fresh) for item in items]

    def _said(
        self,
        item: Item,
        first: dict[tuple[str, str], Item],
        judged: dict[tuple[str, str], Ended | None],
        fresh: dict[tuple[str, str], Charge],
    ) -> tuple[str, Ended | None]:
        key = item.customer, item.workflow
        charge = self.charges[key]
        if item.content != charge.item.content:
            return "reused", None
        ended = judged[key]
        if first[key].content != charge.item.content:
            ended = self.ended(item.customer, item.claim) if item.claim else None
        if (
            ended is not None
            and item.claim is not None
            and item.claim.reservation_id != charge.reservation_id
        ):
            # Another charge captured it; of this one it is answered what it took itself.
            ended = Ended(ended.state)
        return ("posted" if key in fresh and item is first[key] else "duplicate"), ended

    def _pay(self, batch: list[Charge]) -> None:
        for charge in batch:
            self._capture(charge)
        for charge in batch:
            from_credits = min(charge.rest, self.credits[charge.item.customer])
            self.credits[charge.item.customer] -= from_credits
            charge.from_credits += from_credits
        for charge in batch:
            charge.owed = charge.captured_room = min(charge.rest, charge.kept_room)
        for charge in batch:
            customer = charge.item.customer
            owed = sum(other.owed for other in batch if other.item.customer == customer)
            charge.owed += min(charge.rest, self.room(customer, owed))
        for charge in batch:
            self._record(charge)
        for charge in batch:
            if charge.from_credits < charge.item.gross:
                self._recall(charge.item.customer)
        for charge in batch:
            if charge.item.outcome is not None:
                self._hold_outcome(charge, *charge.item.outcome)

    def _capture(self, charge: Charge) -> None:
        customer, claim = charge.item.customer, charge.item.claim
        if claim is None:
            return
        charge.ended = self.ended(customer, claim)
        if charge.ended is not None:
            return
        charge.reservation_id = claim.reservation_id
        self.captured_by[customer, claim.reservation_id] = charge
        if self.is_on_hold(customer, claim):
            hold = self.holds[customer, claim.reservation_id]
            taken = min(charge.item.gross, hold.credits)
            self.credits[customer] += hold.credits - taken
            charge.kept_room = hold.room
            hold.state = "settled"
        else:
            lease = self.leases[customer, claim.epoch]
            taken = min(charge.item.gross, claim.amount, lease.remaining)
            lease.remaining -= taken
        charge.from_credits = charge.captured_credits = taken

    def _record(self, charge: Charge) -> None:
        customer, claim = charge.item.customer, charge.item.claim
        legs = self._legs(charge.item)
        paid = largest_remainder(charge.from_credits, legs)
        rest = minus(legs, paid)
        charge.legs, charge.collected = legs, paid
        charge.uncollected = largest_remainder(charge.owed, rest)
        charge.unearned = minus(rest, charge.uncollected)
        self._earn(charge, paid, collected=True)
        self._earn(charge, charge.uncollected, collected=False)
        self.charges[customer, charge.item.workflow] = charge
        if charge.reservation_id:
            charge.ended = Ended("settled", charge.captured_credits, charge.captured_room)
            if claim is not None and self.is_on_hold(customer, claim):
                captured = charge.captured_credits, charge.captured_room
                self.holds[customer, claim.reservation_id].captured = captured

    def _hold_outcome(self, charge: Charge, hold_id: str, amount: int) -> None:
        customer, claim = charge.item.customer, charge.item.claim
        if (customer, hold_id) in self.holds or (customer, hold_id) in self.captured_by:
            return
        hold = self.holds[customer, hold_id] = Hold("outcome", "")
        if claim is not None and charge.reservation_id and not self.is_on_hold(customer, claim):
            lease = self.leases[customer, claim.epoch]
            hold.credits = min(amount, claim.amount - charge.captured_credits, lease.remaining)
            lease.remaining -= hold.credits
        self._raise(customer, hold, amount)

    def grant(self, customer: str, key: str, amount: int) -> str:
        """'posted', 'duplicate' or 'reused'.

        Collects chargebacks, then receivables before unpaid charges, oldest first.
        """
        if (customer, key) in self.grants:
            return "duplicate" if self.grants[customer, key] == amount else "reused"
        self.grants[customer, key] = amount
        self.credits[customer] += amount
        self._collect(customer)
        return "posted"

    def _collect(self, customer: str) -> None:
        paid = min(self.credits[customer], self.chargebacks[customer])
        self.credits[customer] -= paid
        self.chargebacks[customer] -= paid
        for charge in self.charges_of(customer):
            parts = self._take(charge, charge.uncollected)
            self._earn(charge, parts, collected=True, fees=False)
            for organization, net in zip(charge.organizations, parts[::3], strict=True):
                self.uncollected[organization] -= net
        for charge in self.charges_of(customer):
            self._earn(charge, self._take(charge, charge.unearned), collected=True)

    def _take(self, charge: Charge, legs: list[int]) -> list[int]:
        amount = min(self.credits[charge.item.customer], sum(legs))
        parts = largest_remainder(amount, legs)
        self.credits[charge.item.customer] -= amount
        legs[:] = minus(legs, parts)
        charge.collected = minus(charge.collected, [-part for part in parts])
        return parts

    def _legs(self, item: Item) -> list[int]:
        return split(
            item.gross,
            [weight for _, weight in item.payees],
            [self.shares[organization] for organization, _ in item.payees],
        )

    def _earn(self, charge: Charge, parts: list[int], *, collected: bool, fees: bool = True) -> None:
        for number, organization in enumerate(charge.organizations):
            net, platform_fee, processing_fee = parts[3 * number : 3 * number + 3]
            (self.collected if collected else self.uncollected)[organization] += net
            if fees:
                self.platform_fees[organization] += platform_fee
                self.processing_fees[organization] += processing_fee

    # Corrections.

    def correct_charge(self, key: tuple[str, str], correction_id: str, amount: int, reason: str) -> str:
        """'corrected', 'duplicate', 'reused' or 'too much'."""
        charge = self.charges[key]
        known = charge.corrections.get(correction_id)
        if known is not None:
            return "duplicate" if known[:2] == (amount, reason) else "reused"
        if amount > charge.item.gross - charge.corrected - charge.written_off:
            return "too much"
        left = charge.item.gross - charge.corrected - charge.written_off - amount
        agreements = [self.shares[organization] for organization in charge.organizations]
        gross = [sum(charge.legs[start : start + 3]) for start in range(0, len(charge.legs), 3)]
        parts = charge.unearned, charge.uncollected, charge.collected
        unearned, uncollected, collected = correct(amount, parts, split(left, gross, agreements))
        for part, taken in zip(parts, (unearned, uncollected, collected), strict=True):
            part[:] = minus(part, taken)
        self._earn(charge, [-part for part in uncollected], collected=False)
        self._earn(charge, [-part for part in collected], collected=True)
        legs = [sum(leg) for leg in zip(unearned, uncollected, collected, strict=True)]
        charge.corrections[correction_id] = amount, reason, legs
        self.credits[charge.item.customer] += sum(collected)
        self._collect(charge.item.customer)
        return "corrected"

    # Write-offs. Each answers 'written', 'duplicate', 'reused' or 'too much'; None is for all that is owed.

    def write_off_charge(self, key: tuple[str, str], part: str, amount: int | None, request: str) -> str:
        charge = self.charges[key]
        # What credits could pay is collected before, whatever becomes of this.
        self._collect(charge.item.customer)
        known = self.write_offs.get((charge.item.customer, request))
        if known is not None:
            return "duplicate" if known == ((key, part), amount) else "reused"
        legs = charge.unearned if part == "unpaid" else charge.uncollected
        written = sum(legs) if amount is None else amount
        if not 0 < written <= sum(legs):
            return "too much"
        self.write_offs[charge.item.customer, request] = ((key, part), amount)
        lost = largest_remainder(written, legs)
        legs[:] = minus(legs, lost)
        charge.given_up = minus(charge.given_up or [0] * len(legs), [-leg for leg in lost])
        if part == "receivable":
            self._earn(charge, [-leg for leg in lost], collected=False)
        return "written"

    def write_off_chargebacks(self, customer: str, amount: int | None, request: str) -> str:
        self._collect(customer)
        known = self.write_offs.get((customer, request))
        if known is not None:
            return "duplicate" if known == ("chargebacks", amount) else "reused"
        written = self.chargebacks[customer] if amount is None else amount
        if not 0 < written <= self.chargebacks[customer]:
            return "too much"
        self.write_offs[customer, request] = ("chargebacks", amount)
        self.chargebacks[customer] -= written
        self.lost[customer] += written
        return "written"

    def write_off_clawback(self, organization: str, amount: int | None, request: str) -> str:
        known = self.write_offs.get((organization, request))
        if known is not None:
            return "duplicate" if known == ("clawback", amount) else "reused"
        below = max(0, -self.collected[organization])
        written = below if amount is None else amount
        if not 0 < written <= below:
            return "too much"
        self.write_offs[organization, request] = ("clawback", amount)
        self.collected[organization] += written
        self.lost[organization] += written
        return "written"

    # Leases.

    def open_lease(self, customer: str, seen: int, wanted: int) -> bool:
        """Whether it was opened: the one after `seen`, unless there is a later one."""
        newest = self.newest(customer)
        if seen < newest:
            return False
        if newest and self.leases[customer, newest].over:
            del self.leases[customer, newest]
        self.leases[customer, seen + 1] = lease = Lease(0)
        self._grant_lease(customer, lease, wanted)
        return True

    def renew_lease(self, customer: str, epoch: int, wanted: int) -> str:
        """'renewed' or 'superseded'."""
        lease = self.leases.get((customer, epoch))
        if lease is None or lease.over or epoch != self.newest(customer):
            return "superseded"
        if lease.remaining == 0:
            lease.recall = False
        if not lease.recall:
            self._grant_lease(customer, lease, wanted)
        return "renewed"

    def return_lease(self, customer: str, epoch: int, number: int, amount: int) -> str:
        """'returned' or 'superseded'. What comes back pays debts first."""
        lease = self.leases.get((customer, epoch))
        if lease is None or lease.over:
            return "superseded"
        if amount == 0 or number > lease.return_number:
            lease.return_number, lease.recall = number if amount else lease.return_number, False
            returned = min(amount, lease.remaining)
            lease.remaining -= returned
            self.credits[customer] += returned
            self._collect(customer)
        return "returned"

    def expire_lease(self, customer: str, epoch: int) -> None:
        """Its time is over. Of the newest one the number stays."""
        lease = self.leases.pop((customer, epoch))
        self.credits[customer] += lease.remaining
        if epoch > self.newest(customer):
            self.leases[customer, epoch] = Lease(0, over=True)

    def _grant_lease(self, customer: str, lease: Lease, wanted: int) -> None:
        free = self.credits[customer]
        generous = free if free <= 1_000_000 else free // 2
        granted = min(free, max(wanted, generous)) if wanted and customer not in self.frozen else 0
        lease.remaining += granted
        self.credits[customer] -= granted

    def _recall(self, customer: str) -> None:
        lease = self.leases.get((customer, self.newest(customer)))
        if lease is not None and lease.remaining:
            lease.recall = True

    # Holds, and what ends a reservation without a charge.

    def place_hold(self, customer: str, asked: AskedHold) -> str:
        """'placed', 'duplicate', 'insufficient', 'frozen', 'reused', or how the reservation has ended.

        Only without content a hold is raised.
        """
        hold = self.holds.get((customer, asked.hold_id))
        purpose, amount, content = asked.purpose, asked.amount, asked.content
        if hold is None or (asked.of is not None and hold.is_gone):
            return self._place_new(customer, asked)
        if hold.purpose != purpose or (content and content != hold.content):
            return "reused"
        if hold.state in ("insufficient", "frozen"):
            return hold.state
        if hold.state == "held" and not content:
            return self._raise(customer, hold, amount) or "duplicate"
        return "duplicate"

    def _place_new(self, customer: str, asked: AskedHold) -> str:
        if not asked.content:
            return "expired"
        if asked.purpose == "run":
            if (customer, asked.hold_id) in self.captured_by:
                return "settled"
            if (customer, asked.hold_id) in self.released:
                return "released"
            if asked.too_late or (asked.of is not None and self.ended(customer, asked.of) is not None):
                return "expired"
        hold = Hold(asked.purpose, asked.content, took_over=asked.of is not None)
        lease = None if asked.of is None else self.leases[customer, asked.of.epoch]
        if lease is not None and asked.of is not None:
            hold.credits = min(asked.amount, asked.of.amount, lease.remaining)
        from_lease = hold.credits
        refused = self._raise(customer, hold, asked.amount)
        if refused:
            hold.state = refused
            # What goes on in its lease is not ended by that.
            if lease is None:
                hold.credits = 0
                self.holds[customer, asked.hold_id] = hold
            return refused
        if lease is not None:
            lease.remaining -= from_lease
        self.holds[customer, asked.hold_id] = hold
        return "placed"

    def _raise(self, customer: str, hold: Hold, amount: int) -> str:
        """Raise a hold to an amount: for a run wholly or not at all, for an outcome as far as it goes.

        Why it was not raised, if so.
        """
        lacking = max(0, amount - hold.credits - hold.room)
        if lacking and hold.purpose == "run" and customer in self.frozen:
            return "frozen"
        from_credits = min(lacking, self.credits[customer])
        from_room = min(lacking - from_credits, self.room(customer))
        if from_credits + from_room < lacking:
            self._recall(customer)
            if hold.purpose == "run":
                return "insufficient"
        self.credits[customer] -= from_credits
        hold.credits += from_credits
        hold.room += from_room
        return ""

    def release(self, customer: str, claim: Claim) -> Ended:
        """How it has ended, now or before."""
        ended = self.ended(customer, claim)
        hold = self.holds.get((customer, claim.reservation_id))
        if ended is not None:
            on_hold = self.is_on_hold(customer, claim)
            return Ended(ended.state, *hold.captured) if on_hold and hold is not None else ended
        if self.is_on_hold(customer, claim):
            self.end_hold(customer, claim.reservation_id, "released")
        else:
            self.released.add((customer, claim.reservation_id))
        return Ended("released")

    def end_hold(self, customer: str, hold_id: str, state: str) -> None:
        """It gives back what it keeps."""
        hold = self.holds[customer, hold_id]
        hold.state = state
        self.credits[customer] += hold.credits

    # Payouts.

    def debit_payout(self, organization: str, payout_id: str, amount: int) -> str:
        """'reused', or how the payout stands: 'refused' or 'frozen' for good, if collected earnings did not
        cover it, or payouts were frozen.
        """
        payout = self.payouts.get((organization, payout_id))
        if payout is None:
            covered = amount <= self.collected[organization]
            state = "in_transit" if covered else "refused"
            payout = Payout(amount, "frozen" if organization in self.frozen else state)
            self.payouts[organization, payout_id] = payout
            if payout.state == "in_transit":
                self.collected[organization] -= amount
        return payout.state if payout.amount == amount else "reused"

    def end_payout(self, organization: str, payout_id: str, state: str) -> str:
        """'unknown', or how the payout stands; it ends once."""
        payout = self.payouts.get((organization, payout_id))
        if payout is None:
            return "unknown"
        if payout.state == "in_transit":
            payout.state = state
            if state == "returned":
                self.collected[organization] += payout.amount
        return payout.state

    def reverse_payout(self, organization: str, payout_id: str, reversal_id: str, amount: int) -> str:
        """'reversed', 'duplicate', 'reused', 'too much', 'unknown', or the state that forbids it."""
        payout = self.payouts.get((organization, payout_id))
        if payout is None:
            return "unknown"
        if reversal_id in payout.reversals:
            return "duplicate" if payout.reversals[reversal_id] == amount else "reused"
        if payout.state != "completed":
            return payout.state
        if payout.reversed + amount > payout.amount:
            return "too much"
        payout.reversals[reversal_id] = amount
        self.collected[organization] += amount
        return "reversed"

    # Purchases that come back, fees, freezes.

    def reverse_purchase(self, customer: str, purchase: str, reversal_id: str, kind: str, amount: int) -> str:
        """'reversed', 'duplicate', 'reused', 'too much' or 'unknown'."""
        known = self.reversals.get((customer, reversal_id))
        if (customer, purchase) not in self.grants:
            return "unknown"
        if known is not None:
            same = (known.purchase, known.kind, known.amount) == (purchase, kind, amount)
            return "duplicate" if same else "reused"
        if self.gone(customer, purchase) + amount > self.grants[customer, purchase]:
            return "too much"
        from_credits = min(amount, self.credits[customer])
        self.credits[customer] -= from_credits
        self.chargebacks[customer] += amount - from_credits
        self.reversals[customer, reversal_id] = Reversal(purchase, kind, amount, from_credits)
        if from_credits < amount:
            self._recall(customer)
        if kind == "chargeback":
            self.frozen.add(customer)
        return "reversed"

    def reinstate_purchase(self, customer: str, reversal_id: str, reinstatement_id: str, amount: int) -> str:
        """'reinstated', 'duplicate', 'reused', 'too much', 'again' or 'unknown'."""
        reversal = self.reversals.get((customer, reversal_id))
        if reversal is None:
            return "unknown"
        if amount > reversal.amount:
            return "too much"
        for (owner, other), one in self.reversals.items():
            if (owner, one.reinstatement) == (customer, reinstatement_id):
                same = (other, one.reinstated) == (reversal_id, amount)
                return "duplicate" if same else "reused"
        if reversal.reinstated:
            return "again"
        reversal.reinstated, reversal.reinstatement = amount, reinstatement_id
        debt = min(amount, self.chargebacks[customer])
        self.chargebacks[customer] -= debt
        self.credits[customer] += amount - debt
        self._collect(customer)
        return "reinstated"

    def record_fee(self, fee_id: str, amount: int) -> str:
        """'posted', 'duplicate' or 'reused'."""
        if fee_id in self.fees:
            return "duplicate" if self.fees[fee_id] == amount else "reused"
        self.fees[fee_id] = amount
        return "posted"

    def freeze(self, owner: str, frozen: bool) -> None:
        """A customer, or an organization's payouts; or let go of them."""
        (self.frozen.add if frozen else self.frozen.discard)(owner)
