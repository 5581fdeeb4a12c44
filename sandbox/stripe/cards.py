"""Stripe's test cards: what each does when it is charged."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.stripe.errors import missing
from sandbox.stripe.values import Json


@dataclass(frozen=True)
class Card:
    """`decline` is Stripe's decline code; `asks` says when the holder must authenticate."""

    number: str
    brand: str = "visa"
    code: str = ""
    decline: str = ""
    # "always"; "once": not again off session after a success that set it up; "on_session": never off session.
    asks: str = ""
    # The reason of the dispute that follows a charge at once.
    disputed: str = ""
    # What becomes of a refund later: "fails" after it succeeded, or "pending" until it succeeds.
    refund: str = ""
    settles_at_once: bool = False
    # Declined when it is attached to a customer, not only when charged.
    refuses_attachment: bool = True


_DECLINED = "card_declined"
_CARDS = {
    "pm_card_visa": Card("4242424242424242"),
    "pm_card_mastercard": Card("5555555555554444", "mastercard"),
    "pm_card_amex": Card("378282246310005", "amex"),
    "pm_card_chargeDeclined": Card("4000000000000002", code=_DECLINED, decline="generic_decline"),
    "pm_card_chargeDeclinedInsufficientFunds": Card(
        "4000000000009995", code=_DECLINED, decline="insufficient_funds"
    ),
    "pm_card_chargeDeclinedLostCard": Card("4000000000009987", code=_DECLINED, decline="lost_card"),
    "pm_card_chargeDeclinedExpiredCard": Card("4000000000000069", code="expired_card"),
    "pm_card_chargeDeclinedIncorrectCvc": Card("4000000000000127", code="incorrect_cvc"),
    "pm_card_chargeDeclinedProcessingError": Card("4000000000000119", code="processing_error"),
    "pm_card_chargeCustomerFail": Card(
        "4000000000000341", code=_DECLINED, decline="generic_decline", refuses_attachment=False
    ),
    "pm_card_chargeDeclinedStolenCard": Card("4000000000009979", code=_DECLINED, decline="stolen_card"),
    "pm_card_authenticationRequired": Card("4000002760003184", asks="always"),
    "pm_card_authenticationRequiredOnSetup": Card("4000002500003155", asks="once"),
    "pm_card_authenticationRequiredSetupForOffSession": Card("4000003800000446", asks="on_session"),
    "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds": Card(
        "4000008260003178",
        code=_DECLINED,
        decline="insufficient_funds",
        asks="always",
        refuses_attachment=False,
    ),
    "pm_card_threeDSecure2Required": Card("4000000000003220", asks="always"),
    "pm_card_createDispute": Card("4000000000000259", disputed="fraudulent"),
    "pm_card_createDisputeProductNotReceived": Card("4000000000002685", disputed="product_not_received"),
    "pm_card_pendingRefund": Card("4000000000007726", refund="pending"),
    "pm_card_refundFail": Card("4000000000005126", refund="fails"),
    "pm_card_bypassPending": Card("4000000000000077", settles_at_once=True),
}
# Another name that Stripe gives the same card.
_CARDS["pm_card_visa_chargeDeclinedInsufficientFunds"] = _CARDS["pm_card_chargeDeclinedInsufficientFunds"]
_CARDS["pm_card_visa_chargeDeclined"] = _CARDS["pm_card_chargeDeclined"]
_BY_NUMBER = {card.number: card for card in _CARDS.values()}
_TOKENS = {"tok_visa": "pm_card_visa", "tok_chargeDeclined": "pm_card_chargeDeclined"}


def by_name(name: str) -> Card | None:
    """The card of a test name such as `pm_card_visa` or `tok_visa`."""
    return _CARDS.get(_TOKENS.get(name, name))


def by_parameters(card: Json) -> Card:
    """The card of `card[number]` or `card[token]`.

    Raises:
        StripeError: the number or token is none of Stripe's.
    """
    found = by_name(card["token"]) if "token" in card else _BY_NUMBER.get(card.get("number", ""))
    if found is None:
        raise missing("test card", str(card.get("token", card.get("number", ""))), param="card", status=400)
    return found
