"""Commands on what travels: time, faults, keys, webhooks, events, and what was seen."""

from __future__ import annotations

from fnmatch import fnmatchcase

from sandbox.stripe.commands.registry import command
from sandbox.stripe.errors import invalid
from sandbox.stripe.faults import KINDS, Fault
from sandbox.stripe.handlers import OPERATIONS
from sandbox.stripe.reading import add_endpoint, roll_secret
from sandbox.stripe.signatures import TAMPERINGS
from sandbox.stripe.store import PLATFORM
from sandbox.stripe.values import Json
from sandbox.stripe.webhooks import DONE_KEPT, HANDLINGS, Mishap
from sandbox.stripe.world import ApiKey, World

_TYPE = "event type or pattern such as payout.*"


@command("clock get")
def clock_get(world: World) -> Json:
    """The stand-in's time in seconds since 1970, and whether it is frozen."""
    return _time(world)


@command("clock advance", seconds="how far forward")
async def clock_advance(world: World, seconds: int) -> Json:
    """Move time forward; what falls due happens, and webhooks that became due are sent."""
    return await _moved(world, world.clock.now() + seconds)


@command("clock set", at="seconds since 1970, not in the past")
async def clock_set(world: World, at: int) -> Json:
    """Move time forward to a moment."""
    return await _moved(world, at)


@command("clock speed", factor="seconds that pass in one real second")
def clock_speed(world: World, factor: int) -> Json:
    """Let time pass faster from now on; 1 is real time again."""
    try:
        world.clock.run_at(factor)
    except ValueError as error:
        raise invalid(str(error)) from None
    return _time(world)


async def _moved(world: World, at: int) -> Json:
    try:
        world.clock.set(at)
    except ValueError as error:
        raise invalid(str(error)) from None
    await world.webhooks.deliver()
    return _time(world)


def _time(world: World) -> Json:
    return {"now": world.clock.now(), "frozen": world.clock.frozen, "speed": world.clock.speed}


@command("latency set", ms="milliseconds")
def latency_set(world: World, ms: int) -> Json:
    """Let every answer of the API take so long from now on, as over a network; 0 ends it."""
    if ms < 0:
        raise invalid("ms is not negative", param="ms")
    world.latency_ms = ms
    return {"latency_ms": ms}


@command(
    "faults add",
    kind="see `faults kinds`",
    operation="such as transfers.create, or a pattern",
    count="how many calls",
    skip="let so many pass first",
    ms="for slow: how late",
    effect="for server_error and slow: the call takes effect first",
    should_retry="for 429: Stripe-Should-Retry, true or false; left out without",
    code="for refused: Stripe's error code",
    account="only calls on this connected account",
)
def faults_add(
    world: World,
    kind: str,
    operation: str = "*",
    count: int = 1,
    skip: int = 0,
    ms: int = 0,
    effect: bool = False,
    should_retry: str = "",
    code: str = "",
    account: str = "",
) -> Json:
    """Let the next calls of an operation fail."""
    names = sorted(known.name for known in OPERATIONS.values())
    if not any(fnmatchcase(name, operation) for name in names):
        raise invalid(f"No operation is named {operation!r}; there are {', '.join(names)}", param="operation")
    if should_retry not in ("", "true", "false"):
        raise invalid("should_retry is true or false", param="should_retry")
    retry = should_retry == "true" if should_retry else None
    return world.faults.add(Fault(kind, operation, count, skip, ms, effect, retry, code, account)).view()


@command("faults kinds")
def faults_kinds(world: World) -> Json:
    """What `faults add` and `webhooks mishap` can do."""
    return {"faults": KINDS, "mishaps": {**HANDLINGS, **TAMPERINGS}}


@command("faults list")
def faults_list(world: World) -> Json:
    """The faults given so far, with how often they still apply (count) and did (hits)."""
    return {"faults": world.faults.view()}


@command("faults clear")
def faults_clear(world: World) -> Json:
    """Forget all faults."""
    world.faults.clear()
    return {"faults": []}


@command(
    "keys add", key="the key", allowed="operations it may call, with commas, such as transfers.*,balance.*"
)
def keys_add(world: World, key: str, allowed: str = "*") -> Json:
    """Accept an API key; a restricted one answers 403 to other operations."""
    world.keys[key] = ApiKey(key, allowed.split(","))
    return {"key": key, "allowed": allowed.split(",")}


@command("keys revoke", key="the key")
def keys_revoke(world: World, key: str) -> Json:
    """Answer 401 to a key from now on; `keys add` takes it back."""
    if key not in world.keys:
        raise invalid("No such key", "resource_missing", "key")
    world.keys[key].revoked = True
    return {"key": key, "revoked": True}


@command("webhooks list", type=_TYPE, limit="of the deliveries done, the newest so many")
def webhooks_list(world: World, type: str = "*", limit: int = DONE_KEPT) -> Json:
    """Endpoints with their secrets, deliveries waiting and done, mishaps to come."""
    return world.webhooks.view(type, limit)


