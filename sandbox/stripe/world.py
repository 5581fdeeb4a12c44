"""Everything the stand-in knows, and the calls that change it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sandbox.stripe import spec as specs
from sandbox.stripe.balances import Balances
from sandbox.stripe.clock import Clock
from sandbox.stripe.errors import missing
from sandbox.stripe.events import Events
from sandbox.stripe.faults import Faults
from sandbox.stripe.idempotency import IdempotencyKeys
from sandbox.stripe.ids import Ids
from sandbox.stripe.record import Record
from sandbox.stripe.spec import Spec
from sandbox.stripe.store import PLATFORM, Store
from sandbox.stripe.values import Json, snapshot
from sandbox.stripe.webhooks import Webhooks


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


Handler = Callable[[Call], Json]


@dataclass(frozen=True)
class Operation:
    """A call that the stand-in implements, under the name that faults use for it."""

    name: str
    run: Handler


OPERATIONS: dict[str, Operation] = {}


def operation(operation_id: str, name: str) -> Callable[[Handler], Handler]:
    """Register the handler of one operation of Stripe's document."""

    def register(handler: Handler) -> Handler:
        OPERATIONS[operation_id] = Operation(name, handler)
        return handler

    return register


def metadata(current: Json, given: object) -> Json:
    """Metadata after a change: keys are merged, an empty value removes one, an empty text removes all."""
    if given is None:
        return current
    if not isinstance(given, dict):
        return {}
    return {key: value for key, value in {**current, **given}.items() if value != ""}
