"""What is only read: balances, balance transactions, events; and the webhook endpoints a platform keeps."""

from __future__ import annotations

from sandbox.stripe import templates
from sandbox.stripe.errors import invalid
from sandbox.stripe.events import unpacked
from sandbox.stripe.post import is_loopback
from sandbox.stripe.values import Json
from sandbox.stripe.webhooks import Endpoint
from sandbox.stripe.world import Call, World, metadata, operation

# How long Stripe keeps events for /v1/events.
EVENTS_KEPT_SECONDS = 30 * 86_400
MAX_TYPES = 20


@operation("GetBalance", "balance.retrieve")
def balance(call: Call) -> Json:
    return call.world.balances.view(call.owner)


@operation("GetBalanceTransactions", "balance_transactions.list")
def list_transactions(call: Call) -> Json:
    if "payout" in call.params:
        call.world.store.get("payout", call.owner, call.params["payout"], param="payout", status=400)
        # Every payout here is made by a call. What Stripe says to that, its typed parameters only hint at.
        raise invalid(
            "Balance transaction history can only be filtered on automatic transfers, not manual.",
            param="payout",
        )
    return call.page("balance_transaction", "currency", "source", "type")


@operation("GetBalanceTransactionsId", "balance_transactions.retrieve")
def retrieve_transaction(call: Call) -> Json:
    return call.world.store.get("balance_transaction", call.owner, call.path["id"])


@operation("GetEvents", "events.list")
def list_events(call: Call) -> Json:
    world, params = call.world, call.params
    if "type" in params and "types" in params:
        raise invalid("Give type or types, not both", "parameters_exclusive", "types")
    if len(params.get("types", ())) > MAX_TYPES:
        raise invalid(f"types takes up to {MAX_TYPES} names", param="types")
    oldest = world.clock.now() - EVENTS_KEPT_SECONDS
    wanted = params.get("types") or ([params["type"]] if "type" in params else None)
    succeeded = params.get("delivery_success")
    found = call.page(
        "event",
        where=lambda event: (
            event["created"] >= oldest
            and (wanted is None or any(_matches(event["type"], pattern) for pattern in wanted))
            and (succeeded is not True or not world.webhooks.pending(event["id"]))
        ),
        # Those that failed are few among all, and what a receiver that was down asks for.
        among=world.webhooks.unsuccessful() if succeeded is False else None,
    )
    return found | {"data": [_event(world, event) for event in found["data"]]}


@operation("GetEventsId", "events.retrieve")
def retrieve_event(call: Call) -> Json:
    return _event(call.world, call.world.store.get("event", call.owner, call.path["id"]))


@operation("PostWebhookEndpoints", "webhook_endpoints.create")
def create_endpoint(call: Call) -> Json:
    params = call.params
    made = add_endpoint(
        call.world,
        params["url"],
        connect=params.get("connect", False),
        events=params["enabled_events"],
        api_version=params.get("api_version"),
    )
    made["metadata"] = metadata({}, params.get("metadata"))
    made["description"] = params.get("description") or None
    # Shown now and never again.
    return made | {"secret": call.world.webhooks.endpoints[made["id"]].secrets[0][0]}


@operation("GetWebhookEndpoints", "webhook_endpoints.list")
def list_endpoints(call: Call) -> Json:
    return call.page("webhook_endpoint")


@operation("GetWebhookEndpointsWebhookEndpoint", "webhook_endpoints.retrieve")
def retrieve_endpoint(call: Call) -> Json:
    return call.world.store.get("webhook_endpoint", call.owner, call.path["webhook_endpoint"])


@operation("PostWebhookEndpointsWebhookEndpoint", "webhook_endpoints.update")
def update_endpoint(call: Call) -> Json:
    found, params = retrieve_endpoint(call), call.params
    if "url" in params:
        _check(params["url"])
    for name in ("url", "enabled_events"):
        if name in params:
            found[name] = params[name]
    if "description" in params:
        found["description"] = params["description"] or None
    if "disabled" in params:
        found["status"] = "disabled" if params["disabled"] else "enabled"
    found["metadata"] = metadata(found["metadata"], params.get("metadata"))
    return found


@operation("DeleteWebhookEndpointsWebhookEndpoint", "webhook_endpoints.delete")
def delete_endpoint(call: Call) -> Json:
    found = retrieve_endpoint(call)
    call.world.store.remove(call.owner, found)
    # What waits for it is not sent any more.
    found["status"] = "disabled"
    del call.world.webhooks.endpoints[found["id"]]
    return {"id": found["id"], "object": "webhook_endpoint", "deleted": True}


def add_endpoint(
    world: World,
    url: str,
    *,
    connect: bool = False,
    events: list[str] | None = None,
    secret: str = "",
    api_version: str | None = None,
    owner: str = "acct_platform",
) -> Json:
    """A new endpoint; its secret is made up unless given.

    Raises:
        StripeError: the URL is not plain HTTP on this machine.
    """
    _check(url)
    made = templates.new(
        "webhook_endpoint",
        id=world.ids.next("we"),
        api_version=api_version,
        created=world.clock.now(),
        enabled_events=events or ["*"],
        url=url,
    )
    secrets: list[tuple[str, int | None]] = [(secret or world.ids.next("whsec"), None)]
    world.webhooks.endpoints[made["id"]] = Endpoint(made, connect, secrets)
    return world.store.add(owner, made)


def roll_secret(world: World, identifier: str, keep_seconds: int, secret: str = "") -> str:
    """A new secret for an endpoint; the old ones sign along for `keep_seconds`, at most a day in Stripe."""
    endpoint = world.webhooks.endpoints.get(identifier)
    if endpoint is None:
        raise invalid(f"No such webhook endpoint: '{identifier}'", "resource_missing")
    ends = world.clock.now() + keep_seconds
    made = secret or world.ids.next("whsec")
    endpoint.secrets = [(made, None), *((old, until or ends) for old, until in endpoint.secrets)]
    return made


def _event(world: World, event: Json) -> Json:
    return unpacked(event) | {"pending_webhooks": world.webhooks.pending(event["id"])}


def _matches(kind: str, pattern: str) -> bool:
    return kind == pattern or pattern == "*" or (pattern.endswith(".*") and kind.startswith(pattern[:-1]))


def _check(url: str) -> None:
    if not is_loopback(url):
        raise invalid(
            f"The stand-in sends webhooks to plain HTTP on this machine only, not to {url}",
            "url_invalid",
            "url",
        )
