"""Measures the suite against its floors: `python -m bench [names…]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
from rich.console import Console

from bench import machine
from bench.contestants import Contestant, UnexpectedAnswerError, contestants
from bench.feeds import feed_catchup, open_feeds
from bench.growth import feed, fill, ledger_growth
from bench.http_client import HttpError
from bench.payouts import (
    HOT_ORGANIZATION,
    ORGANIZATIONS,
    PayoutsWorld,
    answering,
    check_payouts_books,
    open_payouts_world,
    payout_run,
    payouts_contestants,
    settings,
)
from bench.rating import rating_benchmarks
from bench.replicas import open_twins, twin_of, twins_contestants
from bench.reports import (
    MAX_EXPORT_ROWS,
    SMALL_EARNINGS,
    ReportsWorld,
    export,
    open_reports_world,
    reports_contestants,
)
from bench.results import (
    EXPORT,
    FEED,
    FEED_CATCHUP,
    GROUPS,
    LEDGER_GROWTH,
    NAMES,
    PAYOUT_RUN,
    PAYOUTS_GROUPS,
    RATING,
    REPORTS_GROUPS,
    TWINS_GROUPS,
    Comparison,
    Result,
    compare,
    memory,
    names_of,
    table,
    write_json,
)
from bench.runner import Record, Runner, check_books
from bench.world import Suite, World, open_world
from sandbox.process import ChildProcess, SandboxError, signals_end_the_program
from sandbox.servers import stores
from sandbox.stack import ROOT, Stack

_OUT: Final = ROOT / "build" / "bench.json"
_SETTINGS: Final = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
_DEFAULT_ROUNDS: Final = 5
_DEFAULT_SECONDS: Final = 2.0
_MAX_ROUNDS: Final = 50
_MAX_SECONDS: Final = 60.0
_MAX_ORGANIZATIONS: Final = 99_999
_MAX_CONCURRENCY: Final = 256
_MAX_EVENTS: Final = 1_000_000
_MAX_EARNINGS: Final = 10_000_000
_MIN_ENTRIES: Final = 400_000
_MAX_ENTRIES: Final = 20_000_000


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--rounds", type=int, default=_DEFAULT_ROUNDS, help="rounds of each (default 5)")
    parser.add_argument("--seconds", type=float, default=_DEFAULT_SECONDS, help="of one round (default 2)")
    parser.add_argument(
        "--organizations", type=int, default=10_000, help="that payout_run pays (default 10,000)"
    )
    parser.add_argument(
        "--concurrency", type=int, default=8, help="of payouts: organizations paid at once (default 8)"
    )
    parser.add_argument(
        "--events", type=int, default=50_000, help="metered for feed_catchup (default 50,000)"
    )
    parser.add_argument(
        "--earnings",
        type=int,
        default=1_000_000,
        help="stored for reports; exported up to a million (default 1,000,000; the bars are for 10,000,000)",
    )
    parser.add_argument(
        "--entries",
        type=int,
        default=1_000_000,
        help="stored for ledger_growth and feed (default 1,000,000; the bar is for 10,000,000)",
    )
    parser.add_argument("--json", type=Path, default=_OUT, help="where to write the results")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    if not 1 <= arguments.rounds <= _MAX_ROUNDS or not 0 < arguments.seconds <= _MAX_SECONDS:
        parser.error(f"rounds are 1 to {_MAX_ROUNDS}, seconds up to {_MAX_SECONDS:g}")
    if not 10 <= arguments.organizations <= _MAX_ORGANIZATIONS:
        parser.error(f"organizations are 10 to {_MAX_ORGANIZATIONS}")
    if not 1 <= arguments.concurrency <= _MAX_CONCURRENCY:
        parser.error(f"concurrency is 1 to {_MAX_CONCURRENCY}")
    if not 1_000 <= arguments.events <= _MAX_EVENTS:
        parser.error(f"events are 1,000 to {_MAX_EVENTS:,}")
    if not SMALL_EARNINGS <= arguments.earnings <= _MAX_EARNINGS:
        parser.error(f"earnings are {SMALL_EARNINGS:,} to {_MAX_EARNINGS:,}")
    if not _MIN_ENTRIES <= arguments.entries <= _MAX_ENTRIES:
        parser.error(f"entries are {_MIN_ENTRIES:,} to {_MAX_ENTRIES:,}")
    return arguments


async def measure(
    world: World, chosen: Sequence[str], runner: Runner, conditions: dict[str, object]
) -> list[Result]:
    """The results of the chosen benchmarks, and the memory of the services after them."""
    charges = await world.count("SELECT count(*) FROM ledger.charge")
    events = await world.count("SELECT count(*) FROM metering.usage_event")
    results, records = await _compare(GROUPS, await contestants(world), chosen, runner, conditions)
    await check_books(world, records, charges, events)
    for name in ("ledger", "metering"):
        results.append(memory(f"{name}_memory", world.processes.peak_memory_mb(name), conditions))
    return results


async def measure_payouts(
    world: PayoutsWorld,
    arguments: argparse.Namespace,
    runner: Runner,
    conditions: dict[str, object],
    say: Callable[[str], None],
) -> list[Result]:
    """The results of the chosen benchmarks of payouts, and the memory of payouts after them."""
    chosen = arguments.names or NAMES
    results: list[Result] = []
    if set(names_of(PAYOUTS_GROUPS)) & set(chosen):
        await world.earn([*ORGANIZATIONS, HOT_ORGANIZATION])
        every = await payouts_contestants(world)
        results, records = await _compare(PAYOUTS_GROUPS, every, chosen, runner, conditions)
        await check_payouts_books(world, records)
    if PAYOUT_RUN in chosen:
        results += await payout_run(world, arguments.organizations, arguments.concurrency, conditions, say)
    results.append(memory("payouts_memory", world.processes.peak_memory_mb("payouts"), conditions))
    return results


async def measure_reports(
    world: ReportsWorld,
    arguments: argparse.Namespace,
    runner: Runner,
    conditions: dict[str, object],
    say: Callable[[str], None],
) -> list[Result]:
    """The results of the chosen benchmarks of reports, and the memory of reporting after them."""
    chosen = arguments.names or NAMES
    results, _ = await _compare(REPORTS_GROUPS, reports_contestants(world), chosen, runner, conditions)
    if EXPORT in chosen:
        results += await export(world, min(arguments.earnings, MAX_EXPORT_ROWS), conditions, say)
    results.append(memory("reporting_memory", world.processes.peak_memory_mb("reporting"), conditions))
    return results


async def _compare(
    groups: Sequence[Sequence[Comparison]],
    every: Mapping[str, Contestant],
    chosen: Sequence[str],
    runner: Runner,
    conditions: Mapping[str, object],
) -> tuple[list[Result], dict[str, Record]]:
    records: dict[str, Record] = {}
    results: list[Result] = []
    for group in groups:
        wanted: list[Comparison] = [one for one in group if one.name in chosen]
        if not wanted:
            continue
        taking_part = {name for one in wanted for name in (one.floor, one.contestant) if name}
        group_records = await runner.run([one for name, one in every.items() if name in taking_part])
        records.update(group_records)
        load = {"load_average_after": round(os.getloadavg()[0], 2)}
        results += [compare(one, group_records, {**conditions, **load}) for one in wanted]
    return results, records


async def _run(arguments: argparse.Namespace, stack: Stack, console: Console) -> list[Result]:
    console.print("registering parties, granting credits, publishing prices")
    async with open_world(stack, stack.directory) as world:
        conditions = await _conditions(arguments, world, stack.directory)
        console.print_json(data=conditions)
        runner = Runner(world, rounds=arguments.rounds, seconds=arguments.seconds, say=console.print)
        return await measure(world, arguments.names or NAMES, runner, conditions)


async def _run_twins(
    arguments: argparse.Namespace, stack: Stack, twin: Stack, console: Console
) -> list[Result]:
    console.print("registering parties, granting credits, publishing prices")
    async with open_world(stack, stack.directory) as world, open_twins(world, twin) as (one, other):
        conditions = await _conditions(arguments, world, stack.directory)
        console.print_json(data=conditions)
        runner = Runner(one, rounds=arguments.rounds, seconds=arguments.seconds, say=console.print)
        charges = await world.count("SELECT count(*) FROM ledger.charge")
        events = await world.count("SELECT count(*) FROM metering.usage_event")
        chosen = arguments.names or NAMES
        every = twins_contestants(one, other)
        results, records = await _compare(TWINS_GROUPS, every, chosen, runner, conditions)
        await check_books(world, records, charges, events)
        return results


async def _run_growth(arguments: argparse.Namespace, stack: Stack, console: Console) -> list[Result]:
    console.print("registering parties, granting credits, publishing prices")
    async with open_world(stack, stack.directory) as world:
        conditions = await _conditions(arguments, world, stack.directory)
        console.print_json(data=conditions)
        runner = Runner(world, rounds=arguments.rounds, seconds=arguments.seconds, say=console.print)
        chosen = arguments.names or NAMES
        results: list[Result] = []

        async def grow() -> None:
            seconds = await fill(world, arguments.entries, console.print)
            conditions["fill_seconds"] = round(seconds, 1)

        if LEDGER_GROWTH in chosen:
            results.append(await ledger_growth(world, runner, grow, conditions))
        else:
            await grow()
        if FEED in chosen:
            results.append(await feed(world, arguments.rounds, conditions, console.print))
        return results


async def _run_payouts(
    arguments: argparse.Namespace, stack: Stack, server: ChildProcess, console: Console
) -> list[Result]:
    async with open_payouts_world(stack, stack.directory, server) as world:
        conditions = await _conditions(arguments, world, stack.directory)
        console.print_json(data=conditions)
        runner = Runner(world, rounds=arguments.rounds, seconds=arguments.seconds, say=console.print)
        return await measure_payouts(world, arguments, runner, conditions, console.print)


async def _run_feeds(arguments: argparse.Namespace, stack: Stack, console: Console) -> list[Result]:
    console.print("registering parties, granting credits, publishing prices")
    async with open_world(stack, stack.directory) as world, open_feeds(stack, world) as feeds:
        conditions = await _conditions(arguments, world, stack.directory)
        console.print_json(data=conditions)
        return [
            await feed_catchup(world, feeds, arguments.events, arguments.rounds, conditions, console.print)
        ]


async def _run_reports(arguments: argparse.Namespace, stack: Stack, console: Console) -> list[Result]:
    async with open_reports_world(stack, arguments.earnings, console.print) as world:
        conditions = {
            **await _conditions(arguments, world, stack.directory),
            "earnings": arguments.earnings,
            "earnings_of_floor": SMALL_EARNINGS,
            "fill_seconds": round(world.fill_seconds, 1),
        }
        console.print_json(data=conditions)
        runner = Runner(world, rounds=arguments.rounds, seconds=arguments.seconds, say=console.print)
        return await measure_reports(world, arguments, runner, conditions, console.print)


async def _conditions(arguments: argparse.Namespace, world: Suite, folder: Path) -> dict[str, object]:
    fsync_ms = machine.fsync_milliseconds(folder, world.processes.programs("postgres"))
    return {
        **machine.description(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_before": round(os.getloadavg()[0], 2),
        "fsync_ms": round(fsync_ms, 4),
        "postgres": {name: await world.setting(name) for name in _SETTINGS},
        "rounds": arguments.rounds,
        "seconds_per_round": arguments.seconds,
    }


def _pure_conditions(arguments: argparse.Namespace) -> dict[str, object]:
    """Those of what needs no suite."""
    return {
        **machine.description(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_before": round(os.getloadavg()[0], 2),
        "rounds": arguments.rounds,
        "seconds_per_round": arguments.seconds,
    }


def _measure_all(arguments: argparse.Namespace, console: Console) -> list[Result]:
    """Each part on stores of its own, and with no other services than it needs: they would take CPU from what
    is measured.
    """
    chosen = set(arguments.names or NAMES)
    results: list[Result] = []
    if chosen & set(RATING):
        results += rating_benchmarks(
            tuple(chosen & set(RATING)), arguments.rounds, arguments.seconds, _pure_conditions(arguments)
        )
    if chosen & set(names_of(GROUPS)):
        with (
            tempfile.TemporaryDirectory(prefix="tallystick-bench-") as folder,
            stores() as found,
            Stack(Path(folder), found, services=("ledger", "metering")) as stack,
        ):
            results += asyncio.run(_run(arguments, stack, console))
    if chosen & set(names_of(TWINS_GROUPS)):
        with (
            tempfile.TemporaryDirectory(prefix="tallystick-bench-") as folder,
            stores() as found,
            Stack(Path(folder) / "one", found, services=("ledger", "metering")) as stack,
            twin_of(stack, found, Path(folder) / "other") as twin,
        ):
            results += asyncio.run(_run_twins(arguments, stack, twin, console))
    if chosen & {LEDGER_GROWTH, FEED}:
        with (
            tempfile.TemporaryDirectory(prefix="tallystick-bench-") as folder,
            stores() as found,
            Stack(Path(folder), found, services=("ledger", "metering")) as stack,
        ):
            results += asyncio.run(_run_growth(arguments, stack, console))
    if chosen & {*names_of(PAYOUTS_GROUPS), PAYOUT_RUN}:
        with (
            tempfile.TemporaryDirectory(prefix="tallystick-bench-") as folder,
            stores() as found,
            answering(Path(folder)) as server,
            Stack(
                Path(folder),
                found,
                services=("ledger", "payouts"),
                environment=settings(Path(folder), arguments.concurrency),
            ) as stack,
        ):
            results += asyncio.run(_run_payouts(arguments, stack, server, console))
    if FEED_CATCHUP in chosen:
        with (
            tempfile.TemporaryDirectory(prefix="tallystick-bench-") as folder,
            stores() as found,
            Stack(Path(folder), found, services=("ledger", "metering", "reporting")) as stack,
        ):
            results += asyncio.run(_run_feeds(arguments, stack, console))
    if chosen & {*names_of(REPORTS_GROUPS), EXPORT}:
        with (
            tempfile.TemporaryDirectory(prefix="tallystick-bench-") as folder,
            stores() as found,
            answering(Path(folder)),
            # All of them: a page asks each.
            Stack(Path(folder), found, environment=settings(Path(folder), arguments.concurrency)) as stack,
        ):
            results += asyncio.run(_run_reports(arguments, stack, console))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks, print the table, write the JSON. A missed bar is no failure: see the table."""
    arguments = _arguments(argv)
    console = Console()
    console = Console(width=max(console.width, 200), soft_wrap=True)
    if os.environ.get("DATABASE_URL") or os.environ.get("REDIS_URL"):
        # A run fills its database with charges; and only stores of our own have settings that we know.
        console.print("error: benchmarks run on stores of their own: unset DATABASE_URL and REDIS_URL")
        return 2
    try:
        with signals_end_the_program():
            results = _measure_all(arguments, console)
    except (SandboxError, UnexpectedAnswerError, HttpError, EOFError, OSError, grpc.aio.AioRpcError) as error:
        console.print(f"error: {error}", markup=False)
        return 1
    console.print(table(results))
    write_json(results, arguments.json)
    console.print(f"written to {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
