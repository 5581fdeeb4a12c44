"""Connected accounts: made by the platform, finished by their owner, gated by capabilities."""

from __future__ import annotations

from sandbox.stripe import templates
from sandbox.stripe.errors import invalid
from sandbox.stripe.external_accounts import GOOD_BANK, add_external_account
from sandbox.stripe.standing import capability, disable, refresh
from sandbox.stripe.store import PLATFORM
from sandbox.stripe.values import Json, snapshot
from sandbox.stripe.world import Call, World, metadata, operation

LINK_SECONDS = 300
_COPIED = ("business_type", "email", "default_currency", "country")
# Of a company, what is shown again as it was given.
_COMPANY = ("name", "phone", "address")
_CURRENCIES = {"US": "usd", "GB": "gbp", "JP": "jpy", "HU": "huf", "CA": "cad", "CH": "chf", "IS": "isk"}


@operation("PostAccounts", "accounts.create")
def create(call: Call) -> Json:
    world, params = call.world, call.params
    controller = _controller(params)
    requested = _requested(params)
    if controller["losses"]["payments"] == "stripe" and set(requested) == {"transfers"}:
        raise invalid("losses.payments=stripe cannot go with transfers alone", param="controller[losses]")
    country = params.get("country", "US")
    account = templates.new(
        "account",
        id=world.ids.next("acct"),
        controller=controller,
        type=_type(controller),
        country=country,
        default_currency=params.get("default_currency", _CURRENCIES.get(country, "eur")),
        created=world.clock.now(),
        capabilities={},
        metadata=metadata({}, params.get("metadata")),
    )
    account["external_accounts"]["url"] = f"/v1/accounts/{account['id']}/external_accounts"
    # What may be refused comes first: an account that was refused does not exist.
    _take(world, account, params)
    world.store.add(PLATFORM, account)
    world.secret(account["id"])["requested"] = requested
    refresh(world, account)
    return account


@operation("GetAccounts", "accounts.list")
def list_accounts(call: Call) -> Json:
    return call.page("account", where=lambda item: not call.world.hidden[item["id"]].get("deauthorized"))


@operation("GetAccountsAccount", "accounts.retrieve")
def retrieve(call: Call) -> Json:
    return call.world.account(call.path["account"])


@operation("GetAccount", "accounts.retrieve_current")
def retrieve_current(call: Call) -> Json:
    if call.owner != PLATFORM:
        return call.world.account(call.owner)
    return templates.new("account", id=PLATFORM, charges_enabled=True, payouts_enabled=True)


@operation("PostAccountsAccount", "accounts.update")
def update(call: Call) -> Json:
    account = call.world.account(call.path["account"])
    before = snapshot(account)
    # First, since it may be refused.
    _take(call.world, account, call.params)
    account["metadata"] = metadata(account["metadata"], call.params.get("metadata"))
    call.world.secret(account["id"])["requested"] |= _requested(call.params)
    refresh(call.world, account, before)
    return account


@operation("DeleteAccountsAccount", "accounts.delete")
def delete(call: Call) -> Json:
    world, account = call.world, call.world.account(call.path["account"])
    for currency in world.balances.currencies(account["id"]):
        if world.balances.available(account["id"], currency) or world.balances.pending(
            account["id"], currency
        ):
            raise invalid("An account with a balance cannot be deleted")
    world.store.remove(PLATFORM, account)
    return {"id": account["id"], "object": "account", "deleted": True}


@operation("PostAccountsAccountReject", "accounts.reject")
def reject(call: Call) -> Json:
    account = call.world.account(call.path["account"])
    given = call.params["reason"].partition("_")[0]
    reasons = {"fraud": "rejected.fraud", "terms": "rejected.terms_of_service"}
    disable(call.world, account, reasons.get(given, "rejected.other"))
    return account


@operation("GetAccountsAccountCapabilities", "capabilities.list")
def list_capabilities(call: Call) -> Json:
    account = call.world.account(call.path["account"])
    found = [capability(call.world, account, name) for name in account["capabilities"]]
    return {"object": "list", "data": found, "has_more": False, "url": call.url}


@operation("GetAccountsAccountCapabilitiesCapability", "capabilities.retrieve")
def retrievecapability(call: Call) -> Json:
    return capability(call.world, call.world.account(call.path["account"]), call.path["capability"])


