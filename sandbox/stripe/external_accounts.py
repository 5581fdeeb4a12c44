"""Where a connected account is paid: bank accounts and debit cards, with Stripe's test numbers."""

from __future__ import annotations

from sandbox.stripe import templates
from sandbox.stripe.errors import invalid, missing
from sandbox.stripe.standing import external_accounts, refresh, refresh_list
from sandbox.stripe.store import listed
from sandbox.stripe.values import Json, snapshot
from sandbox.stripe.world import Call, World, metadata, operation

# The bank account to which payouts arrive, and those to which they fail, and how.
GOOD_BANK = "000123456789"
FAILING_BANKS = {
    "000111111116": "no_account",
    "000111111113": "account_closed",
    "000222222227": "insufficient_funds",
    "000333333335": "debit_not_authorized",
    "000444444440": "invalid_currency",
}
_DEBIT_CARDS = {
    "tok_visa_debit_us_transferSuccess": ("3192", ""),
    "tok_visa_debit_us_transferFail": ("4229", "could_not_process"),
    "tok_visa_debit": ("5556", ""),
}
_DEBIT_NUMBERS = {"4000056655665556": "", "4000056655665572": "could_not_process"}
_BANK_TOKENS = {
    "btok_us": GOOD_BANK,
    "btok_us_verified": GOOD_BANK,
    "btok_us_no_account": "000111111116",
}


@operation("PostAccountsAccountExternalAccounts", "external_accounts.create")
def create(call: Call) -> Json:
    account = call.world.account(call.path["account"])
    before = snapshot(account)
    made = add_external_account(
        call.world,
        account,
        call.params["external_account"],
        default=call.params.get("default_for_currency", False),
        metadata=metadata({}, call.params.get("metadata")),
    )
    refresh(call.world, account, before)
    return made


@operation("GetAccountsAccountExternalAccounts", "external_accounts.list")
def list_external_accounts(call: Call) -> Json:
    account = call.world.account(call.path["account"])
    kind = call.params.get("object")
    found = [item for item in account["external_accounts"]["data"] if kind in (None, item["object"])]
    # Few, and of two kinds: cut by hand, the oldest first.
    names, limit = [item["id"] for item in found], call.params.get("limit", 10)
    if "ending_before" in call.params:
        before = found[: names.index(_of(account, call.params["ending_before"])["id"])]
        return listed(before[-limit:], call.url, has_more=len(before) > limit)
    after = call.params.get("starting_after")
    rest = found if after is None else found[names.index(_of(account, after)["id"]) + 1 :]
    return listed(rest[:limit], call.url, has_more=len(rest) > limit)


@operation("GetAccountsAccountExternalAccountsId", "external_accounts.retrieve")
def retrieve(call: Call) -> Json:
    return _of(call.world.account(call.path["account"]), call.path["id"])


@operation("PostAccountsAccountExternalAccountsId", "external_accounts.update")
def update(call: Call) -> Json:
    account = call.world.account(call.path["account"])
    before, found = snapshot(account), _of(account, call.path["id"])
    was = snapshot(found)
    found["metadata"] = metadata(found["metadata"], call.params.get("metadata"))
    for name in ("account_holder_name", "account_holder_type"):
        if name in call.params:
            found[name] = call.params[name]
    if call.params.get("default_for_currency"):
        _make_default(account, found)
    call.world.events.emit("account.external_account.updated", found, account["id"], before=was)
    refresh(call.world, account, before)
    return found


@operation("DeleteAccountsAccountExternalAccountsId", "external_accounts.delete")
def delete(call: Call) -> Json:
    account = call.world.account(call.path["account"])
    found = _of(account, call.path["id"])
    others = [item for item in account["external_accounts"]["data"] if item is not found]
    if found["default_for_currency"] and any(item["currency"] == found["currency"] for item in others):
        raise invalid("The default account of a currency cannot be deleted while there are others")
    before = snapshot(account)
    call.world.store.remove(account["id"], found)
    call.world.events.emit("account.external_account.deleted", found, account["id"])
    refresh(call.world, account, before)
    return {"id": found["id"], "object": found["object"], "deleted": True}


def add_external_account(
    world: World, account: Json, given: Json | str, *, default: bool = False, metadata: Json | None = None
) -> Json:
    """A bank account or debit card from a test token or from its parts; the first is its currency's default.

    Raises:
        StripeError: the token is none of Stripe's, or the routing number is wrong.
    """
    made, failure = _made(world, account, given)
    siblings = [item for item in external_accounts(world, account) if item["currency"] == made["currency"]]
    made |= {"account": account["id"], "metadata": metadata or {}, "default_for_currency": not siblings}
    world.store.add(account["id"], made)
    world.secret(made["id"])["failure"] = failure
    refresh_list(world, account)
    if default:
        _make_default(account, made)
    world.events.emit("account.external_account.created", made, account["id"])
    return made


def default_for(account: Json, currency: str) -> Json | None:
    """Where payouts in a currency go by themselves."""
    for found in account["external_accounts"]["data"]:
        if found["currency"] == currency and found["default_for_currency"]:
            return dict(found)
    return None


def _made(world: World, account: Json, given: Json | str) -> tuple[Json, str]:
    token = given if isinstance(given, str) else given.get("token", "")
    if token in _DEBIT_CARDS:
        last4, failure = _DEBIT_CARDS[token]
        return _card(world, account, last4), failure
    if token in _BANK_TOKENS:
        parts = {"account_number": _BANK_TOKENS[token], "country": "US", "currency": "usd"}
        return _bank_account(world, account, parts), FAILING_BANKS.get(_BANK_TOKENS[token], "")
    if isinstance(given, str) or "token" in given:
        raise missing("token", token, param="external_account", status=400)
    if given["object"] == "card":
        return _card(world, account, given["number"][-4:]), _DEBIT_NUMBERS.get(given["number"], "")
    return _bank_account(world, account, given), FAILING_BANKS.get(given["account_number"], "")


def _bank_account(world: World, account: Json, given: Json) -> Json:
    number, routing = given["account_number"], given.get("routing_number", "110000000")
    if given["country"] == "US" and (len(routing) != 9 or not routing.isdigit()):
        raise invalid(f"Invalid routing number: {routing}", "routing_number_invalid", "routing_number")
    if not number.isalnum():
        raise invalid(f"Invalid account number: {number}", "account_number_invalid", "account_number")
    return templates.new(
        "bank_account",
        id=world.ids.next("ba"),
        account_holder_name=given.get("account_holder_name"),
        account_holder_type=given.get("account_holder_type"),
        country=given["country"],
        currency=given.get("currency", account["default_currency"]),
        last4=number[-4:],
        routing_number=routing,
        status="new",
    )


def _card(world: World, account: Json, last4: str) -> Json:
    currency = account["default_currency"]
    return templates.new(
        "card", id=world.ids.next("card"), last4=last4, funding="debit", name=None, currency=currency
    )


def _of(account: Json, identifier: str) -> Json:
    for found in account["external_accounts"]["data"]:
        if found["id"] == identifier:
            mine: Json = found
            return mine
    raise missing("external account", identifier)


def _make_default(account: Json, chosen: Json) -> None:
    for item in account["external_accounts"]["data"]:
        if item["currency"] == chosen["currency"]:
            item["default_for_currency"] = item is chosen
