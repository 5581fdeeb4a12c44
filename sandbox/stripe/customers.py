"""Customers and their payment methods."""

from __future__ import annotations

from sandbox.stripe import templates
from sandbox.stripe.cards import Card, by_name, by_parameters
from sandbox.stripe.errors import StripeError, invalid, missing
from sandbox.stripe.values import Json, snapshot
from sandbox.stripe.world import Call, World, metadata, operation

_COPIED = ("description", "email", "name", "phone", "address", "shipping", "preferred_locales", "balance")


@operation("PostCustomers", "customers.create")
def create(call: Call) -> Json:
    world, params = call.world, call.params
    method = params.get("payment_method")
    customer = templates.new("customer", id=world.ids.next("cus"), created=world.clock.now())
    _take(customer, params)
    if method is not None:
        attach(world, call.owner, payment_method(world, call.owner, method), customer)
    world.store.add(call.owner, customer)
    world.events.emit("customer.created", customer, call.owner)
    return customer


@operation("GetCustomers", "customers.list")
def list_customers(call: Call) -> Json:
    return call.page("customer", "email")


@operation("GetCustomersCustomer", "customers.retrieve")
def retrieve(call: Call) -> Json:
    identifier = call.path["customer"]
    if call.world.hidden.get(identifier, {}).get("deleted"):
        # The derived document wants the last two, which a deleted customer of Stripe's own leaves out.
        return {"id": identifier, "object": "customer", "deleted": True, "livemode": False, "created": 0}
    return call.world.store.get("customer", call.owner, identifier)


@operation("PostCustomersCustomer", "customers.update")
def update(call: Call) -> Json:
    customer = call.world.store.get("customer", call.owner, call.path["customer"])
    before = snapshot(customer)
    _take(customer, call.params)
    call.world.events.emit("customer.updated", customer, call.owner, before=before)
    return customer


@operation("DeleteCustomersCustomer", "customers.delete")
def delete(call: Call) -> Json:
    customer = call.world.store.get("customer", call.owner, call.path["customer"])
    call.world.store.remove(call.owner, customer)
    call.world.secret(customer["id"])["deleted"] = True
    for method in call.world.store.all("payment_method", call.owner):
        if method["customer"] == customer["id"]:
            method["customer"] = None
    call.world.events.emit("customer.deleted", customer, call.owner)
    return {"id": customer["id"], "object": "customer", "deleted": True}


@operation("PostPaymentMethods", "payment_methods.create")
def create_method(call: Call) -> Json:
    if call.params.get("type") != "card" or "card" not in call.params:
        raise invalid("The stand-in makes payment methods of type card only", param="type")
    made = new_method(call.world, call.owner, by_parameters(call.params["card"]))
    made["metadata"] = metadata({}, call.params.get("metadata"))
    return made


@operation("GetPaymentMethods", "payment_methods.list")
def list_methods(call: Call) -> Json:
    return call.page("payment_method", "customer", "type", where=lambda item: bool(item["customer"]))


@operation("GetPaymentMethodsPaymentMethod", "payment_methods.retrieve")
def retrieve_method(call: Call) -> Json:
    return payment_method(call.world, call.owner, call.path["payment_method"])


@operation("PostPaymentMethodsPaymentMethod", "payment_methods.update")
def update_method(call: Call) -> Json:
    method = retrieve_method(call)
    changed = metadata(method["metadata"], call.params.get("metadata"))
    call.world.change("payment_method.updated", method, call.owner, metadata=changed)
    return method


@operation("PostPaymentMethodsPaymentMethodAttach", "payment_methods.attach")
def attach_method(call: Call) -> Json:
    if "customer" not in call.params:
        raise invalid("Missing required param: customer.", "parameter_missing", "customer")
    customer = call.world.store.get(
        "customer", call.owner, call.params["customer"], param="customer", status=400
    )
    return attach(call.world, call.owner, retrieve_method(call), customer)


@operation("PostPaymentMethodsPaymentMethodDetach", "payment_methods.detach")
def detach_method(call: Call) -> Json:
    method = retrieve_method(call)
    if method["customer"] is None:
        raise invalid("The payment method is not attached to a customer")
    call.world.change("payment_method.detached", method, call.owner, customer=None)
    call.world.secret(method["id"])["spent"] = True
    return method


@operation("GetCustomersCustomerPaymentMethods", "customers.payment_methods.list")
def list_of_customer(call: Call) -> Json:
    customer = call.world.store.get("customer", call.owner, call.path["customer"])
    return call.page("payment_method", "type", customer=customer["id"])


@operation("GetCustomersCustomerPaymentMethodsPaymentMethod", "customers.payment_methods.retrieve")
def retrieve_of_customer(call: Call) -> Json:
    method = retrieve_method(call)
    if method["customer"] != call.path["customer"]:
        raise missing("payment_method", method["id"])
    return method


def payment_method(world: World, owner: str, identifier: str) -> Json:
    """A payment method by id, or a new one from one of Stripe's test names.

    Raises:
        StripeError: `resource_missing`.
    """
    card = by_name(identifier)
    if card is not None:
        return new_method(world, owner, card)
    return world.store.get("payment_method", owner, identifier, param="payment_method")


def new_method(world: World, owner: str, card: Card) -> Json:
    method = templates.new("payment_method", id=world.ids.next("pm"), created=world.clock.now(), type="card")
    method["card"] |= {"brand": card.brand, "display_brand": card.brand, "last4": card.number[-4:]}
    method["card"] |= {"generated_from": None, "wallet": None, "networks": None}
    world.secret(method["id"])["card"] = card
    return world.store.add(owner, method)


def card_of(world: World, method: Json) -> Card:
    card: Card = world.secret(method["id"])["card"]
    return card


def attach(world: World, owner: str, method: Json, customer: Json) -> Json:
    """Keep a method for a customer.

    Raises:
        StripeError: 402 for a card that a bank declines, 400 for one that is another's or was detached.
    """
    if method["customer"] == customer["id"]:
        return method
    if method["customer"] is not None or world.secret(method["id"]).get("spent"):
        raise invalid(
            "The payment method is attached to another customer, or was detached and cannot be used again",
            "payment_method_unexpected_state",
        )
    card = card_of(world, method)
    if card.code and card.refuses_attachment:
        raise StripeError(
            402,
            "Your card was declined.",
            kind="card_error",
            code=card.code,
            decline_code=card.decline or None,
        )
    world.change("payment_method.attached", method, owner, customer=customer["id"])
    return method


def _take(customer: Json, params: Json) -> None:
    for name in _COPIED:
        if name in params:
            customer[name] = params[name] if params[name] != "" else None
    customer["metadata"] = metadata(customer["metadata"], params.get("metadata"))
    default = params.get("invoice_settings", {}).get("default_payment_method")
    if default is not None:
        customer["invoice_settings"]["default_payment_method"] = default or None
