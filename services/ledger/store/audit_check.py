"""What a check of the audit is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """A promise, and the query for what breaks it."""

    name: str
    promise: str
    query: str
