"""From records to results, a table and build/bench.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.table import Table

from bench.bars import BARS
from bench.runner import Record
from bench.summary import median, median_ratio, percentiles


@dataclass(frozen=True, slots=True)
class Comparison:
    """A benchmark: which contestant is measured against which, if any, and in what its rate is counted.

    It is called like its contestant unless `as_name` says otherwise.
    """

    contestant: str
    floor: str | None
    unit: str
    as_name: str = ""

    @property
    def name(self) -> str:
        """The name of the benchmark."""
        return self.as_name or self.contestant


_LATENCY: Final = "ms"
_TAIL: Final = "ms p99"
_LEASE_CALLS: Final = "calls/1,000"

# Those whose contestants run in turns stand together; a latency is compared in milliseconds.
GROUPS: Final[Sequence[Sequence[Comparison]]] = (
    (
        Comparison("ledger_batch", "bare_batch", "charges/s"),
        Comparison("meter_batch", "bare_batch", "events/s"),
    ),
    (
        Comparison("ledger_single", "noop_ledger", "calls/s"),
        Comparison("ledger_hot_payer", "ledger_single", "calls/s"),
        Comparison("ledger_hot_org", "ledger_single", "calls/s"),
    ),
    (
        Comparison("meter_unary", "noop_meter", "calls/s"),
        Comparison("meter_unary_alone", "noop_meter_alone", _LATENCY),
    ),
    (
        Comparison("reserve", "noop_authorize", "calls/s"),
        Comparison("reserve", None, _LEASE_CALLS, as_name="lease_overhead"),
        Comparison("reserve_contended", "reserve", "calls/s"),
        Comparison("reserve_alone", "noop_authorize_alone", _LATENCY),
        Comparison("reserve_settle", "noop_cycle", "cycles/s"),
    ),
)
# Those of payouts, and of what the ledger does for it, which run on a suite of their own.
PAYOUTS_GROUPS: Final[Sequence[Sequence[Comparison]]] = (
    (Comparison("webhook_ack", "bare_webhook", "events/s"),),
    (Comparison("webhook_ack_paced", "bare_webhook_paced", _TAIL),),
    (Comparison("payout_gate", "bare_debit", "calls/s"),),
    (Comparison("payout_gate_hot", "bare_debit_hot", "calls/s"),),
)
PAYOUT_RUN: Final = "payout_run"
# Those of reporting: of a long history against a short one.
REPORTS_GROUPS: Final[Sequence[Sequence[Comparison]]] = (
    (Comparison("report_summary", "report_summary_small", _TAIL),),
    (Comparison("report_top_customers", "report_top_customers_small", _TAIL),),
    (Comparison("page_dashboard", None, _TAIL),),
)
# On a ledger with a long history.
LEDGER_GROWTH: Final = "ledger_growth"
FEED: Final = "feed"
# On two processes of each service.
TWINS_GROUPS: Final[Sequence[Sequence[Comparison]]] = (
    (Comparison("two_processes_ledger", "one_ledger", "calls/s"),),
    (Comparison("two_processes_metering", "one_metering", "calls/s"),),
)
FEED_CATCHUP: Final = "feed_catchup"
EXPORT: Final = "export"
# Without any service.
RATE_PURE: Final = "rate_pure"
RATE_CEL: Final = "rate_cel"
RATING: Final = (RATE_PURE, RATE_CEL)


def names_of(groups: Sequence[Sequence[Comparison]]) -> tuple[str, ...]:
    """The names of their benchmarks."""
    return tuple(one.name for group in groups for one in group)


NAMES: Final = (
    *names_of(GROUPS),
    *names_of(TWINS_GROUPS),
    LEDGER_GROWTH,
    FEED,
    *names_of(PAYOUTS_GROUPS),
    PAYOUT_RUN,
    FEED_CATCHUP,
    *names_of(REPORTS_GROUPS),
    EXPORT,
    *RATING,
)


@dataclass(frozen=True, slots=True)
class Result:
    """One line of build/bench.json. `conditions` holds what the figures depend on, and the other figures."""

    name: str
    value: float
    unit: str
    floor: float | None
    ratio: float | None
    p50_ms: float | None
    p99_ms: float | None
    conditions: Mapping[str, object]

    @property
    def verdict(self) -> str:
        """Whether the benchmark's bar is met; "" if it has none."""
        bar = BARS.get(self.name)
        return "" if bar is None else "met" if bar.is_met(self.value, self.ratio) else "SHORT"


