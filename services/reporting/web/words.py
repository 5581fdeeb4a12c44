"""What codes mean, in words for people: states of payouts and purchases, outcomes, errors."""

import re
from collections.abc import Mapping
from datetime import UTC
from typing import Final, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import Code, TallystickError
from services.kit.money import Money
from services.kit.runs import ChargeKind, kind_of, service_period
from services.kit.times import timestamp
from tallystick.ledger.v1 import charge_pb2
from tallystick.metering.v1 import charge_line_pb2, subscription_pb2, usage_pb2
from tallystick.payouts.v1 import connected_account_pb2, payout_pb2, purchase_pb2, reconciliation_pb2
from tallystick.reporting.v1 import charge_report_pb2, projection_pb2

# What may succeed when the same request is sent again, and of which it is not known whether it did.
_UNDECIDED: Final = frozenset(
    {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.INTERNAL}
)


class Words(NamedTuple):
    """A state in words, and how it is meant: "good", "bad", "busy" or "" for neither."""

    text: str
    tone: str = ""


_STATES: Final[Mapping[int, Words]] = {
    payout_pb2.PAYOUT_STATE_REQUESTED: Words("Requested", "busy"),
    payout_pb2.PAYOUT_STATE_PROCESSING: Words("Being sent", "busy"),
    payout_pb2.PAYOUT_STATE_COMPLETED: Words("On your account at the payment processor", "good"),
    payout_pb2.PAYOUT_STATE_FAILED: Words("Failed, money returned", "bad"),
    payout_pb2.PAYOUT_STATE_CANCELLED: Words("Cancelled, money returned"),
}
_BANK: Final[Mapping[int, Words]] = {
    payout_pb2.BANK_STATUS_WAITING: Words("Waiting to go to the bank", "busy"),
    payout_pb2.BANK_STATUS_PENDING: Words("Being prepared for the bank", "busy"),
    payout_pb2.BANK_STATUS_IN_TRANSIT: Words("On its way to the bank", "busy"),
    payout_pb2.BANK_STATUS_PAID: Words("Paid to the bank", "good"),
    payout_pb2.BANK_STATUS_FAILED: Words("Sent back by the bank", "bad"),
    payout_pb2.BANK_STATUS_CANCELED: Words("Not sent to the bank", "bad"),
}
_HOLDS: Final[Mapping[int, str]] = {
    payout_pb2.PAYOUT_HOLD_FROZEN: "It stands still: payouts are frozen.",
    payout_pb2.PAYOUT_HOLD_NEGATIVE_EARNINGS: "It stands still: available earnings are below zero.",
    payout_pb2.PAYOUT_HOLD_ACCOUNT_NOT_READY: "It stands still: the connected account may not be paid now.",
    payout_pb2.PAYOUT_HOLD_KEY_REFUSED: "It stands still: the payment processor refuses the platform's key.",
    payout_pb2.PAYOUT_HOLD_KEY_CONFLICT: "It stands still: an operator must look at it.",
    payout_pb2.PAYOUT_HOLD_UNRESOLVED: "It stands still: it may have been sent or not. An operator looks.",
}
_PURCHASES: Final[Mapping[int, Words]] = {
    purchase_pb2.PURCHASE_STATE_PROCESSING: Words("Under way", "busy"),
    purchase_pb2.PURCHASE_STATE_REQUIRES_ACTION: Words("Waits for your confirmation", "busy"),
    purchase_pb2.PURCHASE_STATE_SUCCEEDED: Words("Paid", "good"),
    purchase_pb2.PURCHASE_STATE_FAILED: Words("Not paid", "bad"),
    purchase_pb2.PURCHASE_STATE_CANCELLED: Words("Cancelled"),
}
_LINE_KINDS: Final[Mapping[int, str]] = {
    charge_line_pb2.CHARGE_LINE_KIND_ALLOWANCE: "included",
    charge_line_pb2.CHARGE_LINE_KIND_OUTCOME_FACTOR: "not owed for this outcome",
    charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT: "discount",
    charge_line_pb2.CHARGE_LINE_KIND_MINIMUM: "up to the minimum",
    charge_line_pb2.CHARGE_LINE_KIND_MAXIMUM: "beyond the maximum",
    charge_line_pb2.CHARGE_LINE_KIND_SUBSCRIPTION: "subscription",
    charge_line_pb2.CHARGE_LINE_KIND_PRORATION: "given back",
}
_OUTCOMES: Final[Mapping[int, Words]] = {
    usage_pb2.OUTCOME_SUCCESS: Words("Success", "good"),
    usage_pb2.OUTCOME_FAILURE: Words("Failure", "bad"),
    usage_pb2.OUTCOME_PARTIAL: Words("Partial"),
    usage_pb2.OUTCOME_UNKNOWN: Words("Unknown"),
    usage_pb2.OUTCOME_PENDING: Words("Not decided yet", "busy"),
}
_COMPONENTS: Final[Mapping[int, str]] = {
    charge_pb2.CHARGE_COMPONENT_BASE: "Work",
    charge_pb2.CHARGE_COMPONENT_OUTCOME: "Outcome decided later",
}
_ACCOUNTS: Final[Mapping[int, Words]] = {
    connected_account_pb2.CONNECTED_ACCOUNT_STATE_ONBOARDING: Words("Not set up yet", "busy"),
    connected_account_pb2.CONNECTED_ACCOUNT_STATE_RESTRICTED: Words("Something is still wanted", "bad"),
    connected_account_pb2.CONNECTED_ACCOUNT_STATE_ACTIVE: Words("Ready to be paid", "good"),
    connected_account_pb2.CONNECTED_ACCOUNT_STATE_DISCONNECTED: Words("Disconnected", "bad"),
}
_PROJECTIONS: Final[Mapping[int, Words]] = {
    projection_pb2.PROJECTION_STATE_BUILDING: Words("Being built", "busy"),
    projection_pb2.PROJECTION_STATE_SERVING: Words("Serving", "good"),
    projection_pb2.PROJECTION_STATE_RETIRED: Words("Retired"),
}
_DIFFERENCES: Final[Mapping[int, str]] = {
    reconciliation_pb2.DIFFERENCE_KIND_MISSING_IN_LEDGER: "Missing in the ledger",
    reconciliation_pb2.DIFFERENCE_KIND_MISSING_AT_PROCESSOR: "Missing at the payment processor",
    reconciliation_pb2.DIFFERENCE_KIND_AMOUNT_DIFFERS: "The amounts differ",
    reconciliation_pb2.DIFFERENCE_KIND_FEE_DIFFERS: "The fees differ",
}
_REASONS: Final[Mapping[str, str]] = {
    "PAYOUTS_NOT_ENABLED": "The connected account cannot receive money yet. Finish onboarding first;"
    " nothing was taken.",
    "IDEMPOTENCY_KEY_REUSED": "This form was sent before with another amount. Nothing was changed; look"
    " below, and send it again if you still want to.",
    "PAYMENT_METHOD_NOT_FOUND": "There is no such saved payment method. Choose another one.",
    "CUSTOMER_FROZEN": "This customer is frozen. Ask the platform's operator.",
    "BALANCE_OUT_OF_RANGE": "The balance has no room for that amount.",
    "TOO_MANY_IN_FLIGHT": "Too much is going on at once. Please try again in a moment.",
    "CONFLICT": "Something else changed the same balance at that moment. Please try again.",
}
_AWAY: Final = (
    "No answer came in time, so it is not known whether it was done. Send the form again: it is done once,"
    " however often it is sent."
)


