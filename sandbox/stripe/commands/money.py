"""Commands on money that is on its way: what banks and card holders do."""

from __future__ import annotations

from sandbox.stripe import charges, payments, payouts
from sandbox.stripe.commands.objects import find
from sandbox.stripe.commands.registry import command
from sandbox.stripe.values import Json
from sandbox.stripe.world import World


@command("payout submit", payout="its id")
def payout_submit(world: World, payout: str) -> Json:
    """Hand a payout to the bank now: in_transit."""
    owner, found = find(world, "payout", payout)
    payouts.submit(world, owner, found)
    return found


@command("payout arrive", payout="its id")
def payout_arrive(world: World, payout: str) -> Json:
    """Let a payout arrive now: paid, or failed if it goes to a failing test number."""
    owner, found = find(world, "payout", payout)
    payouts.arrive(world, owner, found)
    return found


@command("payout fail", payout="its id", code="such as account_closed, no_account, could_not_process")
def payout_fail(world: World, payout: str, code: str = "account_closed") -> Json:
    """The bank sends the money back, even after `paid`; its external account is disabled."""
    owner, found = find(world, "payout", payout)
    payouts.fail(world, owner, found, code)
    return found


@command("charge refund", charge="its id", amount="minor units; all that is left if 0")
def charge_refund(world: World, charge: str, amount: int = 0) -> Json:
    """Refund a charge as from the dashboard."""
    owner, found = find(world, "charge", charge)
    return charges.refund_charge(world, owner, found, amount or None)


@command(
    "refund fail", refund="its id", reason="such as lost_or_stolen_card, expired_or_canceled_card, unknown"
)
def refund_fail(world: World, refund: str, reason: str = "unknown") -> Json:
    """The bank sends a refund back, even after it succeeded: its money returns to the balance."""
    owner, found = find(world, "refund", refund)
    charges.fail_refund(world, owner, found, reason)
    return found


@command("charge dispute", charge="its id", reason="such as fraudulent, product_not_received")
def charge_dispute(world: World, charge: str, reason: str = "fraudulent") -> Json:
    """The card's holder disputes a charge."""
    owner, found = find(world, "charge", charge)
    return charges.dispute_charge(world, owner, found, reason)


@command("dispute decide", dispute="its id", won="the platform wins")
def dispute_decide(world: World, dispute: str, won: bool = False) -> Json:
    """The bank decides a dispute: lost, or with `won` money and fee come back."""
    owner, found = find(world, "dispute", dispute)
    charges.decide(world, owner, found, won=won)
    return found


@command("payment authenticate", intent="the payment intent's id", fails="the holder fails to")
def payment_authenticate(world: World, intent: str, fails: bool = False) -> Json:
    """The card's holder authenticates a payment that requires_action."""
    owner, found = find(world, "payment_intent", intent)
    payments.authenticate(world, owner, found, success=not fails)
    return found
