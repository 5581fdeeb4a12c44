"""Commands on objects: what an owner, a bank, a card holder or somebody in the dashboard does."""

from __future__ import annotations

from collections import defaultdict

from sandbox.stripe import accounts, standing, transfers
from sandbox.stripe.commands.registry import command
from sandbox.stripe.errors import invalid, missing
from sandbox.stripe.external_accounts import FAILING_BANKS, GOOD_BANK, add_external_account
from sandbox.stripe.store import PLATFORM
from sandbox.stripe.values import Json, snapshot
from sandbox.stripe.world import World

_ACCOUNT = "its id"


@command("account onboard", account=_ACCOUNT, no_bank="without a bank account")
def account_onboard(world: World, account: str, no_bank: bool = False) -> Json:
    """The owner completes onboarding: requested capabilities become active. Ends a disablement, too."""
    found = world.account(account)
    accounts.complete_onboarding(world, found, bank=not no_bank)
    return found


@command("account onboard-all")
def account_onboard_all(world: World) -> Json:
    """Onboard every account that has not finished or has no bank account."""
    unfinished = [
        account
        for account in world.store.all("account", PLATFORM)
        if not world.hidden[account["id"]].get("deauthorized")
        and not (account["details_submitted"] and account["external_accounts"]["data"])
    ]
    for account in unfinished:
        accounts.complete_onboarding(world, account)
    return {"onboarded": [account["id"] for account in unfinished]}


@command("account bank-number", account=_ACCOUNT, number="a test number of Stripe's, such as 000111111113")
def account_bank_number(world: World, account: str, number: str) -> Json:
    """Pay the account out to this test number from now on."""
    found = world.account(account)
    known = (GOOD_BANK, *FAILING_BANKS)
    if number not in known:
        raise invalid(f"Unknown test number {number!r}; there are {', '.join(known)}", param="number")
    before, currency = snapshot(found), found["default_currency"]
    given = {"country": found["country"], "currency": currency, "account_number": number}
    made = add_external_account(world, found, given | {"object": "bank_account"}, default=True)
    standing.refresh(world, found, before)
    return made


@command("account disable", account=_ACCOUNT, reason="such as under_review, platform_paused, rejected.fraud")
def account_disable(world: World, account: str, reason: str = "under_review") -> Json:
    """Stripe stops an account: all capabilities become inactive."""
    found = world.account(account)
    _check_reason(world, "account", reason)
    standing.disable(world, found, reason)
    return found


@command(
    "account capability", account=_ACCOUNT, name="the capability", reason="such as requirements.fields_needed"
)
def account_capability(
    world: World, account: str, name: str = "transfers", reason: str = "requirements.fields_needed"
) -> Json:
    """Stripe disables one capability."""
    found = world.account(account)
    _check_reason(world, "capability", reason)
    standing.disable_capability(world, found, name, reason)
    return found


@command("account pause-payouts", account=_ACCOUNT, resume="allow them again")
def account_pause_payouts(world: World, account: str, resume: bool = False) -> Json:
    """Stop bank payouts only."""
    found = world.account(account)
    before = snapshot(found)
    world.secret(account)["payouts_paused"] = not resume
    standing.refresh(world, found, before)
    return found


@command("account reserves", account=_ACCOUNT, off="switch off again")
def account_reserves(world: World, account: str, off: bool = False) -> Json:
    """Let reversals drive the account's balance below zero."""
    world.account(account)
    world.secret(account)["reserves"] = not off
    return {"account": account, "reserves": not off}


@command("account deauthorize", account=_ACCOUNT)
def account_deauthorize(world: World, account: str) -> Json:
    """The owner disconnects the platform."""
    standing.deauthorize(world, world.account(account))
    return {"account": account, "deauthorized": True}


@command(
    "balance fund",
    amount="minor units; negative takes away",
    currency="three letters, lower case",
    account="the platform if left out",
)
def balance_fund(world: World, amount: int, currency: str = "usd", account: str = "") -> Json:
    """Put money on a balance from nowhere, as a top-up; below zero it is a debt."""
    owner = account or PLATFORM
    if owner != PLATFORM:
        world.account(owner)
    kind = "topup" if amount >= 0 else "adjustment"
    world.balances.book(owner, kind, amount, currency, None, description="Funded in the stand-in")
    return world.balances.view(owner)


@command("balance settle", account="the platform if left out")
def balance_settle(world: World, account: str = "") -> Json:
    """Make all pending money available now."""
    world.balances.settle(account or PLATFORM)
    return world.balances.view(account or PLATFORM)


@command("transfer reverse", transfer="its id", amount="minor units; all that is left if 0")
def transfer_reverse(world: World, transfer: str, amount: int = 0) -> Json:
    """Reverse a transfer as from the dashboard."""
    found = world.store.get("transfer", PLATFORM, transfer)
    return transfers.reverse(world, found, amount or None)


@command("state get")
def state_get(world: World) -> Json:
    """Sums: transfers and reversals by account and currency, balances, objects by kind, problems."""
    return state(world)


def state(world: World) -> Json:
    """The sums that a test compares with a ledger. `net` is what stays transferred."""
    sums: defaultdict[str, defaultdict[str, Json]] = defaultdict(lambda: defaultdict(_nothing))
    for transfer in world.store.all("transfer", PLATFORM):
        entry = sums[transfer["destination"]][transfer["currency"]]
        entry["count"] += 1
        entry["amount"] += transfer["amount"]
        entry["reversed"] += transfer["amount_reversed"]
        entry["net"] += transfer["amount"] - transfer["amount_reversed"]
    owners = [PLATFORM, *(account["id"] for account in world.store.everywhere("account"))]
    payouts: defaultdict[str, int] = defaultdict(int)
    for payout in world.store.everywhere("payout"):
        payouts[payout["status"]] += 1
    return {
        "transfers": {account: dict(currencies) for account, currencies in sums.items()},
        "reversals": world.store.count("transfer_reversal"),
        "payouts": dict(payouts),
        "balances": {owner: world.balances.view(owner) for owner in owners},
        "events": world.store.count("event"),
        "idempotency_keys": len(world.idempotency),
        "violations": len(world.record.violations),
        "complaints": len(world.record.complaints),
        "now": world.clock.now(),
    }


def _check_reason(world: World, kind: str, reason: str) -> None:
    requirements = world.spec.schemas[kind]["properties"]["requirements"]["properties"]
    known = [name for name in requirements["disabled_reason"]["enum"] if name]
    if reason not in known:
        raise invalid(f"Unknown reason {reason!r}; there are {', '.join(known)}", param="reason")


def _nothing() -> Json:
    return {"count": 0, "amount": 0, "reversed": 0, "net": 0}


def find(world: World, kind: str, identifier: str) -> tuple[str, Json]:
    """An object of any owner, and its owner.

    Raises:
        StripeError: there is none.
    """
    found = world.store.find(identifier)
    if found is None or found["object"] != kind:
        raise missing(kind, identifier)
    return world.store.owner(identifier), found