def payout_status(payout: payout_pb2.Payout) -> Words:
    """Where a payout is: at the bank if it came that far."""
    if payout.state == payout_pb2.PAYOUT_STATE_COMPLETED and payout.bank_status in _BANK:
        return _BANK[payout.bank_status]
    return _STATES.get(payout.state, Words("Unknown"))


def transition(step: payout_pb2.PayoutTransition) -> Words:
    """What a step of a payout brought it to."""
    if step.state == payout_pb2.PAYOUT_STATE_COMPLETED and step.bank_status > payout_pb2.BANK_STATUS_WAITING:
        return _BANK.get(step.bank_status, Words("Unknown"))
    return _STATES.get(step.state, Words("Unknown"))


def reason(text: str) -> str:
    """A reason in words, or a code such as "account_closed", which is nearly words."""
    return text.replace("_", " ") if re.fullmatch(r"[a-z_]+", text) else text


def hold(payout: payout_pb2.Payout) -> str:
    """Why a payout stands still; empty if it does not."""
    return _HOLDS.get(payout.hold, "")


def purchase_status(purchase: purchase_pb2.Purchase) -> Words:
    """Whether a purchase was paid."""
    return _PURCHASES.get(purchase.state, Words("Unknown"))


def outcome(value: int) -> Words:
    """How work ended."""
    return _OUTCOMES.get(value, Words("Not known"))


