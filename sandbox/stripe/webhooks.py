"""Webhooks: who is told of an event, in what order, how often, and how wrongly."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from sandbox.stripe import signatures
from sandbox.stripe.clock import DAY, HOUR, Clock
from sandbox.stripe.errors import invalid
from sandbox.stripe.events import unpacked
from sandbox.stripe.ids import Ids
from sandbox.stripe.post import post
from sandbox.stripe.values import Json

# Tried again with growing pauses until the event is this old, then given up: left to /v1/events.
GIVE_UP_AFTER = 3 * DAY
DONE_KEPT = 10_000
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 60, 12 * HOUR
# What can happen to the next deliveries; the tamperings beside it concern what is sent.
HANDLINGS = {
    "duplicate": "sent twice, at the same time",
    "delay": "not before `seconds` have passed",
    "drop": "held back until `webhooks deliver`",
    "not_live": "says the other `livemode`",
}


@dataclass
class Endpoint:
    """A webhook endpoint and what Stripe never shows again: its secrets, each with the time it ends."""

    value: Json
    connect: bool
    secrets: list[tuple[str, int | None]]

    def wants(self, event: Json) -> bool:
        return (
            self.value["status"] == "enabled"
            and self.connect == ("account" in event)
            and any(fnmatchcase(event["type"], wanted) for wanted in self.value["enabled_events"])
        )

    def secrets_at(self, now: int) -> list[str]:
        return [secret for secret, ends in self.secrets if ends is None or ends > now]


@dataclass(eq=False)
class Delivery:
    """One event on its way to one endpoint."""

    id: str
    event: Json
    endpoint: Endpoint
    due: int
    handling: list[str] = field(default_factory=list)
    state: str = "waiting"  # or held, delivered, given_up
    attempts: int = 0
    status: int | None = None

    def view(self) -> Json:
        return {
            "id": self.id,
            "event": self.event["id"],
            "type": self.event["type"],
            "account": self.event.get("account"),
            "url": self.endpoint.value["url"],
            "state": self.state,
            "due": self.due,
            "attempts": self.attempts,
            "status": self.status,
            "handling": self.handling,
        }


@dataclass
class Mishap:
    """What the next `count` deliveries of events of a type (or a pattern) meet."""

    kind: str
    type: str = "*"
    count: int = 1
    seconds: int = 0


class Webhooks:
    """The deliveries. Those to one endpoint go out one after another, in the order of their events."""

    def __init__(self, clock: Clock, ids: Ids, seed: str) -> None:
        self._clock, self._ids = clock, ids
        self._random = random.Random(seed)  # noqa: S311 - an order, not a secret
        self.endpoints: dict[str, Endpoint] = {}
        self.paused = False
        # Set when something may have become due; made by the loop that waits on it.
        self.wake: asyncio.Event | None = None
        # All that is not done, and of it what may be sent at once: a receiver that is down makes the first
        # long, and no call may look through it.
        self._waiting: dict[str, Delivery] = {}
        self._ready: list[Delivery] = []
        self._done: deque[Delivery] = deque(maxlen=DONE_KEPT)
        # By event, how many deliveries of it are on their way; one that has none is left out.
        self._unfinished: dict[str, int] = {}
        # By event, the endpoints that never took it; one that takes a repeat is taken off.
        self._failed: dict[str, set[str]] = {}
        self._mishaps: list[Mishap] = []
        self._sending = asyncio.Lock()

    def expect(self, mishap: Mishap) -> None:
        """Raises:
        StripeError: the kind is unknown.
        """
        kinds = {**HANDLINGS, **signatures.TAMPERINGS}
        if mishap.kind not in kinds:
            raise invalid(f"Unknown mishap {mishap.kind!r}; there are {', '.join(kinds)}", param="kind")
        self._mishaps.append(mishap)

    def forget_mishaps(self) -> None:
        self._mishaps.clear()

    def queue(self, event: Json) -> None:
        """Tell every endpoint that wants it."""
        for endpoint in self.endpoints.values():
            if endpoint.wants(event):
                self._add(event, endpoint)

    def repeat(self, event: Json) -> int:
        """Send an event again to everybody who wants it; how many that are."""
        wanting = [endpoint for endpoint in self.endpoints.values() if endpoint.wants(event)]
        for endpoint in wanting:
            self._add(event, endpoint)
        return len(wanting)

    def pending(self, event_id: str) -> int:
        """How many endpoints have not taken the event yet."""
        return self._unfinished.get(event_id, 0) + len(self._failed.get(event_id, ()))

    def unsuccessful(self) -> list[str]:
        """The events that some endpoint has not taken yet, or never took."""
        return list(self._unfinished.keys() | self._failed.keys())

    def reorder(self, how: str) -> None:
        """Turn what waits around (`reverse`) or mix it (`shuffle`).

        Raises:
            StripeError: another word.
        """
        waiting = list(self._waiting.values())
        if how == "reverse":
            waiting.reverse()
        elif how == "shuffle":
            self._random.shuffle(waiting)
        else:
            raise invalid(f"Unknown order {how!r}: reverse or shuffle", param="order")
        self._waiting = {delivery.id: delivery for delivery in waiting}
        ready = set(self._ready)
        self._ready = [delivery for delivery in waiting if delivery in ready]

    def view(self, type: str = "*", limit: int = DONE_KEPT) -> Json:
        """All there is to see; of deliveries only those of a type or pattern, of those done the newest."""
        done = [delivery.view() for delivery in self._done if fnmatchcase(delivery.event["type"], type)]
        return {
            "paused": self.paused,
            "mishaps": [vars(mishap) for mishap in self._mishaps],
            "waiting": [
                delivery.view()
                for delivery in self._waiting.values()
                if fnmatchcase(delivery.event["type"], type)
            ],
            "done": done[max(0, len(done) - limit) :],
            "endpoints": [
                {
                    "id": endpoint.value["id"],
                    "url": endpoint.value["url"],
                    "connect": endpoint.connect,
                    "secrets": endpoint.secrets_at(self._clock.now()),
                }
                for endpoint in self.endpoints.values()
            ],
        }

    async def run(self) -> None:
        """Deliver what is due, for ever."""
        self.wake = asyncio.Event()
        while True:
            # Real time passes too: retries fall due without anybody asking.
            try:
                async with asyncio.timeout(0.2):
                    await self.wake.wait()
            except TimeoutError:
                self._clock.run_due()
            self.wake.clear()
            await self.deliver()

    async def deliver(self, *, event: str = "", now: bool = False) -> list[Json]:
        """Send what is due, or with `now` all that waits or is held, or only what concerns one event."""
        if self.paused and not now:
            return []
        async with self._sending:
            due = [
                delivery
                for delivery in (self._waiting.values() if now else self._ready)
                if not event or delivery.event["id"] == event
            ]
            taken = set(due)
            self._ready = [delivery for delivery in self._ready if delivery not in taken]
            by_endpoint: dict[str, list[Delivery]] = {}
            for delivery in due:
                by_endpoint.setdefault(delivery.endpoint.value["id"], []).append(delivery)
            await asyncio.gather(*(self._send_all(queue) for queue in by_endpoint.values()))
            return [delivery.view() for delivery in due]

    def _add(self, event: Json, endpoint: Endpoint) -> None:
        delivery = Delivery(self._ids.next("wd"), event, endpoint, self._clock.now())
        for mishap in self._mishaps:
            if mishap.count > 0 and fnmatchcase(event["type"], mishap.type):
                mishap.count -= 1
                delivery.handling.append(mishap.kind)
                if mishap.kind == "delay":
                    delivery.due += mishap.seconds
                elif mishap.kind == "drop":
                    delivery.state = "held"
        self._waiting[delivery.id] = delivery
        self._unfinished[event["id"]] = self._unfinished.get(event["id"], 0) + 1
        self._plan(delivery, delivery.due)

    def _plan(self, delivery: Delivery, due: int) -> None:
        """Let it be sent at `due`, unless it is held."""
        delivery.due = due
        if due > self._clock.now():
            self._clock.at(due, lambda: self._fall_due(delivery, due))
        else:
            self._fall_due(delivery, due)

    def _fall_due(self, delivery: Delivery, due: int) -> None:
        # One that was sent by hand meanwhile is done, or due at another time.
        if delivery.state != "waiting" or delivery.due != due:
            return
        self._ready.append(delivery)
        if self.wake is not None:
            self.wake.set()

    async def _send_all(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            copies = 2 if "duplicate" in delivery.handling and delivery.attempts == 0 else 1
            statuses = await asyncio.gather(*(self._send(delivery) for _ in range(copies)))
            self._note(delivery, statuses)

    async def _send(self, delivery: Delivery) -> int | None:
        endpoint, now = delivery.endpoint, self._clock.now()
        if endpoint.value["status"] != "enabled":
            return None
        # The version pinned at the endpoint, never the one the caller's library asks for.
        shown = unpacked(delivery.event) | {
            "api_version": endpoint.value["api_version"] or delivery.event["api_version"]
        }
        shown["pending_webhooks"] = self.pending(delivery.event["id"])
        if "not_live" in delivery.handling:
            shown["livemode"] = not shown["livemode"]
        body = json.dumps(shown, indent=2).encode()
        kind = next((name for name in delivery.handling if name in signatures.TAMPERINGS), "")
        # Only the first attempt is spoiled: what Stripe sends again, it signs again.
        kind = kind if delivery.attempts == 0 else ""
        signed, body = signatures.tampered(kind, endpoint.secrets_at(now), self._clock.outside(), body)
        headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "Stripe/1.0", **signed}
        return await asyncio.to_thread(post, endpoint.value["url"], body, headers)

    def _note(self, delivery: Delivery, statuses: list[int | None]) -> None:
        delivery.attempts += 1
        delivery.status = statuses[-1]
        taken = any(status is not None and 200 <= status < 300 for status in statuses)
        now, event = self._clock.now(), delivery.event["id"]
        if not taken and now - delivery.event["created"] < GIVE_UP_AFTER:
            pause = min(_FIRST_RETRY_SECONDS * 2 ** (delivery.attempts - 1), _LONGEST_RETRY_SECONDS)
            delivery.state = "waiting"
            self._plan(delivery, now + pause)
            return
        delivery.state = "delivered" if taken else "given_up"
        del self._waiting[delivery.id]
        self._done.append(delivery)
        self._unfinished[event] -= 1
        if not self._unfinished[event]:
            del self._unfinished[event]
        if not taken:
            self._failed.setdefault(event, set()).add(delivery.endpoint.value["id"])
        elif event in self._failed:
            self._failed[event].discard(delivery.endpoint.value["id"])
            if not self._failed[event]:
                del self._failed[event]