def compare(
    comparison: Comparison, records: Mapping[str, Record], conditions: Mapping[str, object]
) -> Result:
    """The result of one comparison: medians over the rounds, percentiles over all of their calls."""
    record = records[comparison.contestant]
    values = _values(comparison, record)
    floors = [] if comparison.floor is None else _values(comparison, records[comparison.floor])
    spread = percentiles([seconds for one in record.rounds for seconds in one.load.latencies])
    return Result(
        name=comparison.name,
        value=rounded(median(values)),
        unit=comparison.unit,
        floor=rounded(median(floors)) if floors else None,
        ratio=rounded(median_ratio(values, floors)) if floors else None,
        p50_ms=rounded(spread.p50),
        p99_ms=rounded(spread.p99),
        conditions={
            "p999_ms": rounded(spread.p999),
            "floor_name": comparison.floor,
            "in_flight": record.contestant.in_flight,
            "batch_size": record.contestant.size,
            "calls": sum(len(one.load.latencies) for one in record.rounds),
            "value_by_round": [rounded(value) for value in values],
            "floor_by_round": [rounded(value) for value in floors],
            "cpu_us_per_operation": cpu_per_operation(record),
            "ledger_calls_per_1000": rounded(
                sum(one.ledger_calls.all for one in record.rounds)
                / sum(one.operations for one in record.rounds)
                * 1000
            ),
            # How many of the machine's CPUs were busy with programs that have no part in this.
            "other_cpus": rounded(median([one.other_cpus for one in record.rounds])),
            **conditions,
        },
    )


def memory(name: str, megabytes: float, conditions: Mapping[str, object]) -> Result:
    """The most memory that a process had."""
    return Result(name, rounded(megabytes), "MB", None, None, None, None, conditions)


def cpu_per_operation(record: Record) -> dict[str, float]:
    """Microseconds of CPU per operation, by process."""
    operations = sum(one.operations for one in record.rounds)
    names = record.rounds[0].cpu.processes
    return {
        name: rounded(sum(one.cpu.processes[name] for one in record.rounds) / operations * 1e6)
        for name in names
    }


def _values(comparison: Comparison, record: Record) -> list[float]:
    if comparison.unit == _LATENCY:
        return [percentiles(one.load.latencies).p50 for one in record.rounds]
    if comparison.unit == _TAIL:
        return [percentiles(one.load.latencies).p99 for one in record.rounds]
    if comparison.unit == _LEASE_CALLS:
        return [one.ledger_calls.of_credits / one.operations * 1000 for one in record.rounds]
    return [one.rate for one in record.rounds]


def rounded(value: float) -> float:
    """To four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def write_json(results: Sequence[Result], path: Path) -> None:
    """A list of objects with the fields of Result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


def table(results: Sequence[Result]) -> Table:
    """The results for a person."""
    shown = Table(title="Tallystick benchmarks", caption="CPU: µs per operation; ratio: median of the rounds")
    for heading, justify in (("benchmark", "left"), ("value", "right"), ("unit", "left")):
        shown.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    for heading in (
        "floor",
        "ratio",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "client",
        "ledger",
        "metering",
        "payouts",
        "reporting",
        "postgres",
        "valkey",
    ):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("bar", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for result in results:
        shown.add_row(*cells(result))
    return shown


def cells(result: Result) -> list[str]:
    """The texts of one row of the table."""
    cpu = result.conditions.get("cpu_us_per_operation")
    cpu = cpu if isinstance(cpu, dict) else {}
    p999 = result.conditions.get("p999_ms")
    return [
        result.name,
        number(result.value),
        result.unit,
        number(result.floor),
        "" if result.ratio is None else f"{result.ratio:.2f}",
        number(result.p50_ms),
        number(result.p99_ms),
        number(p999 if isinstance(p999, float) else None),
        *(
            number(cpu.get(name))
            for name in ("client", "ledger", "metering", "payouts", "reporting", "postgres", "valkey")
        ),
        str(BARS.get(result.name, "")),
        result.verdict,
    ]


def number(value: float | None) -> str:
    """Short, for a person: thousands without decimals, small figures with them; "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