def component(value: int) -> str:
    """Which part of a run a charge is for."""
    return _COMPONENTS.get(value, "")


def agreed(charge: charge_pb2.Charge | charge_report_pb2.ReportedCharge) -> str:
    """What a charge is for that is for no work; empty for work. Its run says it, whoever tells of it."""
    match kind_of(charge.workflow_id):
        case ChargeKind.SUBSCRIPTION:
            return "Subscription fee"
        case ChargeKind.PERIOD_CLOSE:
            return "Adjustment of a period close" if charge.ordinal else "Period close"
        case _:
            return ""


def service(
    charge: charge_pb2.Charge | charge_report_pb2.ReportedCharge,
) -> tuple[Timestamp, Timestamp] | None:
    """The service period, begin and end, of a charge that is for no work."""
    found = service_period(charge.workflow_id, charge.occur_time.ToDatetime(UTC))
    return None if found is None else (timestamp(found.start), timestamp(found.end))


def subscription_state(one: subscription_pb2.Subscription) -> Words:
    """Where a subscription is in its life."""
    if one.state == subscription_pb2.SUBSCRIPTION_STATE_CANCELED:
        return Words("Ended")
    if one.cancel_at_period_end:
        return Words("Ends with its period", "busy")
    if one.pending_plan_name:
        return Words("Changes with its period", "busy")
    return Words("Active", "good")


def line_note(line: charge_line_pb2.ChargeLine) -> str:
    """What a line of a charge is for, beyond its name: its kind, its tier, or nothing."""
    tier = f"tier {line.tier}" if line.tier else ""
    return ", ".join(filter(None, (_LINE_KINDS.get(line.kind, ""), tier)))


def account_status(account: connected_account_pb2.ConnectedAccount) -> Words:
    """Whether an organization can be paid."""
    return _ACCOUNTS.get(account.state, Words("Unknown"))


def projection_status(projection: projection_pb2.Projection) -> Words:
    """Where a projection is in its life."""
    return _PROJECTIONS.get(projection.state, Words("Unknown"))


def difference(value: int) -> str:
    """How the payment processor's books and ours differ."""
    return _DIFFERENCES.get(value, "They differ")


def concentration(index: int) -> str:
    """What a Herfindahl-Hirschman index is commonly taken for."""
    if index > 2_500:
        return "highly concentrated"
    return "moderately concentrated" if index > 1_500 else "not concentrated"


def is_undecided(error: TallystickError) -> bool:
    """Whether it is open what became of a request: then it is sent again with the same idempotency key."""
    return error.code in _UNDECIDED


def explain(error: TallystickError) -> str:
    """Why something was not done, and what to do, for who asked for it."""
    if error.reason in _REASONS:
        return _REASONS[error.reason]
    if is_undecided(error):
        return _AWAY
    told = error.metadata
    if error.reason == "INSUFFICIENT_EARNINGS":
        available = _amount(told.get("available_micros"), told.get("currency_code"))
        return f"That is more than is available{f', {available}' if available else ''}. Nothing was taken."
    if error.reason == "PAYOUTS_FROZEN":
        why = told.get("freeze_reason") or "ask the operator of the platform"
        return f"Payouts are frozen: {why}. Nothing was taken."
    if error.reason == "PROCESSOR_REFUSED":
        code = told.get("decline_code") or told.get("processor_code") or "no reason given"
        return f"The payment processor refused it ({code.replace('_', ' ')}). Nothing was paid."
    if error.field_violations:
        return " ".join(_sentence(violation.description) for violation in error.field_violations)
    return _sentence(error.message)


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _amount(micros: str | None, currency_code: str | None) -> str:
    try:
        return str(Money(currency_code or "", int(micros or "")))
    except (ValueError, TallystickError, OverflowError):
        return ""
