"""Bank payouts: out of a balance, on their way for days, and back when a bank refuses, even once paid."""

from __future__ import annotations

from sandbox.stripe import templates
from sandbox.stripe.clock import DAY
from sandbox.stripe.currencies import check_payout
from sandbox.stripe.errors import invalid, missing
from sandbox.stripe.standing import refresh
from sandbox.stripe.store import PLATFORM
from sandbox.stripe.values import Json, snapshot
from sandbox.stripe.world import Call, World, metadata, operation

# From asking to the bank, and from the bank to its account.
SUBMITTED_AFTER, ARRIVES_AFTER = DAY, 2 * DAY
_MESSAGES = {
    "account_closed": "The bank account has been closed.",
    "could_not_process": "The bank could not process this payout.",
    "debit_not_authorized": "Debit transactions are not approved on the bank account.",
    "insufficient_funds": "Your Stripe account has insufficient funds to cover the payout.",
    "invalid_currency": "The bank was unable to process this payout because of its currency.",
    "no_account": "The bank account details on file are probably incorrect.",
}


@operation("PostPayouts", "payouts.create")
def create(call: Call) -> Json:
    world, params = call.world, call.params
    amount, currency = params["amount"], params["currency"].lower()
    check_payout(amount, currency)
    destination = _destination(call, currency)
    if world.balances.available(call.owner, currency) < amount:
        raise invalid("You have insufficient funds in your Stripe account", "balance_insufficient")
    now = world.clock.now()
    payout = templates.new(
        "payout",
        id=world.ids.next("po"),
        amount=amount,
        arrival_date=now + ARRIVES_AFTER,
        created=now,
        currency=currency,
        description=params.get("description"),
        destination=destination["id"] if destination else None,
        metadata=metadata({}, params.get("metadata")),
        method=params.get("method", "standard"),
        statement_descriptor=params.get("statement_descriptor"),
        status="pending",
        type=destination["object"] if destination else "bank_account",
    )
    payout["balance_transaction"] = world.balances.book(
        call.owner, "payout", -amount, currency, payout["id"], available_on=None
    )["id"]
    world.store.add(call.owner, payout)
    world.events.emit("payout.created", payout, call.owner)
    world.clock.at(now + SUBMITTED_AFTER, lambda: submit(world, call.owner, payout))
    world.clock.at(now + ARRIVES_AFTER, lambda: arrive(world, call.owner, payout))
    return payout


@operation("GetPayouts", "payouts.list")
def list_payouts(call: Call) -> Json:
    return call.page("payout", "destination", "status", "arrival_date")


@operation("GetPayoutsPayout", "payouts.retrieve")
def retrieve(call: Call) -> Json:
    return call.world.store.get("payout", call.owner, call.path["payout"])


@operation("PostPayoutsPayout", "payouts.update")
def update(call: Call) -> Json:
    payout = retrieve(call)
    changed = metadata(payout["metadata"], call.params.get("metadata"))
    call.world.change("payout.updated", payout, call.owner, metadata=changed)
    return payout


@operation("PostPayoutsPayoutCancel", "payouts.cancel")
def cancel(call: Call) -> Json:
    payout = retrieve(call)
    if payout["status"] != "pending":
        raise invalid("Payouts can only be canceled while they are pending", "status_transition_invalid")
    transaction = _back(call.world, call.owner, payout, "payout_cancel")
    call.world.change(
        "payout.canceled",
        payout,
        call.owner,
        status="canceled",
        failure_balance_transaction=transaction["id"],
    )
    return payout


def submit(world: World, owner: str, payout: Json) -> None:
    """Hand it to the bank: from now on it cannot be canceled."""
    if payout["status"] == "pending":
        world.change("payout.updated", payout, owner, status="in_transit")


def arrive(world: World, owner: str, payout: Json) -> None:
    """It is paid, or a test number makes the bank refuse it."""
    if payout["status"] not in ("pending", "in_transit"):
        return
    failure = world.secret(payout["destination"]).get("failure") if payout["destination"] else None
    if failure:
        fail(world, owner, payout, failure)
    else:
        world.change("payout.paid", payout, owner, status="paid")


def fail(world: World, owner: str, payout: Json, code: str) -> None:
    """The bank sends the money back, after `paid` too: to where it came from; its account is disabled.

    Raises:
        StripeError: it has ended in another way.
    """
    if payout["status"] not in ("pending", "in_transit", "paid"):
        raise invalid(f"A payout that is {payout['status']} cannot fail", "status_transition_invalid")
    transaction = _back(world, owner, payout, "payout_failure")
    world.change(
        "payout.failed",
        payout,
        owner,
        status="failed",
        failure_balance_transaction=transaction["id"],
        failure_code=code,
        failure_message=_MESSAGES.get(code, "The bank could not process this payout."),
    )
    destination, account = world.store.find(payout["destination"] or ""), world.store.find(owner)
    if destination is not None and account is not None:
        before, was = snapshot(account), snapshot(destination)
        destination["status"] = "errored"
        refresh(world, account, before)
        world.events.emit("account.external_account.updated", destination, owner, before=was)


def _back(world: World, owner: str, payout: Json, kind: str) -> Json:
    return world.balances.book(owner, kind, payout["amount"], payout["currency"], payout["id"])


def _destination(call: Call, currency: str) -> Json | None:
    """Where it goes. The platform's own bank is nobody's business here."""
    if call.owner == PLATFORM:
        return None
    account = call.world.account(call.owner)
    if not account["payouts_enabled"]:
        raise invalid("Payouts are not enabled for this account", "payouts_not_allowed")
    known = account["external_accounts"]["data"]
    wanted = call.params.get("destination")
    found = next(
        (
            item
            for item in known
            if (item["id"] == wanted if wanted else item["default_for_currency"])
            and item["currency"] == currency
        ),
        None,
    )
    if found is None:
        if wanted:
            raise missing("external account", wanted, param="destination", status=400)
        raise invalid(f"There is no external account for {currency}", "payouts_not_allowed")
    if found.get("status") == "errored":
        raise invalid("A payout to this external account has failed; replace it", "bank_account_unusable")
    mine: Json = found
    return mine
