"""Counts of who was asked for what is another tenant's, for the end of a test run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

_PROPERTY: Final = "reach"
RecordProperty = Callable[[str, object], None]


@dataclass
class Reach:
    """Calls of principals for ids or pages: answered with what is the caller's to see, refused, and leaks."""

    who: set[str] = field(default_factory=set)
    what: set[str] = field(default_factory=set)
    answered: int = 0
    refused: int = 0
    leaks: int = 0

    def count(self, who: str, what: str, *, answered: bool) -> None:
        """One call."""
        self.who.add(who)
        self.what.add(what)
        if answered:
            self.answered += 1
        else:
            self.refused += 1

    def record(self, record_property: RecordProperty, kind: str) -> None:
        """Keep the counts with the test. Before it asserts: what leaked is counted, too."""
        counts = (sorted(self.who), sorted(self.what), self.answered, self.refused, self.leaks)
        record_property(_PROPERTY, (kind, *counts))


def lines(reports: list[pytest.TestReport]) -> list[str]:
    """What the tests of a run counted, a line for each kind."""
    totals: dict[str, Reach] = {}
    for report in reports:
        for name, value in report.user_properties:
            if name != _PROPERTY:
                continue
            counted: Any = value
            kind, who, what, answered, refused, leaks = counted
            total = totals.setdefault(kind, Reach())
            total.who.update(who)
            total.what.update(what)
            total.answered += answered
            total.refused += refused
            total.leaks += leaks
    return [
        f"{kind}: {len(one.who)} principals, {len(one.what)} {kind}, {one.answered + one.refused:,} calls:"
        f" {one.answered:,} answered with their own, {one.refused:,} refused, {one.leaks} leaks"
        for kind, one in sorted(totals.items())
    ]
