"""Payment intents: confirmed into a charge, declined, or waiting for the card's holder."""

from __future__ import annotations

from sandbox.stripe import templates
from sandbox.stripe.cards import Card, by_parameters
from sandbox.stripe.charges import charge_card
from sandbox.stripe.currencies import check_charge
from sandbox.stripe.customers import attach, card_of, new_method, payment_method
from sandbox.stripe.errors import StripeError, invalid
from sandbox.stripe.values import Json, snapshot
from sandbox.stripe.world import Call, World, metadata, operation

_COPIED = (
    "description",
    "receipt_email",
    "transfer_group",
    "setup_future_usage",
    "statement_descriptor_suffix",
)
# Each would move money to a connected account.
_UNPLAYED = ("application_fee_amount", "transfer_data", "on_behalf_of")
_CONFIRMABLE = ("requires_payment_method", "requires_confirmation", "requires_action")


@operation("PostPaymentIntents", "payment_intents.create", unplayed=_UNPLAYED)
def create(call: Call) -> Json:
    world, params = call.world, call.params
    currency = params["currency"].lower()
    check_charge(params["amount"], currency)
    if params.get("capture_method", "automatic") == "manual":
        raise invalid("The stand-in captures at once", param="capture_method")
    if params.get("off_session") and not params.get("confirm"):
        raise invalid("off_session is for intents that are confirmed at once", param="off_session")
    customer = _customer(call, params.get("customer"))
    intent = templates.new(
        "payment_intent",
        id=world.ids.next("pi"),
        amount=params["amount"],
        created=world.clock.now(),
        currency=currency,
        customer=customer,
        metadata=metadata({}, params.get("metadata")),
        payment_method=None,
        status="requires_payment_method",
    )
    intent["client_secret"] = f"{intent['id']}_secret_{world.ids.next('s')}"
    if "payment_method_types" in params:
        intent["payment_method_types"] = params["payment_method_types"]
    _take(call, intent, params)
    world.store.add(call.owner, intent)
    world.events.emit("payment_intent.created", intent, call.owner)
    if params.get("confirm"):
        _confirm(call, intent)
    return intent


@operation("GetPaymentIntents", "payment_intents.list")
def list_intents(call: Call) -> Json:
    return call.page("payment_intent", "customer")


@operation("GetPaymentIntentsIntent", "payment_intents.retrieve")
def retrieve(call: Call) -> Json:
    return call.world.store.get("payment_intent", call.owner, call.path["intent"])


@operation("PostPaymentIntentsIntent", "payment_intents.update", unplayed=_UNPLAYED)
def update(call: Call) -> Json:
    intent, params = retrieve(call), call.params
    if not params.keys().isdisjoint(("amount", "payment_method", "payment_method_data", "customer")):
        _expect(intent, _CONFIRMABLE)
    if "amount" in params:
        check_charge(params["amount"], intent["currency"])
        intent["amount"] = params["amount"]
    if "customer" in params:
        intent["customer"] = _customer(call, params["customer"])
    _take(call, intent, params)
    intent["metadata"] = metadata(intent["metadata"], params.get("metadata"))
    return intent


@operation("PostPaymentIntentsIntentConfirm", "payment_intents.confirm", unplayed=_UNPLAYED)
def confirm(call: Call) -> Json:
    intent = retrieve(call)
    _expect(intent, _CONFIRMABLE)
    _take(call, intent, call.params)
    _confirm(call, intent)
    return intent


@operation("PostPaymentIntentsIntentCancel", "payment_intents.cancel")
def cancel(call: Call) -> Json:
    intent = retrieve(call)
    _expect(intent, _CONFIRMABLE)
    call.world.change(
        "payment_intent.canceled",
        intent,
        call.owner,
        status="canceled",
        canceled_at=call.world.clock.now(),
        cancellation_reason=call.params.get("cancellation_reason"),
        next_action=None,
    )
    return intent


def authenticate(world: World, owner: str, intent: Json, *, success: bool) -> None:
    """The card's holder answers the bank: the charge is made, or the intent waits for another method.

    Raises:
        StripeError: it does not wait for that, or the card is declined.
    """
    _expect(intent, ("requires_action",))
    if success:
        _charge(world, owner, intent)
    else:
        message = "The customer could not be authenticated."
        _fail(world, owner, intent, _error(message, "payment_intent_authentication_failure"))


