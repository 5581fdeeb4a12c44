"""Charges, their fees, refunds and disputes."""

from __future__ import annotations

from sandbox.stripe import templates
from sandbox.stripe.cards import Card
from sandbox.stripe.clock import DAY, HOUR
from sandbox.stripe.errors import invalid
from sandbox.stripe.values import Json, snapshot
from sandbox.stripe.world import Call, World, metadata, operation

# What cards cost in the US, in tenths of a percent and minor units; here, in other currencies too.
FEE_PER_MILLE, FEE_FIXED = 29, 30
DISPUTE_FEE = 1_500
SETTLES_AFTER = 2 * DAY
DISPUTE_ANSWER_WITHIN = 20 * DAY
REFUND_ENDS_AFTER = HOUR


@operation("GetCharges", "charges.list")
def list_charges(call: Call) -> Json:
    return call.page("charge", "customer", "payment_intent", "transfer_group")


@operation("GetChargesCharge", "charges.retrieve")
def retrieve(call: Call) -> Json:
    return call.world.store.get("charge", call.owner, call.path["charge"])


@operation("PostChargesCharge", "charges.update")
def update(call: Call) -> Json:
    charge = retrieve(call)
    changed = metadata(charge["metadata"], call.params.get("metadata"))
    group = call.params.get("transfer_group", charge["transfer_group"])
    call.world.change("charge.updated", charge, call.owner, metadata=changed, transfer_group=group)
    return charge


@operation("PostRefunds", "refunds.create", unplayed=("reverse_transfer", "refund_application_fee"))
def create_refund(call: Call) -> Json:
    world, params = call.world, call.params
    if ("charge" in params) == ("payment_intent" in params):
        raise invalid("Give charge or payment_intent", "parameter_missing", "charge")
    identifier = params.get("charge")
    if identifier is None:
        intent = world.store.get(
            "payment_intent", call.owner, params["payment_intent"], param="payment_intent", status=400
        )
        identifier = intent["latest_charge"] or ""
    charge = world.store.get("charge", call.owner, identifier, param="charge", status=400)
    return refund_charge(
        world,
        call.owner,
        charge,
        params.get("amount"),
        reason=params.get("reason"),
        metadata=metadata({}, params.get("metadata")),
    )


@operation("GetRefunds", "refunds.list")
def list_refunds(call: Call) -> Json:
    return call.page("refund", "charge", "payment_intent")


@operation("GetRefundsRefund", "refunds.retrieve")
def retrieve_refund(call: Call) -> Json:
    return call.world.store.get("refund", call.owner, call.path["refund"])


@operation("GetDisputes", "disputes.list")
def list_disputes(call: Call) -> Json:
    return call.page("dispute", "charge", "payment_intent")


@operation("GetDisputesDispute", "disputes.retrieve")
def retrieve_dispute(call: Call) -> Json:
    return call.world.store.get("dispute", call.owner, call.path["dispute"])


@operation("PostDisputesDisputeClose", "disputes.close")
def close_dispute(call: Call) -> Json:
    dispute = retrieve_dispute(call)
    decide(call.world, call.owner, dispute, won=False)
    return dispute


def fee_on(amount: int) -> int:
    """2.9 % and 30, rounded half up: whole minor units."""
    return (amount * FEE_PER_MILLE + 500) // 1000 + FEE_FIXED


def charge_card(
    world: World, owner: str, intent: Json, method: Json, card: Card, *, failure: str = ""
) -> Json:
    """The charge of an intent: its money pending for two days less the fee, or with `failure` none."""
    amount, now = intent["amount"], world.clock.now()
    charge = templates.new(
        "charge",
        id=world.ids.next("ch"),
        amount=amount,
        amount_captured=0 if failure else amount,
        captured=not failure,
        created=now,
        currency=intent["currency"],
        customer=intent["customer"],
        description=intent["description"],
        failure_code=failure or None,
        failure_message="Your card was declined." if failure else None,
        metadata=dict(intent["metadata"]),
        paid=not failure,
        payment_intent=intent["id"],
        payment_method=method["id"],
        status="failed" if failure else "succeeded",
        transfer_group=intent["transfer_group"],
    )
    charge["payment_method_details"] = _details(card)
    if not failure:
        settles = now if card.settles_at_once else now + SETTLES_AFTER
        charge["balance_transaction"] = world.balances.book(
            owner,
            "charge",
            amount,
            intent["currency"],
            charge["id"],
            fee=fee_on(amount),
            available_on=settles,
        )["id"]
    world.store.add(owner, charge)
    world.secret(charge["id"])["refund"] = card.refund
    world.events.emit("charge.failed" if failure else "charge.succeeded", charge, owner)
    if card.disputed and not failure:
        dispute_charge(world, owner, charge, card.disputed)
    return charge


