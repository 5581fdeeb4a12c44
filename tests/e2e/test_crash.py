"""A service dies with SIGKILL in the middle of a replay, comes back, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from sandbox.job import Job, Traffic
from sandbox.replay import BadLine, Recording, Shift, read_trace, survey
from sandbox.servers import Stores
from sandbox.stack import ROOT, ServiceName, Stack

REQUESTS = 6_000
# Answers after which the service is killed: early, in the middle, and near the end.
CRASHES = (500, 2_500, 5_000)


@pytest.fixture
def traffic(tmp_path: Path) -> Traffic:
    """The first requests of the bundled trace."""
    path = tmp_path / "trace.csv"
    with gzip.open(ROOT / "sandbox" / "data" / "trace.csv.gz", "rt") as whole:
        path.write_text("".join(islice(whole, REQUESTS + 1)))
    recording = Recording("requests", path, read_trace)
    surveyed = survey(recording, _no_bad_line)
    assert surveyed.last_us is not None
    return Traffic(recording, surveyed, Shift.to(time.time_ns() // 1000, surveyed.last_us))


def _no_bad_line(line: BadLine) -> None:
    raise AssertionError(f"the bundled data is sound, but: {line}")


@pytest.fixture
def stack(tmp_path: Path, own_stores: Stores) -> Iterator[Stack]:
    with Stack(tmp_path / "stack", own_stores) as running:
        yield running


@pytest.mark.parametrize("victim", ["metering", "ledger"])
async def test_a_service_killed_in_the_middle_of_a_replay_loses_and_doubles_nothing(
    stack: Stack, traffic: Traffic, victim: ServiceName
) -> None:
    async with Job(stack, [traffic], _no_bad_line) as job:
        await job.set_up()
        answered = 0
        crashes: list[asyncio.Task[None]] = []

        def step() -> None:
            nonlocal answered
            answered += 1
            if answered in CRASHES:
                # Batches are in flight at this moment: some of them are recorded, some posted, none answered.
                stack.kill(victim)
                crashes.append(asyncio.create_task(asyncio.to_thread(stack.restart, victim)))

        await job.replay(traffic, step)
        await asyncio.gather(*crashes)
        assert len(crashes) == len(CRASHES)
        await job.top_up()
        invariants = await job.verify()
    assert invariants == dict.fromkeys(invariants, True)
    assert len(job.journal.charges) == REQUESTS