def _confirm(call: Call, intent: Json) -> None:
    world, owner, params = call.world, call.owner, call.params
    if intent["payment_method"] is None:
        raise invalid("A payment method is needed to confirm", "payment_intent_unexpected_state")
    method = payment_method(world, owner, intent["payment_method"])
    if method["customer"] is not None and method["customer"] != intent["customer"]:
        raise invalid(
            "The payment method belongs to a customer: name that customer", "payment_intent_unexpected_state"
        )
    card = card_of(world, method)
    if _asks(world, card, method, params):
        if params.get("off_session") or params.get("error_on_requires_action"):
            _decline(world, owner, intent, card, "authentication_required")
        action = {"url": f"{world.url}/authenticate/{intent['id']}", "return_url": params.get("return_url")}
        world.change(
            "payment_intent.requires_action",
            intent,
            owner,
            status="requires_action",
            next_action={"type": "redirect_to_url", "redirect_to_url": action},
        )
        return
    _charge(world, owner, intent)


def _asks(world: World, card: Card, method: Json, params: Json) -> bool:
    if params.get("off_session"):
        return card.asks == "always" or (card.asks == "once" and not world.secret(method["id"]).get("set_up"))
    return bool(card.asks)


def _charge(world: World, owner: str, intent: Json) -> None:
    method = payment_method(world, owner, intent["payment_method"])
    card = card_of(world, method)
    if card.code:
        _decline(world, owner, intent, card, card.code)
    before = snapshot(intent)
    charge = charge_card(world, owner, intent, method, card)
    if intent["setup_future_usage"] == "off_session" and intent["customer"]:
        world.secret(method["id"])["set_up"] = True
        if method["customer"] is None:
            attach(world, owner, method, world.store.get("customer", owner, intent["customer"]))
    intent |= {
        "status": "succeeded",
        "amount_received": intent["amount"],
        "latest_charge": charge["id"],
        "next_action": None,
        "last_payment_error": None,
    }
    world.events.emit("payment_intent.succeeded", intent, owner, before=before)


def _decline(world: World, owner: str, intent: Json, card: Card, code: str) -> None:
    """Raises:
    StripeError: always: 402 with the intent in it.
    """
    method = payment_method(world, owner, intent["payment_method"])
    charge = charge_card(world, owner, intent, method, card, failure=code)
    intent["latest_charge"] = charge["id"]
    message = (
        "Your card was declined." if code != "authentication_required" else "Authentication is required."
    )
    decline = card.decline or (code if code == "authentication_required" else None)
    error = _error(message, code) | ({"decline_code": decline} if decline else {})
    error |= {"charge": charge["id"], "payment_method": snapshot(method)}
    _fail(world, owner, intent, error)
    fields = {name: value for name, value in error.items() if name not in ("type", "message")}
    raise StripeError(402, message, kind="card_error", **fields, payment_intent=snapshot(intent))


def _fail(world: World, owner: str, intent: Json, error: Json) -> None:
    world.change(
        "payment_intent.payment_failed",
        intent,
        owner,
        status="requires_payment_method",
        payment_method=None,
        last_payment_error=error,
        next_action=None,
    )


def _error(message: str, code: str) -> Json:
    return {"type": "card_error", "code": code, "message": message}


def _take(call: Call, intent: Json, params: Json) -> None:
    for name in _COPIED:
        if name in params:
            intent[name] = params[name] or None
    method = None
    if "payment_method" in params:
        method = payment_method(call.world, call.owner, params["payment_method"])
    elif "payment_method_data" in params:
        method = new_method(
            call.world, call.owner, by_parameters(params["payment_method_data"].get("card", {}))
        )
    if method is not None:
        intent["payment_method"] = method["id"]
        if intent["status"] == "requires_payment_method":
            intent["status"] = "requires_confirmation"


def _customer(call: Call, identifier: str | None) -> str | None:
    if identifier is None:
        return None
    found = call.world.store.get("customer", call.owner, identifier, param="customer", status=400)
    return str(found["id"])


def _expect(intent: Json, statuses: tuple[str, ...]) -> None:
    if intent["status"] not in statuses:
        raise invalid(
            f"A payment intent that is {intent['status']} does not allow this",
            "payment_intent_unexpected_state",
        )