def refund_charge(
    world: World,
    owner: str,
    charge: Json,
    amount: int | None = None,
    *,
    reason: str | None = None,
    metadata: Json | None = None,
) -> Json:
    """Give money back. Stripe keeps its fee; transfers of the charge stay as they are.

    Raises:
        StripeError: the charge failed, is disputed or lost, or has less left.
    """
    _check_own(charge)
    left = charge["amount_captured"] - charge["amount_refunded"]
    amount = left if amount is None else amount
    if charge["status"] != "succeeded":
        raise invalid("A charge that has not succeeded cannot be refunded", "charge_not_refundable")
    dispute = world.secret(charge["id"]).get("dispute")
    if dispute is not None and dispute["status"] != "won":
        raise invalid("The charge has been charged back", "charge_disputed")
    if not left:
        raise invalid("The charge has already been refunded", "charge_already_refunded")
    if not 0 < amount <= left:
        raise invalid(f"Refund amount {amount} is not from 1 to {left}", param="amount")
    refund = templates.new(
        "refund",
        id=world.ids.next("re"),
        amount=amount,
        charge=charge["id"],
        created=world.clock.now(),
        currency=charge["currency"],
        metadata=metadata or {},
        payment_intent=charge["payment_intent"],
        reason=reason,
        status="pending" if world.secret(charge["id"])["refund"] == "pending" else "succeeded",
    )
    refund["balance_transaction"] = world.balances.book(
        owner, "refund", -amount, charge["currency"], refund["id"]
    )["id"]
    world.store.add(owner, refund)
    before = snapshot(charge)
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    world.events.emit("refund.created", refund, owner)
    world.events.emit("charge.refunded", charge, owner, before=before)
    if world.secret(charge["id"])["refund"]:
        world.clock.at(world.clock.now() + REFUND_ENDS_AFTER, lambda: _end_refund(world, owner, refund))
    return refund


def fail_refund(world: World, owner: str, refund: Json, reason: str) -> None:
    """The bank sends a refund back, even one that had succeeded: its money returns to where it came from.

    Raises:
        StripeError: it has failed already, or belongs to the reversal of a transfer.
    """
    if refund["status"] not in ("pending", "succeeded"):
        raise invalid(f"A refund that is {refund['status']} cannot fail", "status_transition_invalid")
    charge = world.store.get("charge", owner, refund["charge"])
    _check_own(charge)
    before = snapshot(refund)
    transaction = world.balances.book(
        owner, "refund_failure", refund["amount"], refund["currency"], refund["id"]
    )
    refund |= {
        "status": "failed",
        "failure_balance_transaction": transaction["id"],
        "failure_reason": reason,
    }
    world.events.emit("refund.updated", refund, owner, before=before)
    world.events.emit("refund.failed", refund, owner)
    left = charge["amount_refunded"] - refund["amount"]
    world.change("charge.updated", charge, owner, amount_refunded=left, refunded=False)


def _end_refund(world: World, owner: str, refund: Json) -> None:
    """What a test card makes of a refund in the end."""
    if refund["status"] == "pending":
        world.change("refund.updated", refund, owner, status="succeeded")
    elif refund["status"] == "succeeded":
        fail_refund(world, owner, refund, "expired_or_canceled_card")


def dispute_charge(world: World, owner: str, charge: Json, reason: str) -> Json:
    """The card's holder disputes a charge: its money and a fee are withdrawn until that is decided.

    Raises:
        StripeError: it failed, is disputed already, or nothing is left of it.
    """
    _check_own(charge)
    amount = charge["amount"] - charge["amount_refunded"]
    if charge["status"] != "succeeded" or charge["disputed"] or not amount:
        raise invalid("The charge has failed, was refunded or is disputed already", "charge_disputed")
    dispute = templates.new(
        "dispute",
        id=world.ids.next("dp"),
        amount=amount,
        charge=charge["id"],
        created=world.clock.now(),
        currency=charge["currency"],
        is_charge_refundable=False,
        payment_intent=charge["payment_intent"],
        reason=reason,
        status="needs_response",
    )
    dispute["evidence_details"]["due_by"] = world.clock.now() + DISPUTE_ANSWER_WITHIN
    dispute["payment_method_details"]["card"]["case_type"] = "chargeback"
    world.store.add(owner, dispute)
    charge["disputed"] = True
    world.secret(charge["id"])["dispute"] = dispute
    world.events.emit("charge.dispute.created", dispute, owner)
    _book(world, owner, dispute, -amount, DISPUTE_FEE)
    world.events.emit("charge.dispute.funds_withdrawn", dispute, owner)
    return dispute


def decide(world: World, owner: str, dispute: Json, *, won: bool) -> None:
    """End a dispute: won, money and fee come back; lost, they stay away.

    Raises:
        StripeError: it has ended.
    """
    if dispute["status"] in ("won", "lost"):
        raise invalid("The dispute is closed", "status_transition_invalid")
    before = snapshot(dispute)
    dispute["status"] = "won" if won else "lost"
    if won:
        _book(world, owner, dispute, dispute["amount"], -DISPUTE_FEE)
        world.events.emit("charge.dispute.funds_reinstated", dispute, owner)
    world.events.emit("charge.dispute.closed", dispute, owner, before=before)


def _check_own(charge: Json) -> None:
    # Money that came by a transfer goes back to the platform, not to a card.
    if charge["source_transfer"] is not None:
        raise invalid("This is the payment of a transfer: reverse the transfer", "charge_not_refundable")


def _book(world: World, owner: str, dispute: Json, amount: int, fee: int) -> None:
    reported = "dispute" if amount < 0 else "dispute_reversal"
    transaction = world.balances.book(
        owner, "adjustment", amount, dispute["currency"], dispute["id"], fee=fee, reported_as=reported
    )
    dispute["balance_transactions"].append(snapshot(transaction))


def _details(card: Card) -> Json:
    details: Json = templates.sample("charge")["payment_method_details"]
    details["card"] |= {"brand": card.brand, "last4": card.number[-4:], "network": card.brand}
    details["card"] |= {"installments": None, "three_d_secure": None, "wallet": None, "mandate": None}
    return details
