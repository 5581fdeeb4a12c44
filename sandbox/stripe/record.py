"""What a test asserts on afterwards: calls seen, our own mistakes, and what a caller should not have done."""

from __future__ import annotations

from collections import deque

from sandbox.stripe.values import Json

KEPT = 20_000


class Record:
    """`violations` are mistakes of the stand-in, `complaints` those of its caller; the newest KEPT."""

    def __init__(self) -> None:
        self.requests: deque[Json] = deque(maxlen=KEPT)
        self.violations: deque[Json] = deque(maxlen=KEPT)
        self.complaints: deque[Json] = deque(maxlen=KEPT)

    def violation(self, where: str, problem: str) -> None:
        self.violations.append({"where": where, "problem": problem})

    def complaint(self, kind: str, request: str, detail: str) -> None:
        self.complaints.append({"kind": kind, "request": request, "detail": detail})
