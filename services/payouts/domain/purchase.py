"""A purchase of credits: its states, and what each thing that happens makes of it.

As with payouts, every function takes a purchase as it is and answers a Change, which is written only if
nobody else changed the purchase since it was read.

    processing ⇄ requires_action → paid → succeeded
        └──────────────┴─────────→ failed | cancelled

What a payment is, is read at the payment processor; nothing here believes an event. A purchase ends without
being paid only when its payment can never be made any more. Should money come all the same, it becomes
credits: `observed` leads out of `failed` and `cancelled` too.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from services.kit.errors import FailedPrecondition
from services.kit.money import Money
from services.payouts.domain.payout import WORKER, Call, Step
from services.payouts.domain.units import to_minor

# How often a payment is looked at that waits for others; the processor's events come sooner.
LOOK_PAUSE: Final = timedelta(hours=1)
# A customer who is to confirm a payment has so long. After that it is cancelled.
ACTION_LIFE: Final = timedelta(hours=23)
# A call that was under way has been carried out by then, or never will be.
CALL_LIFE: Final = timedelta(minutes=15)


class PurchaseState(StrEnum):
    """Whether it is paid; values as in the table."""

    PROCESSING = "processing"
    REQUIRES_ACTION = "requires_action"
    PAID = "paid"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN: Final = frozenset({PurchaseState.PROCESSING, PurchaseState.REQUIRES_ACTION})
UNPAID: Final = frozenset({PurchaseState.FAILED, PurchaseState.CANCELLED})


class Origin(StrEnum):
    """Who began it."""

    REQUEST = "request"
    AUTO_RECHARGE = "auto_recharge"


class Hold(StrEnum):
    """Why a purchase stands still."""

    KEY_REFUSED = "key_refused"
    KEY_CONFLICT = "key_conflict"
    UNRESOLVED = "unresolved"


# What the history says of a hold; what the payment processor says is in last_error, and in the log.
_HOLD_WORDS: Final[Mapping[Hold, str]] = {
    Hold.KEY_REFUSED: "the payment processor refuses our key, which an operator has to mend",
    Hold.KEY_CONFLICT: "its idempotency key was used for something else, which an operator has to look into",
    Hold.UNRESOLVED: "what became of it is not certain, which an operator has to look into",
}


class IntentStatus(StrEnum):
    """How far a payment is at the payment processor; what is not known to us is PROCESSING."""

    PROCESSING = "processing"
    REQUIRES_ACTION = "requires_action"
    # Declined, or never confirmed: it waits for another attempt, which we never make.
    STALLED = "stalled"
    SUCCEEDED = "succeeded"
    CANCELED = "canceled"


class ReversalKind(StrEnum):
    """Why money went back."""

    REFUND = "refund"
    DISPUTE = "dispute"


@dataclass(frozen=True, slots=True)
class Fee:
    """What the payment processor took by a balance transaction; negative for what it gave back."""

    fee_id: str
    money: Money
    reason: str
    posted: bool = False


@dataclass(frozen=True, slots=True)
class Reversal:
    """A refund or dispute that took money of a purchase, and what of that came again."""

    reversal_id: str
    kind: ReversalKind
    amount_micros: int
    reason: str
    create_time: datetime
    reinstatement_id: str = ""
    reinstated_micros: int = 0
    posted: bool = False
    reinstatement_posted: bool = False

    @property
    def net_micros(self) -> int:
        """What is gone."""
        return self.amount_micros - self.reinstated_micros


@dataclass(frozen=True, slots=True)
class Intent:
    """A payment as it was read at the payment processor. `fee` is None until that says it."""

    payment_intent_id: str
    purchase_id: str
    stripe_customer_id: str
    status: IntentStatus
    amount: Money
    received: Money
    fee: Fee | None = None
    failure_code: str = ""
    failure_reason: str = ""
    client_secret: str = dataclasses.field(default="", repr=False)
    action_url: str = ""


@dataclass(frozen=True, slots=True)
class Movements:
    """All that moved money of a payment; `fees` are those of refunds and disputes.

    `dead_refunds` are refunds that failed before they moved any.
    """

    intent: Intent
    reversals: tuple[Reversal, ...]
    fees: tuple[Fee, ...]
    dead_refunds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Purchase:
    """A row of payouts.purchase. Times are UTC."""

    purchase_id: str
    customer_id: str
    money: Money
    origin: Origin
    request_hash: bytes
    requester: str
    payment_method_id: str
    intent: Call
    create_time: datetime
    update_time: datetime
    state: PurchaseState = PurchaseState.PROCESSING
    payment_intent_id: str | None = None
    failure_code: str = ""
    failure_reason: str = ""
    cancel_time: datetime | None = None
    transaction_id: str | None = None
    refunded_micros: int = 0
    disputed_micros: int = 0
    fee_micros: int | None = None
    look: bool = False
    hold: Hold | None = None
    attempt_count: int = 0
    next_attempt_time: datetime | None = None
    last_error: str = ""
    version: int = 0

    @property
    def stripe_customer_id(self) -> str:
        """The customer at the payment processor who pays."""
        return str(self.intent.body["customer"])

    @property
    def left_micros(self) -> int:
        """What has not gone back."""
        return self.money.amount_micros - self.refunded_micros - self.disputed_micros


@dataclass(frozen=True, slots=True)
class Change:
    """A purchase as it becomes, and what was learnt of its money. Without a step its history stays."""

    purchase: Purchase
    step: Step | None = None
    reversals: tuple[Reversal, ...] = ()
    fees: tuple[Fee, ...] = ()


def payment_call(
    purchase_id: str,
    customer_id: str,
    money: Money,
    *,
    stripe_customer_id: str,
    payment_method_id: str,
    off_session: bool,
    return_url: str,
    now: datetime,
) -> Call:
    """The one call that makes and confirms the payment, frozen."""
    body: dict[str, Any] = {
        "amount": to_minor(money),
        "currency": money.currency_code.lower(),
        "customer": stripe_customer_id,
        "payment_method": payment_method_id,
        "confirm": True,
        "return_url": return_url,
        # By these a payment is found whose answer was never seen.
        "metadata": {"purchase_id": purchase_id, "customer_id": customer_id},
        # So that the fee is usually known at once.
        "expand": ["latest_charge.balance_transaction"],
    }
    if off_session:
        body["off_session"] = True
    return Call(body, f"tallystick-purchase-{purchase_id}", now)


def observed(purchase: Purchase, intent: Intent, step: Step, now: datetime) -> Change | None:
    """The payment as it was read; None if that says nothing new."""
    if not is_payment_of(intent, purchase):
        return held(purchase, Hold.UNRESOLVED, f"{intent.payment_intent_id} is not the payment of it")
    if purchase.state in (PurchaseState.PAID, PurchaseState.SUCCEEDED):
        return None
    step = dataclasses.replace(step, stripe_id=intent.payment_intent_id)
    known = dataclasses.replace(purchase, payment_intent_id=intent.payment_intent_id)
    if intent.status is IntentStatus.SUCCEEDED:
        return _paid(known, intent, step, now)
    if purchase.state in UNPAID:
        # Found after it was given up: what can still be paid is cancelled.
        ended = intent.status is IntentStatus.CANCELED
        return None if ended else Change(_free(known, next_attempt_time=now))
    if intent.status is IntentStatus.CANCELED:
        return ended_unpaid(known, step)
    if intent.status is IntentStatus.STALLED and (intent.failure_code or _is_abandoned(purchase, now)):
        code = intent.failure_code or "payment_not_confirmed"
        return declined(purchase, intent.payment_intent_id, code, intent.failure_reason, step, now)
    if purchase.cancel_time is not None and intent.status is IntentStatus.REQUIRES_ACTION:
        return Change(_free(known, next_attempt_time=now))
    return _waiting(known, intent, step, now)


def moved(purchase: Purchase, intent: Intent, step: Step, now: datetime) -> Change | None:
    """The payment as it was read when something else happened to its money, which is to be read, too."""
    change = observed(purchase, intent, step, now) or Change(purchase)
    if change.purchase.state not in (PurchaseState.PAID, PurchaseState.SUCCEEDED):
        return change if change.purchase is not purchase else None
    woken = dataclasses.replace(change.purchase, look=True, next_attempt_time=now)
    return dataclasses.replace(change, purchase=woken)


def settled(purchase: Purchase, intent: Intent, step: Step, now: datetime) -> Change | None:
    """The payment as it was read when its fee may have become known."""
    judge = moved if purchase.fee_micros is None else observed
    return judge(purchase, intent, step, now)


def declined(
    purchase: Purchase, payment_intent_id: str, code: str, reason: str, step: Step, now: datetime
) -> Change:
    """The payment was declined: it is cancelled, so that nobody can confirm it once more, and has failed
    then.
    """
    after = _free(
        purchase,
        payment_intent_id=payment_intent_id,
        failure_code=purchase.failure_code or code,
        failure_reason=purchase.failure_reason or reason,
        cancel_time=purchase.cancel_time or now,
        next_attempt_time=now,
    )
    return Change(after, dataclasses.replace(step, reason=code, stripe_id=payment_intent_id))


def refused(purchase: Purchase, code: str, reason: str, step: Step) -> Change:
    """No payment was made, and none ever will be."""
    after = _free(purchase, state=PurchaseState.FAILED, failure_code=code, failure_reason=reason)
    return Change(after, dataclasses.replace(step, reason=code))


def absent(purchase: Purchase, step: Step) -> Change:
    """Nobody asks for the payment any more, and the processor has none."""
    if purchase.cancel_time is not None:
        return ended_unpaid(purchase, step)
    return refused(purchase, "payment_not_made", "the payment processor never made the payment", step)


def ended_unpaid(purchase: Purchase, step: Step) -> Change:
    """The payment can never be made any more."""
    state = PurchaseState.FAILED if purchase.failure_code else PurchaseState.CANCELLED
    return Change(_free(purchase, state=state), dataclasses.replace(step, reason=purchase.failure_code))


def cancelling(purchase: Purchase, actor: str, now: datetime) -> Change | None:
    """Its owner does not want it any more; None if that is known. Raises FailedPrecondition once it has ended
    otherwise.
    """
    if purchase.state is PurchaseState.CANCELLED:
        return None
    if purchase.state not in OPEN:
        raise state_conflict(purchase, "it can be cancelled only until it is paid")
    if purchase.cancel_time is not None:
        return None
    after = _free(purchase, cancel_time=now, next_attempt_time=now)
    return Change(after, Step(actor, "CancelPurchase"))


def out_of_time(purchase: Purchase, now: datetime) -> Change | None:
    """Nobody has confirmed it in time; None if there is time left."""
    if now - purchase.create_time < ACTION_LIFE or purchase.cancel_time is not None:
        return None
    after = _free(
        purchase,
        failure_code="authentication_expired",
        failure_reason="the customer did not confirm the payment within a day",
        cancel_time=now,
        next_attempt_time=now,
    )
    return Change(after, Step(WORKER, "worker", "authentication_expired"))


def granted(purchase: Purchase, transaction_id: str, now: datetime) -> Change:
    """The ledger has granted the credits."""
    after = _free(
        purchase,
        state=PurchaseState.SUCCEEDED,
        transaction_id=transaction_id,
        look=purchase.look or purchase.fee_micros is None,
        next_attempt_time=now,
    )
    return Change(after, Step(WORKER, "GrantCredits", stripe_id=purchase.payment_intent_id or ""))


def looked(purchase: Purchase, found: Movements, now: datetime) -> Change:
    """All that moved its money, as it was read."""
    fees = found.fees if found.intent.fee is None else (found.intent.fee, *found.fees)
    currency = purchase.money.currency_code
    after = _free(
        purchase,
        refunded_micros=_gone(found, ReversalKind.REFUND),
        disputed_micros=_gone(found, ReversalKind.DISPUTE),
        fee_micros=(
            None
            if found.intent.fee is None
            else sum(fee.money.amount_micros for fee in fees if fee.money.currency_code == currency)
        ),
        look=False,
        next_attempt_time=now,
    )
    news = (after.refunded_micros, after.disputed_micros) != (
        purchase.refunded_micros,
        purchase.disputed_micros,
    )
    step = Step(
        WORKER, "worker", f"refunded {after.refunded_micros}, disputed {after.disputed_micros} micros"
    )
    return Change(after, step if news else None, found.reversals, fees)


def told(purchase: Purchase, now: datetime) -> Change:
    """The ledger knows all that is known here."""
    if purchase.state is PurchaseState.SUCCEEDED and purchase.fee_micros is None:
        # The processor settles some payments later; its event comes sooner than this.
        return Change(_free(purchase, look=True, next_attempt_time=now + LOOK_PAUSE))
    return Change(_free(purchase))


def woken(purchase: Purchase, now: datetime) -> Change:
    """Something has happened to its money: it is to be read again."""
    return Change(dataclasses.replace(purchase, look=True, next_attempt_time=now))


def again_later(
    purchase: Purchase, error: str, next_attempt_time: datetime, hold: Hold | None = None
) -> Change:
    """Nothing is certain, or something is in the way: it is tried again."""
    after = dataclasses.replace(
        purchase,
        attempt_count=purchase.attempt_count + 1,
        next_attempt_time=next_attempt_time,
        last_error=error,
        hold=hold,
    )
    # A hold is news the first time; the same hold again is not.
    return Change(after, None if hold is None or hold is purchase.hold else _stands_still(hold))


def held(purchase: Purchase, hold: Hold, error: str) -> Change:
    """No repetition mends it: a person must look, and until then nothing happens."""
    after = dataclasses.replace(purchase, hold=hold, next_attempt_time=None, last_error=error)
    return Change(after, _stands_still(hold))


def state_conflict(purchase: Purchase, message: str) -> FailedPrecondition:
    """What a caller is told who asks for what cannot be done now."""
    return FailedPrecondition(
        f"the purchase is {purchase.state}: {message}",
        reason="PURCHASE_STATE_CONFLICT",
        metadata={"purchase_id": purchase.purchase_id, "state": purchase.state},
    )


def is_payment_of(intent: Intent, purchase: Purchase) -> bool:
    """Whether it is the payment that was asked for. Metadata alone is only a label, which anybody may use."""
    return (
        intent.purchase_id == purchase.purchase_id
        and intent.stripe_customer_id == purchase.stripe_customer_id
        and intent.amount == purchase.money
        and purchase.payment_intent_id in (None, intent.payment_intent_id)
    )


def _stands_still(hold: Hold) -> Step:
    return Step(WORKER, "worker", f"held: {_HOLD_WORDS[hold]}")


def _paid(known: Purchase, intent: Intent, step: Step, now: datetime) -> Change:
    if intent.received != known.money:
        return held(known, Hold.UNRESOLVED, f"{intent.received} were paid, and not {known.money}")
    after = _free(
        known,
        state=PurchaseState.PAID,
        failure_code="",
        failure_reason="",
        cancel_time=None,
        fee_micros=_fee_micros(intent, known.money.currency_code),
        next_attempt_time=now,
    )
    return Change(after, step, fees=() if intent.fee is None else (intent.fee,))


def _is_abandoned(purchase: Purchase, now: datetime) -> bool:
    """Whether the call that makes the payment and confirms it cannot be between the two any more."""
    return now - purchase.intent.time >= CALL_LIFE


def _fee_micros(intent: Intent, currency_code: str) -> int | None:
    if intent.fee is None:
        return None
    return intent.fee.money.amount_micros if intent.fee.money.currency_code == currency_code else 0


def _waiting(known: Purchase, intent: Intent, step: Step, now: datetime) -> Change:
    asks = intent.status is IntentStatus.REQUIRES_ACTION
    state = PurchaseState.REQUIRES_ACTION if asks else PurchaseState.PROCESSING
    after = _free(known, state=state, next_attempt_time=now + LOOK_PAUSE)
    return Change(after, step if state is not known.state else None)


def _gone(found: Movements, kind: ReversalKind) -> int:
    return sum(one.net_micros for one in found.reversals if one.kind is kind)


def _free(purchase: Purchase, **changes: Any) -> Purchase:
    """The purchase with these changes, no longer held, and with nothing to do unless they say so."""
    base: dict[str, Any] = {"hold": None, "attempt_count": 0, "next_attempt_time": None, "last_error": ""}
    return dataclasses.replace(purchase, **{**base, **changes})
