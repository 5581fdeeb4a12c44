"""The main job: recorded agent traffic becomes money in a ledger, and every figure is read back and proved.

`python -m sandbox.demo` starts the stack, registers everybody, replays the recordings over gRPC as agent
hosts would, waits for the outcomes that nobody knows to expire, tops up who ran out of credits, pays the
organizations, and then reads what the services say: the whole journal, every balance, a sample of charges,
Stripe's books, and the audit. What it reports is what they answered, never what it expected.
sandbox/README.md has the details.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
from rich.console import Console

from sandbox import report
from sandbox.job import Job, Traffic
from sandbox.process import SandboxError, asyncio_takes_interrupts, signals_end_the_program
from sandbox.replay import (
    ONE_DOLLAR_CUSTOMER,
    BadLine,
    Recording,
    ReplayError,
    Shift,
    Survey,
    read_runs,
    read_trace,
    survey,
)
from sandbox.replies import BUDGET_EXCEEDED, INSUFFICIENT_CREDITS, REFUSALS
from sandbox.second_act import SecondAct
from sandbox.servers import stores
from sandbox.stack import ROOT, SERVICES, Stack, first_call
from sandbox.stand_in import stripe_itself

DATA = ROOT / "sandbox" / "data"
# Payouts looks for schedules twice a minute otherwise, and spares Stripe.
_SETTINGS = {"PAYOUTS_SCHEDULE_INTERVAL": "0.2", "PAYOUTS_STRIPE_CALLS_PER_SECOND": "500"}
# Of each service's log, when a call failed.
LOG_LINES = 20


@dataclass(frozen=True, slots=True)
class Result:
    """What was read back. Amounts are micros of a US dollar; the fields are those of the JSON file."""

    runs: int
    requests: int
    bad_lines: int
    charges: int
    duplicates: int
    gross: int
    platform_fee: int
    processing: int
    net: int
    paid_from_credits: int
    unpaid_before_top_up: int
    unpaid: int
    # How many payouts ended in which way, and what left and did not come back.
    payouts: dict[str, int]
    paid_out: int
    # Between Stripe's books and the ledger.
    reconcile_differences: int
    # Runs as their file names them.
    refused: list[str]
    refused_by_reason: dict[str, list[str]]
    settled: int
    deferred_outcomes: int
    expired_outcomes: int
    # Of all customers together.
    reserved: int
    held: int
    short_customer: dict[str, str | int]
    capped_customer: dict[str, str | int]
    # What the recorded runs come to by other prices, and the runs of each version.
    second_act: dict[str, object]
    seconds: dict[str, float]
    invariants: dict[str, bool]


class Stopwatch:
    """How long each step of the job took."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """The step that began with the end of the one before has ended."""
        now = time.monotonic()
        self._seconds[name] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Every step so far, and all of them together."""
        steps = {**self._seconds, "total": self._last - self._started}
        return {name: round(value, 3) for name, value in steps.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Do the main job. Exit status 0 if every invariant holds, 1 if one fails or the job cannot be done."""
    arguments = _arguments(argv)
    console = Console()
    try:
        with signals_end_the_program():
            return _demo(arguments, console)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except grpc.aio.AioRpcError as error:
        return _failed(f"{error.code().name}: {error.details()}")
    except (SandboxError, ReplayError, OSError) as error:
        return _failed(str(error))


def _demo(arguments: argparse.Namespace, console: Console) -> int:
    watch = Stopwatch()
    if arguments.json is not None:
        # Before the work: what cannot be written is told now, and no older result passes for this one.
        arguments.json.write_text("")
    if stripe_itself(os.environ):
        raise SandboxError(
            "the demo moves Stripe's clock, which only the stand-in allows: unset STRIPE_API_KEY"
        )
    recordings = [
        Recording("runs", arguments.runs, read_runs, authorized=True),
        Recording("requests", arguments.trace, read_trace),
    ]
    surveys = [survey(recording, _report_bad_line) for recording in recordings]
    with (
        stores() as found,
        tempfile.TemporaryDirectory(prefix="tallystick-demo-") as directory,
        Stack(Path(directory), found, environment=_SETTINGS) as stack,
    ):
        watch.lap("start")
        traffic = _until_now(recordings, surveys)
        try:
            with asyncio_takes_interrupts():
                result, keys = asyncio.run(_perform(stack, traffic, watch, console, twice=arguments.twice))
        except (grpc.aio.AioRpcError, ReplayError):
            _show_logs(stack)
            raise
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
        if arguments.keep:
            _keep(stack, console, keys)
    return 0 if all(result.invariants.values()) else 1


def _until_now(recordings: Sequence[Recording], surveys: Sequence[Survey]) -> list[Traffic]:
    """Each recording shifted on its own, so that its last work ends now."""
    now_us = time.time_ns() // 1000
    return [
        Traffic(recording, surveyed, Shift.to(now_us, surveyed.last_us or 0))
        for recording, surveyed in zip(recordings, surveys, strict=True)
    ]


async def _perform(
    stack: Stack, traffic: list[Traffic], watch: Stopwatch, console: Console, *, twice: bool
) -> tuple[Result, dict[str, str]]:
    """The result, and keys to sign in to the dashboard with."""
    async with Job(stack, traffic, _report_bad_line) as job:
        await job.set_up()
        watch.lap("setup")
        await _replay(job, traffic, console, "")
        watch.lap("replay")
        await job.let_outcomes_expire()
        watch.lap("outcomes")
        await job.top_up()
        watch.lap("top_up")
        await job.pay_organizations()
        watch.lap("payouts")
        if twice:
            before = await job.snapshot()
            await _replay(job, traffic, console, " again")
            await job.ask_again()
            await job.compare(before)
            watch.lap("second_replay")
        invariants = await job.verify()
        watch.lap("verify")
        second = await job.second_act()
        watch.lap("second_act")
        invariants |= _second_act_holds(second)
        result = _result(job, traffic, watch.seconds(), invariants, second)
        report.show_organizations(console, job.organizations())
        report.show_payouts(console, job.paid.rows())
        report.show_second_act(console, second)
        _show(console, job, result)
        return result, await job.sign_in_keys()


async def _replay(job: Job, traffic: list[Traffic], console: Console, note: str) -> None:
    for one in traffic:
        with report.progress(console, f"{one.recording.name}{note}", one.good_lines) as step:
            await job.replay(one, step)


def _result(
    job: Job,
    traffic: list[Traffic],
    seconds: dict[str, float],
    invariants: dict[str, bool],
    second_act: SecondAct,
) -> Result:
    journal, replies = job.journal, job.replies
    lines = {one.recording.name: one.survey.lines for one in traffic}
    return Result(
        runs=lines["runs"],
        requests=lines["requests"],
        bad_lines=sum(one.survey.bad_lines for one in traffic) + len(replies.bad_lines),
        charges=journal.charge_count,
        duplicates=replies.duplicates,
        gross=journal.gross,
        platform_fee=journal.platform_fee,
        processing=journal.processing,
        net=journal.net,
        paid_from_credits=journal.paid_from_credits,
        unpaid_before_top_up=job.unpaid_before_top_up,
        unpaid=job.unpaid,
        payouts=job.paid.counts(),
        paid_out=job.paid.paid_out,
        reconcile_differences=job.paid.differences,
        refused=replies.refused_runs(*REFUSALS),
        refused_by_reason={reason: replies.refused_runs(reason) for reason in REFUSALS},
        settled=len(replies.settled),
        deferred_outcomes=len(replies.deferred),
        expired_outcomes=job.expired,
        reserved=sum(funds.reserved for funds in job.funds.values()),
        held=sum(funds.held for funds in job.funds.values()),
        short_customer={"customer_id": ONE_DOLLAR_CUSTOMER, "credits": job.short_credits},
        capped_customer={
            "customer_id": job.budget.budget.customer_id,
            "budget_id": job.budget.budget.budget_id,
            "limit": job.budget.budget.limit.amount_micros,
            "spent": job.budget.status.spent.amount_micros,
        },
        second_act=second_act.summary(),
        seconds=seconds,
        invariants=invariants,
    )


def _second_act_holds(act: SecondAct) -> dict[str, bool]:
    """What must hold of it, and whether it does."""
    as_charged = act.models[-1]
    return {
        "charges_come_out_of_their_prices_again": act.mismatched == 0,
        "the_same_prices_come_to_the_same": as_charged.rerated == as_charged.charged,
    }


def _show(console: Console, job: Job, result: Result) -> None:
    journal, dollars = job.journal, report.dollars
    bad = f"{result.duplicates:,} duplicates, {result.bad_lines:,} bad lines"
    fees = f"platform fee {dollars(result.platform_fee)} + processing {dollars(result.processing)}"
    posted = f"{journal.entry_count:,} entries of {journal.last_position:,} transactions"
    for line in (
        f"{result.runs:,} runs, {result.requests:,} requests: {result.charges:,} charges, {bad}",
        *_reservations(job, result),
        f"unpaid before the top-up {dollars(result.unpaid_before_top_up)}, after it {dollars(result.unpaid)}",
        f"gross {dollars(result.gross)} = net {dollars(result.net)} + {fees}",
        _payouts(result),
        f"{posted} add up to {dollars(sum(journal.sums.values()))}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    report.show_times(console, result.seconds)
    report.show_invariants(console, result.invariants)


def _payouts(result: Result) -> str:
    """What became of the payouts."""
    ends = result.payouts
    states = (
        f"{ends['completed']:,} payouts completed, {ends['failed']:,} failed, {ends['reversed']:,} reversed"
    )
    banks = f"{ends['bank_failed']:,} given back by a bank"
    differences = f"{result.reconcile_differences:,} differences to Stripe's books"
    return f"{states}, {banks}: paid out {report.dollars(result.paid_out)}, {differences}"


def _reservations(job: Job, result: Result) -> Iterator[str]:
    """What became of the runs: settled or refused, some with an outcome that was left open."""
    replies, dollars, budget = job.replies, report.dollars, job.budget.budget
    used = f"captured {dollars(replies.captured)} + returned {dollars(replies.returned)}"
    yield f"{result.settled:,} runs authorized and settled: reserved {dollars(replies.reserved)} = {used}"
    for reason, limit in (
        (INSUFFICIENT_CREDITS, f"{ONE_DOLLAR_CUSTOMER} bought {dollars(job.short_credits)}"),
        (BUDGET_EXCEEDED, f"{budget.customer_id} may spend {dollars(budget.limit.amount_micros)}"),
    ):
        yield f"{len(result.refused_by_reason[reason]):,} runs refused, {reason}: {limit}"
    outcomes = f"outcomes deferred {result.deferred_outcomes:,}, expired {result.expired_outcomes:,}"
    yield f"{outcomes}; still reserved {dollars(result.reserved)}, held {dollars(result.held)}"


def _show_logs(stack: Stack) -> None:
    """The end of every service's log: the files are deleted with the stack."""
    for name in SERVICES:
        path = stack.log_path(name)
        with path.open(errors="replace") as log:
            print(f"the end of {path}:\n{''.join(deque(log, LOG_LINES))}", file=sys.stderr)


def _keep(stack: Stack, console: Console, keys: Mapping[str, str]) -> None:
    """Leave the stack up until Ctrl-C."""
    ends, secrets = stack.endpoints, stack.operator_key.path.parent
    for line in (
        f"ledger {ends.ledger}, metering {ends.metering}, payouts {ends.payouts}, reporting {ends.reporting}",
        f"payouts' web http://{ends.payouts_web}, Stripe {ends.stripe or 'itself'}",
        f"keys in {secrets}",
        f"a first call:\n\n  {first_call(stack)}\n",
        f"the dashboard: http://{ends.reporting_web}, to sign in with the key of the",
        *(f"  {whose}:\n    {key}" for whose, key in keys.items()),
        "",
        "Ctrl-C stops everything.",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    pause = threading.Event()
    try:
        while not pause.wait(1.0):
            stack.check()
    except KeyboardInterrupt:
        console.print("stopped")


def _report_bad_line(line: BadLine) -> None:
    print(line, file=sys.stderr, flush=True)


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.demo", description=__doc__)
    parser.add_argument(
        "--runs", type=Path, default=DATA / "runs.jsonl.gz", help="recorded agent runs, plain or gzip"
    )
    parser.add_argument(
        "--trace", type=Path, default=DATA / "trace.csv.gz", help="recorded requests, plain or gzip"
    )
    parser.add_argument("--json", type=Path, help="write what was read back to this file")
    parser.add_argument("--twice", action="store_true", help="replay everything a second time")
    parser.add_argument("--keep", action="store_true", help="leave the stack up until Ctrl-C")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
