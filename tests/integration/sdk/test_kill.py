"""A host that is killed loses nothing that it recorded, and nothing is charged twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tallystick import AsyncClient
from tests.integration.metering.world import World
from tests.support.network import gate_to
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[3]
# What a run without tokens and without success costs under AGENT_RUN.
FEE_MICROS = 5_000
# Events, of at most 100 bytes on disk.
ENOUGH = 100

RUN = """
import itertools, sys, time
from tallystick import Client

metering, path = sys.argv[1:]
client = Client(metering=metering, buffer_path=path or None)

def run(number):
    client.record(
        customer="cus_1", agent="agt_a", workflow_id=f"run-{number}", action="run", outcome="failure"
    )
"""

# Prints the number of each event as soon as `record` has returned; slower than the servers are, so that some
# events are delivered and others not when it is killed.
ENDLESS = f"""{RUN}
for number in itertools.count():
    run(number)
    print(number, flush=True)
    time.sleep(0.001)
"""

FORGETFUL = f"""{RUN}
for number in range(20):
    run(number)
"""


async def start(program: str, key: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments),
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT), "TALLYSTICK_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
    )


async def recorded_when_killed(host: asyncio.subprocess.Process) -> int:
    """Kill the host in the middle of its work; answers how many events it knew to be recorded."""
    host.send_signal(signal.SIGKILL)
    output, _ = await host.communicate()
    return output.count(b"\n")


@pytest.mark.parametrize("server", ["there", "away"])
async def test_kill_9_loses_nothing_and_doubles_nothing(
    world: World, options: dict[str, Any], host_key: str, tmp_path: Path, server: str
) -> None:
    path = tmp_path / "usage"
    async with gate_to(world.server.address) as gate:
        if server == "away":
            await gate.cut()
        host = await start(ENDLESS, host_key, gate.address, str(path))

        async def is_at_work() -> bool:
            if server == "there":
                return world.charge_count() >= ENOUGH
            return path.exists() and path.stat().st_size >= 100 * ENOUGH

        await eventually(is_at_work)
        recorded = await recorded_when_killed(host)
    assert recorded >= ENOUGH
    assert (world.charge_count() == 0) == (server == "away")

    async with AsyncClient(**options, buffer_path=path) as client:
        assert await client.flush(timeout=60) == 0
        stats = client.stats
    assert stats.refused == 0
    if server == "away":
        assert stats.replayed >= recorded

    # The last event may have been taken without the host knowing: it was killed before it could say so.
    charged = world.charge_count()
    assert recorded <= charged <= recorded + 1
    expected = {f"run-{number}" for number in range(charged)}
    assert {row[0] for row in world.server.query("SELECT workflow_id FROM ledger.charge")} == expected
    assert await world.available() == 100_000_000 - charged * FEE_MICROS


@pytest.mark.parametrize("buffer", ["memory", "disk"])
async def test_a_host_that_ends_without_closing_still_delivers(
    world: World, host_key: str, tmp_path: Path, buffer: str
) -> None:
    path = str(tmp_path / "usage") if buffer == "disk" else ""
    host = await start(FORGETFUL, host_key, world.server.address, path)
    async with asyncio.timeout(60):
        assert await host.wait() == 0
    assert world.charge_count() == 20
