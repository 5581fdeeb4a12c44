"""The plain values that travel: JSON objects, and what an HTTP call is answered with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


def snapshot(value: Json) -> Json:
    """A copy that no later change reaches; only what JSON can say survives, as over the wire."""
    copied: Json = json.loads(json.dumps(value))
    return copied


@dataclass(frozen=True)
class Answer:
    """What a call is answered with. The body is kept as bytes: a replay must not differ by a space."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def answer(status: int, body: Json) -> Answer:
    """As Stripe prints it: indented, so that a verifier which encodes a body again is found out."""
    return Answer(status, json.dumps(body, indent=2).encode())
