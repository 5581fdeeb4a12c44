"""A short run of `make test-faults`."""

import random

from tests.faults.run import run

SECONDS = 12.0


def test_whatever_fails_nothing_is_overdrawn_leaked_doubled_or_lost() -> None:
    report = run(SECONDS, random.randrange(2**32))

    assert report.findings == [], "\n".join(report.lines())
    assert len(report.faults) >= 3
    assert report.calls["settled"] > 0