@command("webhooks pause")
def webhooks_pause(world: World) -> Json:
    """Send nothing by itself until `webhooks resume`; events gather."""
    world.webhooks.paused = True
    return {"paused": True}


@command("webhooks resume")
async def webhooks_resume(world: World) -> Json:
    """Send again, and send what has gathered before this returns."""
    world.webhooks.paused = False
    return {"paused": False, "sent": await world.webhooks.deliver()}


@command("webhooks deliver", event="only what concerns this event")
async def webhooks_deliver(world: World, event: str = "") -> Json:
    """Send all that waits: paused, dropped, delayed or to be tried again. Returns when it was answered."""
    return {"sent": await world.webhooks.deliver(event=event, now=True)}


@command("webhooks settle")
async def webhooks_settle(world: World) -> Json:
    """Send what is due and return when it was answered, so that a test need not wait."""
    return {"sent": await world.webhooks.deliver()}


@command("webhooks duplicate", event="its id")
async def webhooks_duplicate(world: World, event: str) -> Json:
    """Send an event again to everybody who was told of it."""
    found = world.store.find(event)
    if found is None or found["object"] != "event":
        raise invalid(f"No such event: '{event}'", "resource_missing", "event")
    world.webhooks.repeat(found)
    return {"sent": await world.webhooks.deliver(event=event, now=True)}


@command("webhooks reorder", order="reverse or shuffle")
def webhooks_reorder(world: World, order: str = "reverse") -> Json:
    """Turn round what waits; pause before, resume after."""
    world.webhooks.reorder(order)
    return world.webhooks.view()


@command("webhooks mishap", kind="see `faults kinds`", type=_TYPE, count="how many", seconds="for delay")
def webhooks_mishap(world: World, kind: str, type: str = "*", count: int = 1, seconds: int = 0) -> Json:
    """Spoil the next deliveries: twice, late, held, badly signed. What is sent again later is sound."""
    world.webhooks.expect(Mishap(kind, type, count, seconds))
    return {"mishaps": world.webhooks.view()["mishaps"]}


@command("webhooks clear")
def webhooks_clear(world: World) -> Json:
    """Forget all mishaps to come, and what `events double` was told."""
    world.webhooks.forget_mishaps()
    world.events.doubled.clear()
    return {"mishaps": [], "doubled": {}}


@command(
    "webhooks add",
    url="on this machine",
    secret="made up if left out",  # noqa: S106 - a text for --help
    connect="for connected accounts",
)
def webhooks_add(world: World, url: str, secret: str = "", connect: bool = False) -> Json:
    """Add an endpoint for all events; prints its secret."""
    made = add_endpoint(world, url, secret=secret, connect=connect, api_version=world.spec.version)
    return made | {"secret": world.webhooks.endpoints[made["id"]].secrets[0][0]}


@command(
    "webhooks roll",
    endpoint="its id",
    keep_seconds="how long the old one signs along",
    secret="made up if left out",  # noqa: S106 - a text for --help
)
def webhooks_roll(world: World, endpoint: str, keep_seconds: int = 86_400, secret: str = "") -> Json:
    """Roll an endpoint's secret; until the old one ends, deliveries carry a signature of each."""
    return {"endpoint": endpoint, "secret": roll_secret(world, endpoint, keep_seconds, secret)}


@command("events double", type=_TYPE, count="how many")
def events_double(world: World, type: str = "*", count: int = 1) -> Json:
    """Make two Event objects, with an id each, for the next changes of a type."""
    world.events.doubled[type] += count
    return {"doubled": dict(world.events.doubled)}


@command(
    "events send",
    type="such as transfer.created",
    object="data.object",
    account="connected account",
    live="livemode",
)
def events_send(world: World, type: str, object: Json, account: str = "", live: bool = False) -> Json:
    """Make an event about any object, even one that nobody knows, and send it."""
    made = world.events.emit(type, object, account or PLATFORM, livemode=live)
    return {"events": [event["id"] for event in made]}


@command("record requests", operation="only this one", limit="the newest so many")
def record_requests(world: World, operation: str = "", limit: int = 100) -> Json:
    """The calls seen, oldest first: parameters, idempotency key, version, status, whether it was a replay."""
    found = [seen for seen in world.record.requests if operation in ("", seen["operation"])]
    return {"requests": found[-limit:]}


@command("record problems")
def record_problems(world: World) -> Json:
    """`violations` are the stand-in's own mistakes; `complaints` what a caller should not have done."""
    return {"violations": list(world.record.violations), "complaints": list(world.record.complaints)}


@command("record clear")
def record_clear(world: World) -> Json:
    """Forget calls, violations and complaints."""
    world.record.requests.clear()
    world.record.violations.clear()
    world.record.complaints.clear()
    return {}
