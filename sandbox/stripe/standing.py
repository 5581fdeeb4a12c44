"""Where an account stands: what it may do, and why not. Derived anew from the facts at every change."""

from __future__ import annotations

from sandbox.stripe import templates
from sandbox.stripe.errors import StripeError
from sandbox.stripe.values import Json, snapshot
from sandbox.stripe.world import World

_DUE = ["external_account", "tos_acceptance.date", "tos_acceptance.ip"]


def disable(world: World, account: Json, reason: str) -> None:
    """Stop the whole account, as a review or a rejection does."""
    before = snapshot(account)
    world.secret(account["id"])["disabled"] = reason
    refresh(world, account, before)


def disable_capability(world: World, account: Json, name: str, reason: str) -> None:
    """Take one capability away; the capability itself says why, the account only that."""
    before = snapshot(account)
    world.secret(account["id"]).setdefault("disabled_capabilities", {})[name] = reason
    refresh(world, account, before)


def deauthorize(world: World, account: Json) -> None:
    """The owner disconnects the platform: from now on the account is unknown to it."""
    application = templates.new("application", id="ca_tallystick", name="Tallystick")
    world.events.emit("account.application.deauthorized", application, account["id"])
    world.secret(account["id"])["deauthorized"] = True


def refresh(world: World, account: Json, before: Json | None = None) -> None:
    """Derive what follows from the facts: capabilities, requirements, what is enabled; tell of a change."""
    facts = world.secret(account["id"])
    refresh_list(world, account)
    disabled, gone = facts.get("disabled"), facts.get("disabled_capabilities", {})
    due = _due(account)
    # Stripe runs onboarding for its own dashboards; for the others, the platform brings what is due.
    complete = account["details_submitted"] or not due
    account["capabilities"] = {
        name: "active" if complete and not disabled and name not in gone else "inactive"
        for name, wanted in facts["requested"].items()
        if wanted
    }
    account["details_submitted"] = complete
    account["charges_enabled"] = account["capabilities"].get("card_payments") == "active"
    account["payouts_enabled"] = bool(
        complete and not disabled and account["external_accounts"]["data"] and not facts.get("payouts_paused")
    )
    account["requirements"] = account["requirements"] | {
        "currently_due": due,
        "eventually_due": due,
        "disabled_reason": disabled or (None if complete else "requirements.past_due"),
    }
    if before is None or before == account:
        return
    world.events.emit("account.updated", account, account["id"], before=before)
    for name, status in account["capabilities"].items():
        if before["capabilities"].get(name) != status:
            world.events.emit("capability.updated", capability(world, account, name), account["id"])


def _due(account: Json) -> list[str]:
    present = {
        "external_account": bool(account["external_accounts"]["data"]),
        "tos_acceptance.date": account["tos_acceptance"].get("date") is not None,
        "tos_acceptance.ip": account["tos_acceptance"].get("ip") is not None,
    }
    return [name for name in _DUE if not present[name]]


def capability(world: World, account: Json, name: str) -> Json:
    """The `capability` object of one name.

    Raises:
        StripeError: it was never requested.
    """
    facts = world.secret(account["id"])
    if name not in facts["requested"]:
        raise StripeError(404, f"No such capability: '{name}'", code="resource_missing", param="capability")
    made = templates.new("capability", id=name, account=account["id"], requested=facts["requested"][name])
    made["status"] = account["capabilities"].get(name, "inactive")
    made["requested_at"] = account["created"]
    due = account["requirements"]["currently_due"]
    reason = facts.get("disabled_capabilities", {}).get(name)
    if made["status"] != "active" and reason is None:
        reason = "rejected.other" if facts.get("disabled") else "requirements.fields_needed"
    made["requirements"] |= {"currently_due": due, "disabled_reason": reason}
    return made


def external_accounts(world: World, account: Json) -> list[Json]:
    """Oldest first, bank accounts after cards."""
    owned = [*world.store.all("bank_account", account["id"]), *world.store.all("card", account["id"])]
    return owned[::-1]


def refresh_list(world: World, account: Json) -> None:
    """The account shows its external accounts, oldest first."""
    account["external_accounts"]["data"] = external_accounts(world, account)
