"""Transfers to connected accounts and their reversals: at once, or refused."""

from __future__ import annotations

from sandbox.stripe import templates
from sandbox.stripe.errors import invalid, missing
from sandbox.stripe.store import PLATFORM
from sandbox.stripe.values import Json
from sandbox.stripe.world import Call, World, metadata, operation

# Those that a transfer itself shows, the newest first; all are in their own list.
REVERSALS_SHOWN = 10


@operation("PostTransfers", "transfers.create")
def create(call: Call) -> Json:
    world, params = call.world, call.params
    destination = world.account(params["destination"], param="destination", status=400)
    charge = _source(call, params.get("source_transaction"))
    amount, currency = _amount(world, params, charge), params["currency"].lower()
    if charge is not None and charge["currency"] != currency:
        raise invalid("A transfer has the currency of its source_transaction", param="currency")
    if destination["capabilities"].get("transfers") != "active":
        raise invalid(
            "Your destination account needs at least one of these capabilities enabled: transfers",
            "insufficient_capabilities_for_transfer",
        )
    if charge is None and world.balances.available(call.owner, currency) < amount:
        raise invalid("You have insufficient available funds in your Stripe account", "balance_insufficient")
    # Money of a charge moves when the charge's own does: the balance of today has no say.
    available_on = _pending_until(world, charge) if charge else None
    transfer = templates.new(
        "transfer",
        id=world.ids.next("tr"),
        amount=amount,
        created=world.clock.now(),
        currency=currency,
        description=params.get("description"),
        destination=destination["id"],
        metadata=metadata({}, params.get("metadata")),
        source_transaction=charge["id"] if charge else None,
        transfer_group=params.get("transfer_group") or (_group(charge) if charge else None),
    )
    transfer["reversals"]["url"] = f"/v1/transfers/{transfer['id']}/reversals"
    transfer["balance_transaction"] = world.balances.book(
        call.owner, "transfer", -amount, currency, transfer["id"], available_on=available_on
    )["id"]
    payment = _destination_payment(world, transfer, available_on)
    transfer["destination_payment"] = payment["id"]
    world.store.add(call.owner, transfer)
    if charge is not None:
        facts = world.secret(charge["id"])
        facts["transferred"] = facts.get("transferred", 0) + amount
    world.events.emit("transfer.created", transfer, call.owner)
    return transfer


@operation("GetTransfers", "transfers.list")
def list_transfers(call: Call) -> Json:
    return call.page("transfer", "destination", "transfer_group")


@operation("GetTransfersTransfer", "transfers.retrieve")
def retrieve(call: Call) -> Json:
    return call.world.store.get("transfer", call.owner, call.path["transfer"])


@operation("PostTransfersTransfer", "transfers.update")
def update(call: Call) -> Json:
    transfer = call.world.store.get("transfer", call.owner, call.path["transfer"])
    call.world.change(
        "transfer.updated",
        transfer,
        call.owner,
        metadata=metadata(transfer["metadata"], call.params.get("metadata")),
        description=call.params.get("description", transfer["description"]),
    )
    return transfer


@operation("PostTransfersIdReversals", "transfers.reversals.create", unplayed=("refund_application_fee",))
def create_reversal(call: Call) -> Json:
    transfer = call.world.store.get("transfer", call.owner, call.path["id"])
    made = metadata({}, call.params.get("metadata"))
    return reverse(call.world, transfer, call.params.get("amount"), metadata=made)


@operation("GetTransfersIdReversals", "transfers.reversals.list")
def list_reversals(call: Call) -> Json:
    transfer = call.world.store.get("transfer", call.owner, call.path["id"])
    return call.page("transfer_reversal", transfer=transfer["id"])


@operation("GetTransfersTransferReversalsId", "transfers.reversals.retrieve")
def retrieve_reversal(call: Call) -> Json:
    reversal = call.world.store.get("transfer_reversal", call.owner, call.path["id"])
    if reversal["transfer"] != call.path["transfer"]:
        raise missing("transfer_reversal", reversal["id"])
    return reversal


@operation("PostTransfersTransferReversalsId", "transfers.reversals.update")
def update_reversal(call: Call) -> Json:
    reversal = retrieve_reversal(call)
    reversal["metadata"] = metadata(reversal["metadata"], call.params.get("metadata"))
    return reversal


