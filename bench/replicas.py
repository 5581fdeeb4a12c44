"""The suite twice over the same stores: what a second process of each service adds, and what it costs."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.contestants import Contestant, ledger_single, meter_single
from bench.world import World
from sandbox.process import SandboxError
from sandbox.servers import Stores
from sandbox.stack import Stack


@contextmanager
def twin_of(stack: Stack, stores: Stores, folder: Path) -> Iterator[Stack]:
    """The same services once more, over the same stores, with the same keys."""
    # Their keys too: a token that one metering signed, the other one takes.
    shutil.copytree(stack.directory / "secrets", folder / "secrets")
    with Stack(folder, stores, services=("ledger", "metering")) as twin:
        yield twin


@asynccontextmanager
async def open_twins(world: World, twin: Stack) -> AsyncIterator[tuple[World, World]]:
    """The worlds of both suites. CPU of a service is that of its two processes."""
    ledger, metering = twin.pid("ledger"), twin.pid("metering")
    if ledger is None or metering is None:
        raise SandboxError("a service ended before the run began")
    processes = world.processes.with_twin("ledger", ledger).with_twin("metering", metering)
    async with AsyncExitStack() as cleanup:
        one = replace(world, processes=processes)
        yield one, await one.calling(twin, cleanup)


def twins_contestants(one: World, other: World) -> dict[str, Contestant]:
    """Single calls to one suite, and to both in turns."""
    found = [
        ledger_single(one, "one_ledger"),
        _both("two_processes_ledger", ledger_single(one, ""), ledger_single(other, "")),
        meter_single(one, "one_metering"),
        _both("two_processes_metering", meter_single(one, ""), meter_single(other, "")),
    ]
    return {contestant.name: contestant for contestant in found}


def _both(name: str, one: Contestant, other: Contestant) -> Contestant:
    async def call(caller: int, request: Any) -> None:
        await (other if caller % 2 else one).call(caller, request)

    # As many for each as for one alone: with half of them less would gather, and each call would cost more.
    return replace(one, name=name, in_flight=one.in_flight + other.in_flight, call=call)
