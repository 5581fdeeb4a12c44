"""Everything the stand-in knows, and the calls that change it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sandbox.stripe import spec as specs
from sandbox.stripe.balances import Balances
from sandbox.stripe.clock import Clock
from sandbox.stripe.errors import invalid, missing
from sandbox.stripe.events import Events
from sandbox.stripe.faults import Faults
from sandbox.stripe.idempotency import IdempotencyKeys
from sandbox.stripe.ids import Ids
from sandbox.stripe.record import Record
from sandbox.stripe.spec import Spec
from sandbox.stripe.store import PLATFORM, Store
from sandbox.stripe.values import Json, snapshot
from sandbox.stripe.webhooks import Webhooks

METADATA_KEYS, METADATA_KEY_LENGTH, METADATA_VALUE_LENGTH = 50, 40, 500


@dataclass
class ApiKey:
    """A key of the platform. `allowed` holds operation names or patterns; a revoked key is unknown (401)."""

    key: str
    allowed: list[str] = field(default_factory=lambda: ["*"])
    revoked: bool = False


class World:
    """One platform account with everything in it. Used by one thread at a time."""

    def __init__(self, clock: Clock, seed: str, url: str = "") -> None:
        self.url = url
        self.clock = clock
        self.seed = seed
        self.spec: Spec = specs.load()
        self.ids = Ids(seed)
        self.record = Record()
        self.faults = Faults()
        self.store = Store()
        # How long every answer takes, for benchmarks that are to see a network.
        self.latency_ms = 0
        self.keys: dict[str, ApiKey] = {}
        self.idempotency = IdempotencyKeys(clock)
        self.balances = Balances(clock, self.ids, self.store)
        self.events = Events(self.spec, clock, self.ids, self.store, self.record)
        self.webhooks = Webhooks(clock, self.ids, seed)
        # Facts about objects that Stripe never shows: test numbers, who is deauthorized, links, limits.
        self.hidden: dict[str, Json] = {}
        self.events.listeners.append(self.webhooks.queue)
        # One action gone wrong must not stop the clock for all the others.
        clock.failed = lambda error: self.record.violation("clock", repr(error))
        self.balances.settled.append(
            lambda owner: self.events.emit("balance.available", self.balances.view(owner), owner)
        )

    def account(self, identifier: str, *, param: str = "account", status: int = 404) -> Json:
        """A connected account that is still connected.

        Raises:
            StripeError: `resource_missing`.
        """
        account = self.store.get("account", PLATFORM, identifier, param=param, status=status)
        if self.hidden.get(identifier, {}).get("deauthorized"):
            raise missing("account", identifier, param=param, status=status)
        return account

    def secret(self, identifier: str) -> Json:
        """The hidden facts about one object, to read and to write."""
        return self.hidden.setdefault(identifier, {})

    def change(self, event: str, value: Json, owner: str, **fields: object) -> None:
        """Set `fields` of an object and tell of it."""
        before = snapshot(value)
        value.update(fields)
        self.events.emit(event, value, owner, before=before)


@dataclass(frozen=True)
class Call:
    """One call to be executed: who it concerns, its typed parameters and the parts of its path."""

    world: World
    owner: str
    params: Json
    path: dict[str, str]
    url: str

    def page(
        self,
        kind: str,
        *filters: str,
        where: Callable[[Json], bool] = lambda _: True,
        among: Iterable[str] | None = None,
        **fixed: str,
    ) -> Json:
        """The page of its owner's objects that a list call asks for; `fixed` are fields that the path names.

        Raises:
            StripeError: see `Store.page`.
        """
        params, names = self.params | fixed, (*filters, *fixed)
        return self.world.store.page(kind, self.owner, params, self.url, *names, where=where, among=among)


Handler = Callable[[Call], Json]


@dataclass(frozen=True)
class Operation:
    """A call that the stand-in implements, under the name that faults use for it.

    `unplayed` are parameters that would do something to money which the stand-in does not do.
    """

    name: str
    run: Handler
    unplayed: tuple[str, ...] = ()


OPERATIONS: dict[str, Operation] = {}


def operation(
    operation_id: str, name: str, *, unplayed: tuple[str, ...] = ()
) -> Callable[[Handler], Handler]:
    """Register the handler of one operation of Stripe's document."""

    def register(handler: Handler) -> Handler:
        OPERATIONS[operation_id] = Operation(name, handler, unplayed)
        return handler

    return register


def check_metadata(given: object) -> None:
    """Raises:
    StripeError: more keys than Stripe keeps, or one or its value is too long.
    """
    pairs = given if isinstance(given, dict) else {}
    if len(pairs) > METADATA_KEYS:
        raise invalid(f"Metadata can have at most {METADATA_KEYS} keys", param="metadata")
    for key, value in pairs.items():
        if len(key) > METADATA_KEY_LENGTH or len(value) > METADATA_VALUE_LENGTH:
            limits = f"{METADATA_KEY_LENGTH} characters, and values {METADATA_VALUE_LENGTH}"
            raise invalid(f"Metadata keys can have at most {limits}", param=f"metadata[{key}]")


def metadata(current: Json, given: object) -> Json:
    """Metadata after a change: keys are merged, an empty value removes one, an empty text removes all."""
    if given is None:
        return current
    if not isinstance(given, dict):
        return {}
    return {key: value for key, value in {**current, **given}.items() if value != ""}
