"""Measures the suite against its floors: `python -m bench [names…]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
from rich.console import Console

from bench import machine
from bench.contestants import UnexpectedAnswerError, contestants
from bench.results import GROUPS, NAMES, Comparison, Result, compare, memory, table, write_json
from bench.runner import Record, Runner, check_books
from bench.world import World, open_world
from sandbox.process import SandboxError, signals_end_the_program
from sandbox.servers import stores
from sandbox.stack import ROOT, Stack

_OUT: Final = ROOT / "build" / "bench.json"
_SETTINGS: Final = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
_DEFAULT_ROUNDS: Final = 5
_DEFAULT_SECONDS: Final = 2.0
_MAX_ROUNDS: Final = 50
_MAX_SECONDS: Final = 60.0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--rounds", type=int, default=_DEFAULT_ROUNDS, help="rounds of each (default 5)")
    parser.add_argument("--seconds", type=float, default=_DEFAULT_SECONDS, help="of one round (default 2)")
    parser.add_argument("--json", type=Path, default=_OUT, help="where to write the results")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    if not 1 <= arguments.rounds <= _MAX_ROUNDS or not 0 < arguments.seconds <= _MAX_SECONDS:
        parser.error(f"rounds are 1 to {_MAX_ROUNDS}, seconds up to {_MAX_SECONDS:g}")
    return arguments


async def measure(
    world: World, chosen: Sequence[str], runner: Runner, conditions: dict[str, object]
) -> list[Result]:
    """The results of the chosen benchmarks, and the memory of the services after them."""
    every = await contestants(world)
    records: dict[str, Record] = {}
    results: list[Result] = []
    charges = await world.count("SELECT count(*) FROM ledger.charge")
    events = await world.count("SELECT count(*) FROM metering.usage_event")
    for group in GROUPS:
        wanted: list[Comparison] = [one for one in group if one.name in chosen]
        if not wanted:
            continue
        taking_part = {name for one in wanted for name in (one.floor, one.contestant) if name}
        group_records = await runner.run([one for name, one in every.items() if name in taking_part])
        records.update(group_records)
        load = {"load_average_after": round(os.getloadavg()[0], 2)}
        results += [compare(one, group_records, {**conditions, **load}) for one in wanted]
    await check_books(world, records, charges, events)
    for name in ("ledger", "metering"):
        results.append(memory(f"{name}_memory", world.processes.peak_memory_mb(name), conditions))
    return results


async def _run(arguments: argparse.Namespace, stack: Stack, console: Console) -> list[Result]:
    console.print("registering parties, granting credits, publishing prices")
    async with open_world(stack, stack.directory) as world:
        fsync_ms = machine.fsync_milliseconds(stack.directory, world.processes.programs("postgres"))
        conditions: dict[str, object] = {
            **machine.description(),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "load_average_before": round(os.getloadavg()[0], 2),
            "fsync_ms": round(fsync_ms, 4),
            "postgres": {name: await world.setting(name) for name in _SETTINGS},
            "rounds": arguments.rounds,
            "seconds_per_round": arguments.seconds,
        }
        console.print_json(data=conditions)
        runner = Runner(world, rounds=arguments.rounds, seconds=arguments.seconds, say=console.print)
        return await measure(world, arguments.names or NAMES, runner, conditions)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks, print the table, write the JSON. A missed bar is no failure: see the table."""
    arguments = _arguments(argv)
    console = Console()
    console = Console(width=max(console.width, 190), soft_wrap=True)
    if os.environ.get("DATABASE_URL") or os.environ.get("REDIS_URL"):
        # A run fills its database with charges; and only stores of our own have settings that we know.
        console.print("error: benchmarks run on stores of their own: unset DATABASE_URL and REDIS_URL")
        return 2
    try:
        with (
            signals_end_the_program(),
            tempfile.TemporaryDirectory(prefix="tallystick-bench-") as folder,
            stores() as found,
            # Nothing else, which would take CPU from what is measured.
            Stack(Path(folder), found, services=("ledger", "metering")) as stack,
        ):
            results = asyncio.run(_run(arguments, stack, console))
    except (SandboxError, UnexpectedAnswerError, TimeoutError, grpc.aio.AioRpcError) as error:
        console.print(f"error: {error}", markup=False)
        return 1
    console.print(table(results))
    write_json(results, arguments.json)
    console.print(f"written to {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
