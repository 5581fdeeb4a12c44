"""What a customer has, was promised and has spent: small and obviously right.

It knows one currency. Amounts are micros and times seconds since 1970. It is told what callers were
answered, and says what they may be answered next. How reservations are kept it does not know: what may be
kept for longer than it must be, until its time is over, is in `at_most_kept`.
"""

from dataclasses import dataclass, field

# Clocks and calls are slower than this only when something is wrong with them.
MARGIN_SECONDS = 0.4


@dataclass
class Promise:
    """A reservation, as its host was answered."""

    reservation_id: str
    customer_id: str
    workflow_id: str
    token: str
    amount: int
    expire_time: float
    # What ended it, in the words of the contract; empty while it stands.
    state: str = ""
    captured: int = 0
    # The most that it counted for: an extension that was refused may have been counted in part.
    counted: int = 0
    # A part of it may be reserved of the room under a credit limit.
    may_be_owed: bool = False
    # It was asked for again after its end, of a Redis that had forgotten that: the ledger has not.
    revived: bool = False

    def stands(self, now: float) -> bool:
        """Whether it surely stands."""
        return not self.state and not self.revived and now < self.expire_time - MARGIN_SECONDS

    def is_kept(self, now: float, grace: float) -> bool:
        """Whether money may still be kept for it."""
        return not self.state and now < self.expire_time + grace + MARGIN_SECONDS


@dataclass
class Account:
    """One customer. `cap` is a hard budget on all that it ever spends."""

    customer_id: str
    # How long after its time a reservation may still be counted.
    grace: float
    credit_limit: int = 0
    cap: int | None = None
    granted: int = 0
    debited: int = 0
    # By what a charge is known by: each is charged once.
    charges: dict[str, int] = field(default_factory=dict)
    promises: list[Promise] = field(default_factory=list)
    # What is kept beside the promises, and until when: a reservation that moved left the same behind.
    left_behind: list[tuple[int, float]] = field(default_factory=list)

    @property
    def spent(self) -> int:
        """All that work has cost."""
        return sum(self.charges.values())

    @property
    def worth(self) -> int:
        """credits − receivable − unpaid, at every moment and however it was paid."""
        return self.granted - self.debited - self.spent

    def charge(self, key: str, gross: int) -> bool:
        """Whether this is charged now, and not before."""
        if key in self.charges:
            assert self.charges[key] == gross, f"{key} was charged {self.charges[key]}, not {gross}"
            return False
        self.charges[key] = gross
        return True

    def promised(self, now: float, but: Promise | None = None) -> int:
        """What surely is reserved."""
        return sum(one.amount for one in self.promises if one is not but and one.stands(now))

    def at_most_kept(self, now: float, but: Promise | None = None) -> int:
        """The most that may be kept for reservations."""
        return sum(
            max(one.amount, one.counted)
            for one in self.promises
            if one is not but and one.is_kept(now, self.grace)
        ) + sum(amount for amount, until in self.left_behind if now < until + self.grace + MARGIN_SECONDS)


def may_capture(promise: Promise, gross: int, captured: int, from_credits: int, after: float) -> bool:
    """Whether a settle that was answered at this time may have captured so much, with so much from credits.

    What was reserved of the room under a credit limit stays there as far as credits have come in since.
    """
    whole = min(gross, promise.amount)
    if promise.state and not promise.revived:
        return captured == promise.captured
    if promise.stands(after):
        return captured == whole or (promise.may_be_owed and captured <= whole <= captured + from_credits)
    return 0 <= captured <= whole
