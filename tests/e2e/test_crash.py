"""Services die with SIGKILL in the middle of a replay, come back, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from sandbox.job import Job, Traffic
from sandbox.replay import BadLine, Recording, ReplayError, Shift, read_trace, survey
from sandbox.servers import Stores
from sandbox.stack import ROOT, ServiceName, Stack

REQUESTS = 4_000
# Answers after which a service is killed: each of them early, in the middle, and near the end. Metering comes
# last: one that was there all the time may take a moment longer to find the ledger again.
CRASHES: Mapping[int, ServiceName] = {
    400: "ledger",
    800: "metering",
    1_700: "ledger",
    2_400: "metering",
    3_300: "ledger",
    3_700: "metering",
}


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
def stack(session_stores: Stores, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    own = replace(session_stores, database_url=database_url, redis_url=redis_url)
    with Stack(tmp_path / "stack", own) as running:
        yield running


async def test_services_killed_in_the_middle_of_a_replay_lose_and_double_nothing_and_it_is_the_only_one(
    stack: Stack, traffic: Traffic
) -> None:
    async with Job(stack, [traffic], _no_bad_line) as job:
        await job.set_up()
        answered = 0
        crashes: list[asyncio.Task[None]] = []

        def step() -> None:
            nonlocal answered
            answered += 1
            if victim := CRASHES.get(answered):
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
    # What would be read back of another replay would not be its own.
    async with Job(stack, [traffic], _no_bad_line) as another:
        with pytest.raises(ReplayError, match="this ledger was used before"):
            await another.set_up()
