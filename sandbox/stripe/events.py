"""Event objects: a picture of what changed, kept for /v1/events and handed to the webhooks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase

from sandbox.stripe.clock import Clock
from sandbox.stripe.ids import Ids
from sandbox.stripe.record import Record
from sandbox.stripe.spec import Spec
from sandbox.stripe.store import PLATFORM, Store
from sandbox.stripe.values import Json


class Events:
    """Makes events. `request` and `idempotency_key` are those of the call in hand, None outside of calls."""

    def __init__(self, spec: Spec, clock: Clock, ids: Ids, store: Store, record: Record) -> None:
        self._spec, self._clock, self._ids, self._store, self._record = spec, clock, ids, store, record
        self.request: str | None = None
        self.idempotency_key: str | None = None
        self.listeners: list[Callable[[Json], object]] = []
        # How many of the next events of a type or pattern are made twice, with an id each.
        self.doubled: Counter[str] = Counter()

    def emit(
        self,
        kind: str,
        value: Json,
        owner: str = PLATFORM,
        *,
        before: Json | None = None,
        livemode: bool = False,
    ) -> list[Json]:
        """Record that `value` of account `owner` changed; `before` is its snapshot.

        Nothing is told of an update that changed nothing. Only events named `*.updated` show what was before.
        """
        if kind.endswith(".updated") and before == value:
            return []
        made = [self._make(kind, value, owner, before, livemode)]
        for name in self.doubled:
            if self.doubled[name] and fnmatchcase(kind, name):
                self.doubled[name] -= 1
                made.append(self._make(kind, value, owner, before, livemode))
                break
        for event in made:
            for hear in self.listeners:
                hear(event)
        return made

    def _make(self, kind: str, value: Json, owner: str, before: Json | None, livemode: bool) -> Json:
        for problem in self._spec.object_problems(value):
            self._record.violation(f"event {kind}", problem)
        data: Json = {"object": value}
        if before is not None and kind.endswith(".updated"):
            data["previous_attributes"] = _previous(before, value)
        event: Json = {
            "id": self._ids.next("evt"),
            "object": "event",
            "api_version": self._spec.version,
            "created": self._clock.now(),
            "data": data,
            "livemode": livemode,
            "pending_webhooks": 0,
            "request": {"id": self.request, "idempotency_key": self.idempotency_key},
            "type": kind,
        }
        if owner != PLATFORM:
            event["account"] = owner
        for problem in self._spec.object_problems(event):
            self._record.violation(f"event {kind}", problem)
        # As text: a picture that no later change reaches, in a tenth of the memory.
        return self._store.add(owner, event | {"data": json.dumps(data)})


def unpacked(event: Json) -> Json:
    """A stored event as Stripe shows it: its data are kept as text."""
    return event | {"data": json.loads(event["data"])}


def _previous(before: Json, after: Json) -> Json:
    """What changed, as it was: of objects only the changed fields, of arrays the whole."""
    changed: Json = {}
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            if old != new:
                changed[name] = _previous(old, new)
        elif old != new:
            changed[name] = old
    return changed
