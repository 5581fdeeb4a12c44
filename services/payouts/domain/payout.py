"""A payout: its states, and what each thing that happens makes of it.

Every function takes a payout as it is and answers a Change: the payout as it becomes, and the step that its
history gains. The store writes a change only if nobody else changed the payout since it was read, so of two
things that happen at once the second is judged by what the first has made.

    requested → processing → completed | failed
        └─────→ cancelled
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from services.kit.errors import FailedPrecondition
from services.kit.money import Money
from services.payouts.domain.units import Operation, round_down, to_minor

# An idempotency key is forgotten after 24 hours at the earliest; then the same call would pay again. An hour
# is for clocks that differ, and for a call that is under way when the time comes.
KEY_LIFE: Final = timedelta(hours=23)

WORKER: Final = "worker"
SCHEDULE: Final = "schedule"
STRIPE: Final = "stripe"


class PayoutState(StrEnum):
    """Where the money is; values as in the table."""

    OPENING = "opening"
    REFUSED = "refused"
    REQUESTED = "requested"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class BankStatus(StrEnum):
    """How far the money of a completed payout came on its way to the bank."""

    NONE = "none"
    WAITING = "waiting"
    PENDING = "pending"
    IN_TRANSIT = "in_transit"
    PAID = "paid"
    FAILED = "failed"
    CANCELED = "canceled"


class Origin(StrEnum):
    """Who asked for it."""

    REQUEST = "request"
    SCHEDULE = "schedule"


class Owed(StrEnum):
    """The call that the ledger is owed: made again until it is answered."""

    DEBIT = "debit"
    COMPLETE = "complete"
    RETURN = "return"


class Hold(StrEnum):
    """Why a payout stands still."""

    FROZEN = "frozen"
    NEGATIVE_EARNINGS = "negative_earnings"
    ACCOUNT_NOT_READY = "account_not_ready"
    KEY_REFUSED = "key_refused"
    KEY_CONFLICT = "key_conflict"
    UNRESOLVED = "unresolved"


# What the history says of a hold. Its owner reads that, and is not concerned with what the payment processor
# says of our key and our calls: that is in last_error, and in the log.
_HOLD_WORDS: Final[Mapping[Hold, str]] = {
    Hold.FROZEN: "the organization's payouts are frozen",
    Hold.NEGATIVE_EARNINGS: "available earnings are below zero",
    Hold.ACCOUNT_NOT_READY: "the connected account is not ready for it",
    Hold.KEY_REFUSED: "the payment processor refuses our key, which an operator has to mend",
    Hold.KEY_CONFLICT: "its idempotency key was used for something else, which an operator has to look into",
    Hold.UNRESOLVED: "what became of it is not certain, which an operator has to look into",
}
# Time alone mends none of these: an operator decides.
NEEDS_DECISION: Final = frozenset({Hold.KEY_CONFLICT, Hold.UNRESOLVED})


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of the payment processor, frozen before it is first asked: the same key never goes with
    another body.
    """

    body: Mapping[str, Any]
    key: str
    # When it was frozen.
    time: datetime

    def may_be_repeated(self, now: datetime) -> bool:
        """Whether the key still makes it harmless to ask again."""
        return now - self.time < KEY_LIFE


@dataclass(frozen=True, slots=True)
class Payout:
    """A row of payouts.payout. Times are UTC."""

    payout_id: str
    organization_id: str
    money: Money
    state: PayoutState
    origin: Origin
    request_hash: bytes
    requester: str
    create_time: datetime
    update_time: datetime
    owed: Owed | None = None
    earned_before: date | None = None
    refusal: Mapping[str, Any] | None = None
    stripe_account_id: str | None = None
    transfer: Call | None = None
    # How many calls were frozen, this one included.
    transfer_number: int = 0
    transfer_id: str | None = None
    failure_code: str = ""
    failure_reason: str = ""
    reversed_micros: int = 0
    bank_status: BankStatus = BankStatus.NONE
    bank_call: Call | None = None
    bank_number: int = 0
    bank_payout_id: str | None = None
    bank_failure_code: str = ""
    bank_arrival_time: datetime | None = None
    hold: Hold | None = None
    attempt_count: int = 0
    next_attempt_time: datetime | None = None
    last_error: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What the history of a payout says of a change: who did it, how it came to be known, why, and about
    what.
    """

    actor: str
    method: str
    reason: str = ""
    stripe_id: str = ""


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of the history of a payout."""

    number: int
    state: PayoutState
    bank_status: BankStatus
    step: Step
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Reversal:
    """A part of a completed payout that came back."""

    reversal_id: str
    payout_id: str
    amount_micros: int
    posted: bool
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """A payout as it becomes. Without a step its history stays as it is."""

    payout: Payout
    step: Step | None = None


def opened(payout: Payout, now: datetime) -> Change:
    """The ledger took the amount from the organization's earnings."""
    after = _free(payout, state=PayoutState.REQUESTED, owed=None, next_attempt_time=now)
    return Change(after, Step(payout.requester, _begun_by(payout)))