def reverse(world: World, transfer: Json, amount: int | None, *, metadata: Json | None = None) -> Json:
    """Take back `amount`, or what is left: by a call, or in the dashboard.

    Raises:
        StripeError: it is more than is left, or than the connected account has while its reserves are off.
    """
    left = transfer["amount"] - transfer["amount_reversed"]
    amount = left if amount is None else amount
    if not left:
        raise invalid("The transfer has already been reversed in full", param="id")
    if not 0 < amount <= left:
        raise invalid(f"Transfer reversal amount {amount} is not from 1 to {left}", param="amount")
    destination, currency = transfer["destination"], transfer["currency"]
    payment = world.store.get("charge", destination, transfer["destination_payment"])
    ours, theirs = _pending_until(world, transfer), _pending_until(world, payment)
    # Pending money pays back only a transfer that is itself still pending.
    has = world.balances.available(destination, currency)
    has += world.balances.pending(destination, currency) if theirs else 0
    if has < amount and not world.secret(destination).get("reserves"):
        raise invalid("The connected account has insufficient funds to reverse", "balance_insufficient")
    reversal = templates.new(
        "transfer_reversal",
        id=world.ids.next("trr"),
        amount=amount,
        created=world.clock.now(),
        currency=currency,
        metadata=metadata or {},
        transfer=transfer["id"],
    )
    reversal["balance_transaction"] = world.balances.book(
        PLATFORM, "transfer_refund", amount, currency, reversal["id"], available_on=ours
    )["id"]
    reversal["destination_payment_refund"] = _refund_payment(world, destination, payment, amount, theirs)
    world.store.add(PLATFORM, reversal)
    transfer["amount_reversed"] += amount
    transfer["reversed"] = transfer["amount_reversed"] == transfer["amount"]
    shown = transfer["reversals"]
    shown["has_more"] = len(shown["data"]) == REVERSALS_SHOWN
    shown["data"] = [reversal, *shown["data"]][:REVERSALS_SHOWN]
    world.events.emit("transfer.reversed", transfer)
    return reversal


def _pending_until(world: World, moved: Json) -> int | None:
    """When the money of a charge or transfer becomes available; None once it is."""
    transaction = world.store.find(moved["balance_transaction"])
    return transaction["available_on"] if transaction and transaction["status"] == "pending" else None


def _source(call: Call, identifier: str | None) -> Json | None:
    if identifier is None:
        return None
    charge = call.world.store.get("charge", call.owner, identifier, param="source_transaction", status=400)
    if charge["status"] != "succeeded" or charge["source_transfer"] is not None:
        raise invalid("The source_transaction has not succeeded", param="source_transaction")
    return charge


def _amount(world: World, params: Json, charge: Json | None) -> int:
    left = None
    if charge is not None:
        left = charge["amount"] - world.secret(charge["id"]).get("transferred", 0)
    amount = params.get("amount", left)
    if amount is None:
        raise invalid("Missing required param: amount.", "parameter_missing", "amount")
    if amount < 1:
        raise invalid("This value must be greater than or equal to 1.", "parameter_invalid_integer", "amount")
    if left is not None and amount > left:
        raise invalid(f"The source_transaction has {left} left to transfer", param="amount")
    return int(amount)


def _group(charge: Json) -> str:
    return str(charge["transfer_group"] or f"group_{charge['payment_intent'] or charge['id']}")


def _destination_payment(world: World, transfer: Json, available_on: int | None) -> Json:
    """The transfer as the connected account sees it: a payment received."""
    account, amount, currency = transfer["destination"], transfer["amount"], transfer["currency"]
    payment = templates.new(
        "charge",
        id=world.ids.next("py"),
        amount=amount,
        amount_captured=amount,
        created=world.clock.now(),
        currency=currency,
        source_transfer=transfer["id"],
    )
    payment["balance_transaction"] = world.balances.book(
        account, "payment", amount, currency, payment["id"], available_on=available_on
    )["id"]
    return world.store.add(account, payment)


def _refund_payment(world: World, account: str, payment: Json, amount: int, available_on: int | None) -> str:
    currency = payment["currency"]
    refund = templates.new(
        "refund",
        id=world.ids.next("pyr"),
        amount=amount,
        charge=payment["id"],
        created=world.clock.now(),
        currency=currency,
        destination_details=None,
    )
    refund["balance_transaction"] = world.balances.book(
        account, "payment_refund", -amount, currency, refund["id"], available_on=available_on
    )["id"]
    world.store.add(account, refund)
    payment["amount_refunded"] += amount
    payment["refunded"] = payment["amount_refunded"] == payment["amount"]
    return str(refund["id"])