@operation("PostAccountsAccountCapabilitiesCapability", "capabilities.update")
def updatecapability(call: Call) -> Json:
    account = call.world.account(call.path["account"])
    if "requested" in call.params:
        before = snapshot(account)
        requested = call.world.secret(account["id"])["requested"]
        requested[call.path["capability"]] = call.params["requested"]
        refresh(call.world, account, before)
    return capability(call.world, account, call.path["capability"])


@operation("PostAccountLinks", "account_links.create")
def create_link(call: Call) -> Json:
    world, params = call.world, call.params
    account = world.account(params["account"], status=400)
    if "refresh_url" not in params or "return_url" not in params:
        raise invalid("refresh_url and return_url are needed", "parameter_missing", "return_url")
    name = world.ids.next("link")
    link = templates.new(
        "account_link",
        created=world.clock.now(),
        expires_at=world.clock.now() + LINK_SECONDS,
        url=f"{world.url}/setup/s/{account['id']}/{name}",
    )
    facts = {"account": account["id"], "expires_at": link["expires_at"], "used": False}
    world.hidden[name] = facts | {"return_url": params["return_url"], "refresh_url": params["refresh_url"]}
    return link


@operation("PostAccountsAccountLoginLinks", "login_links.create")
def create_login_link(call: Call) -> Json:
    account = call.world.account(call.path["account"])
    if account["controller"]["stripe_dashboard"]["type"] != "express" or not account["details_submitted"]:
        raise invalid("Login links are for Express accounts that have completed onboarding")
    name = call.world.ids.next("login")
    url = f"{call.world.url}/express/{account['id']}/{name}"
    return templates.new("login_link", created=call.world.clock.now(), url=url)


def complete_onboarding(world: World, account: Json, *, bank: bool = True) -> None:
    """What the owner does on Stripe's pages: details, terms, and unless `bank` is False a bank account."""
    before = snapshot(account)
    account["details_submitted"] = True
    account["tos_acceptance"] = {"date": world.clock.now(), "ip": "127.0.0.1", "user_agent": None}
    if bank and not account["external_accounts"]["data"]:
        number = {"object": "bank_account", "country": account["country"], "account_number": GOOD_BANK}
        add_external_account(world, account, number | {"currency": account["default_currency"]})
    facts = world.secret(account["id"])
    facts.pop("disabled", None)
    facts["disabled_capabilities"] = {}
    refresh(world, account, before)


def _take(world: World, account: Json, params: Json) -> None:
    if params.get("external_account"):
        add_external_account(world, account, params["external_account"])
    for name in _COPIED:
        if name in params:
            account[name] = params[name]
    if "company" in params:
        given = {name: params["company"][name] for name in _COMPANY if name in params["company"]}
        account["company"] = account.get("company", {}) | given
    if "business_profile" in params:
        account["business_profile"] = account["business_profile"] | params["business_profile"]
    if "tos_acceptance" in params:
        account["tos_acceptance"] = account["tos_acceptance"] | params["tos_acceptance"]
    schedule = params.get("settings", {}).get("payouts", {}).get("schedule", {})
    account["settings"]["payouts"]["schedule"] |= {
        name: value for name, value in schedule.items() if name != "delay_days" or isinstance(value, int)
    }


def _controller(params: Json) -> Json:
    given = params.get("controller", {})
    if given and "type" in params:
        raise invalid("Give type or controller, not both", "parameters_exclusive", "type")
    dashboards = {"express": "express", "custom": "none", "standard": "full"}
    dashboard = given.get("stripe_dashboard", {}).get("type") or dashboards[params.get("type", "standard")]
    default = "stripe" if dashboard == "full" else "application"
    payer = given.get("fees", {}).get("payer") or ("account" if dashboard == "full" else "application")
    return {
        "type": "application",
        "is_controller": True,
        "fees": {"payer": payer},
        "losses": {"payments": given.get("losses", {}).get("payments", default)},
        "requirement_collection": given.get(
            "requirement_collection", "application" if dashboard == "none" else "stripe"
        ),
        "stripe_dashboard": {"type": dashboard},
    }


def _type(controller: Json) -> str:
    return {"express": "express", "none": "custom"}.get(controller["stripe_dashboard"]["type"], "standard")


def _requested(params: Json) -> dict[str, bool]:
    return {
        name: wanted["requested"]
        for name, wanted in params.get("capabilities", {}).items()
        if "requested" in wanted
    }