def refused(payout: Payout, refusal: Mapping[str, Any]) -> Change:
    """The earnings do not cover it: final for this payout, which nobody ever sees."""
    return Change(_free(payout, state=PayoutState.REFUSED, owed=None, refusal=refusal))


def cancelled(payout: Payout, actor: str, reason: str, now: datetime) -> Change:
    """Its owner does not want it any more. Raises FailedPrecondition once it may have been sent."""
    if payout.state is not PayoutState.REQUESTED:
        raise state_conflict(payout, "it can be cancelled only while it is requested")
    after = _free(
        payout,
        state=PayoutState.CANCELLED,
        owed=Owed.RETURN,
        failure_reason=reason,
        next_attempt_time=now,
    )
    return Change(after, Step(actor, "CancelPayout", reason))


def sending(payout: Payout, stripe_account_id: str, now: datetime) -> Change:
    """It will be asked for with exactly this body and key, from now on until an answer is certain."""
    body = {
        "amount": to_minor(payout.money),
        "currency": payout.money.currency_code.lower(),
        "destination": stripe_account_id,
        "transfer_group": payout.payout_id,
        # By these a transfer is found whose answer was never seen.
        "metadata": {"payout_id": payout.payout_id, "organization_id": payout.organization_id},
    }
    number = payout.transfer_number + 1
    after = _free(
        payout,
        state=PayoutState.PROCESSING,
        stripe_account_id=stripe_account_id,
        transfer=Call(body, f"tallystick-transfer-{payout.payout_id}-{number}", now),
        transfer_number=number,
        next_attempt_time=now,
    )
    return Change(after, Step(WORKER, "worker", stripe_id=stripe_account_id))


def transferred(payout: Payout, transfer_id: str, step: Step, now: datetime) -> Change:
    """The transfer was made: the money is on the connected account."""
    after = _free(
        payout,
        state=PayoutState.COMPLETED,
        owed=Owed.COMPLETE,
        transfer_id=transfer_id,
        bank_status=BankStatus.WAITING,
        next_attempt_time=now,
    )
    return Change(after, step)


def transfer_contradiction(
    payout: Payout, transfer_id: str, stripe_account_id: str, amount: Money
) -> str | None:
    """Why a transfer that exists, and names this payout, cannot be the one that pays it; None if it is. Then
    money moved of which our books know nothing.
    """
    if payout.state not in (PayoutState.PROCESSING, PayoutState.COMPLETED):
        return f"the payout {payout.payout_id} is {payout.state}, and there is a transfer of it"
    if payout.transfer_id not in (None, transfer_id):
        return f"the payout {payout.payout_id} was paid by {payout.transfer_id}, and this is another transfer"
    if (stripe_account_id, amount) != (payout.stripe_account_id, payout.money):
        return (
            f"the transfer has {amount} for {stripe_account_id}, and the payout {payout.payout_id}"
            f" {payout.money} for {payout.stripe_account_id}"
        )
    return None


def transfer_refused(payout: Payout, code: str, reason: str, step: Step, now: datetime) -> Change:
    """The transfer was certainly not made, and never will be: the money goes back."""
    after = _free(
        payout,
        state=PayoutState.FAILED,
        owed=Owed.RETURN,
        failure_code=code,
        failure_reason=reason,
        next_attempt_time=now,
    )
    return Change(after, step)


def told(payout: Payout, now: datetime) -> Change:
    """The ledger answered the call that it was owed."""
    waits_for_bank = payout.bank_status is BankStatus.WAITING
    return Change(_free(payout, owed=None, next_attempt_time=now if waits_for_bank else None))


def again_later(payout: Payout, error: str, next_attempt_time: datetime, hold: Hold | None = None) -> Change:
    """Nothing is certain, or something is in the way: its money stays taken, and it is tried again."""
    after = dataclasses.replace(
        payout,
        attempt_count=payout.attempt_count + 1,
        next_attempt_time=next_attempt_time,
        last_error=error,
        hold=hold,
    )
    # A hold is news the first time; the same hold again is not.
    return Change(after, None if hold is None or hold is payout.hold else _stands_still(hold))


def held_for_decision(payout: Payout, hold: Hold, error: str) -> Change:
    """Trying again could pay twice: an operator decides, and until then nothing happens."""
    after = dataclasses.replace(payout, hold=hold, next_attempt_time=None, last_error=error)
    return Change(after, _stands_still(hold))


def left_for_bank(payout: Payout) -> Money:
    """What has not come back, in units that banks take: what is left after a part came back may be in others.
    The rest stays on the connected account.
    """
    currency = payout.money.currency_code
    left = payout.money.amount_micros - payout.reversed_micros
    return Money(currency, round_down(left, currency, Operation.PAYOUT))


