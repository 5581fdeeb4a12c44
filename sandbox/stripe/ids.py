"""Identifiers that look like Stripe's and are the same in every run."""

from __future__ import annotations

import hashlib
from collections import Counter


class Ids:
    """`tr_0001` and ten letters made from the seed: readable in a test, unlike another seed's."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._counts: Counter[str] = Counter()

    def next(self, prefix: str) -> str:
        self._counts[prefix] += 1
        number = self._counts[prefix]
        digest = hashlib.sha256(f"{self._seed}/{prefix}/{number}".encode()).hexdigest()
        return f"{prefix}_{number:04d}{digest[:10]}"