def sending_to_bank(payout: Payout, now: datetime) -> Change:
    """The bank payout will be asked for with exactly this body and key."""
    amount = left_for_bank(payout)
    number = payout.bank_number + 1
    body = {
        "amount": to_minor(amount),
        "currency": amount.currency_code.lower(),
        "metadata": {"payout_id": payout.payout_id, "attempt": str(number)},
    }
    call = Call(body, f"tallystick-bank-{payout.payout_id}-{number}", now)
    return Change(_free(payout, bank_call=call, bank_number=number, next_attempt_time=now))


def nothing_for_bank(payout: Payout, step: Step) -> Change:
    """What banks take came back before it was sent to one."""
    return Change(_free(payout, bank_status=BankStatus.CANCELED), step)


@dataclass(frozen=True, slots=True)
class BankPayout:
    """A payout from a connected account to its bank, as it was read."""

    bank_payout_id: str
    payout_id: str
    # Which of our attempts it is.
    attempt: int
    status: BankStatus
    failure_code: str
    failure_reason: str
    arrival_time: datetime | None


def at_bank(payout: Payout, bank: BankPayout, step: Step) -> Change | None:
    """The bank payout as it was read; None if that says nothing new, or is about an attempt that is over."""
    if payout.state is not PayoutState.COMPLETED or bank.attempt != payout.bank_number:
        return None
    # It is to be sent again: late news of the attempt before must not end that.
    if payout.bank_call is None:
        return None
    # What the ledger is to be told, of the end or of what came back, is not forgotten over news from the
    # bank. If that stood still, it is told at once, since the news lifts the hold.
    untold = payout.owed is not None or payout.reversed_micros > 0
    next_attempt_time = payout.next_attempt_time
    if next_attempt_time is None and payout.hold is not None:
        next_attempt_time = payout.update_time
    after = _free(
        payout,
        bank_status=bank.status,
        bank_payout_id=bank.bank_payout_id,
        bank_failure_code=bank.failure_code,
        bank_arrival_time=bank.arrival_time,
        next_attempt_time=next_attempt_time if untold else None,
    )
    if after == payout:
        return None
    step = dataclasses.replace(step, reason=bank.failure_code, stripe_id=bank.bank_payout_id)
    return Change(after, step) if after.bank_status is not payout.bank_status else Change(after)


def bank_refused(payout: Payout, code: str, reason: str, step: Step) -> Change:
    """The bank payout was certainly not made. The money stays on the connected account."""
    after = _free(payout, bank_status=BankStatus.FAILED, bank_failure_code=code, last_error=reason)
    return Change(after, step)


def bank_again(payout: Payout, actor: str, now: datetime) -> Change:
    """Send it to the bank once more, under a new key. Raises FailedPrecondition unless the bank has refused
    it.
    """
    in_doubt = payout.bank_status is BankStatus.WAITING and payout.hold in NEEDS_DECISION
    if payout.bank_status not in (BankStatus.FAILED, BankStatus.CANCELED) and not in_doubt:
        raise state_conflict(payout, "it is sent to the bank again only after the bank refused it")
    after = _free(
        payout,
        bank_status=BankStatus.WAITING,
        bank_call=None,
        bank_payout_id=None,
        bank_failure_code="",
        bank_arrival_time=None,
        next_attempt_time=now,
    )
    return Change(after, Step(actor, "RetryBankPayout"))


def reversed_by(payout: Payout, amount_micros: int, step: Step, now: datetime) -> Change:
    """A part of it came back."""
    after = dataclasses.replace(
        payout, reversed_micros=payout.reversed_micros + amount_micros, next_attempt_time=now
    )
    return Change(after, step)


def sent_again(payout: Payout, actor: str, reason: str, now: datetime) -> Change:
    """An operator is certain that no transfer was made: it waits to be sent under a new key."""
    after = _free(
        payout,
        state=PayoutState.REQUESTED,
        stripe_account_id=None,
        transfer=None,
        next_attempt_time=now,
    )
    return Change(after, Step(actor, "ResolvePayout", reason))


def check_undecided(payout: Payout) -> None:
    """Raises FailedPrecondition unless an operator has to decide what became of the transfer."""
    if payout.state is not PayoutState.PROCESSING or payout.hold not in NEEDS_DECISION:
        raise state_conflict(payout, "nobody has to decide what became of its transfer")


def state_conflict(payout: Payout, message: str) -> FailedPrecondition:
    """What a caller is told who asks for what cannot be done now."""
    return FailedPrecondition(
        f"the payout is {payout.state}: {message}",
        reason="PAYOUT_STATE_CONFLICT",
        metadata={"payout_id": payout.payout_id, "state": payout.state},
    )


def _stands_still(hold: Hold) -> Step:
    return Step(WORKER, "worker", f"held: {_HOLD_WORDS[hold]}")


def _begun_by(payout: Payout) -> str:
    return "RequestPayout" if payout.origin is Origin.REQUEST else "schedule"


def _free(payout: Payout, **changes: Any) -> Payout:
    """The payout with these changes, no longer held, and with nothing to do unless they say so."""
    base: dict[str, Any] = {"hold": None, "attempt_count": 0, "next_attempt_time": None, "last_error": ""}
    return dataclasses.replace(payout, **{**base, **changes})
