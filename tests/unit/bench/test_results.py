"""From rounds to results, their table and their JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.contestants import Contestant
from bench.load import Load
from bench.machine import CpuClock
from bench.results import Comparison, Result, cells, compare, memory, number, write_json
from bench.runner import Record, Round, keep_quietest
from bench.world import LedgerCalls


async def never(_caller: int, _request: object) -> None:
    raise AssertionError("nothing is sent here")


def record(name: str, rates: Sequence[int], latency: float, *, size: int = 1) -> Record:
    """Rounds of one second with so many operations, each of which takes 20 µs of the ledger's CPU."""
    contestant = Contestant(name, 2, size, lambda _count: [], never)
    return Record(
        contestant,
        [
            Round(
                operations=rate,
                load=Load(1.0, [latency] * (rate // size)),
                cpu=CpuClock({"ledger": rate * 20e-6, "client": 0.0}, machine=rate * 20e-6 + 0.5, at=1.0),
            )
            for rate in rates
        ],
    )


RECORDS = {
    "ledger_batch": record("ledger_batch", [6000, 8000, 7000], 0.05, size=500),
    "bare_batch": record("bare_batch", [10_000, 10_000, 20_000], 0.03, size=500),
}
RESULT = compare(Comparison("ledger_batch", "bare_batch", "charges/s"), RECORDS, {"cpus": 2})


def test_a_result_holds_medians_over_the_rounds_and_percentiles_over_their_calls() -> None:
    assert (RESULT.name, RESULT.unit) == ("ledger_batch", "charges/s")
    assert (RESULT.value, RESULT.floor) == (7000, 10_000)
    # The median of 0.6, 0.8 and 0.35, not the ratio of the medians.
    assert RESULT.ratio == 0.6
    assert (RESULT.p50_ms, RESULT.p99_ms) == (50.0, 50.0)


def test_a_result_says_under_which_conditions_it_was_measured() -> None:
    assert RESULT.conditions["cpus"] == 2
    assert RESULT.conditions["calls"] == 42
    assert RESULT.conditions["floor_by_round"] == [10_000, 10_000, 20_000]
    assert RESULT.conditions["cpu_us_per_operation"] == {"ledger": 20.0, "client": 0.0}
    assert RESULT.conditions["other_cpus"] == pytest.approx(0.5)


def test_a_comparison_in_milliseconds_compares_median_latencies() -> None:
    records = {"slow": record("slow", [10, 10], 0.008), "fast": record("fast", [10, 10], 0.002)}
    result = compare(Comparison("slow", "fast", "ms"), records, {})
    assert (result.value, result.floor, result.ratio) == (8.0, 2.0, 4.0)


def test_a_comparison_of_the_slowest_is_of_each_round_s_own() -> None:
    records = {"slow": record("slow", [10, 10], 0.03), "fast": record("fast", [10, 10], 0.01)}
    result = compare(Comparison("slow", "fast", "ms p99"), records, {})
    assert (result.value, result.floor, result.ratio) == (30.0, 10.0, 3.0)


def test_a_comparison_may_have_a_name_of_its_own_and_no_floor() -> None:
    reserve = record("reserve", [1000, 2000], 0.01)
    reserve.rounds = [
        replace(one, ledger_calls=LedgerCalls(calls, 10))
        for one, calls in zip(reserve.rounds, (3, 2), strict=True)
    ]
    comparison = Comparison("reserve", None, "calls/1,000", as_name="lease_overhead")
    result = compare(comparison, {"reserve": reserve}, {})
    # The median of 3 calls of the ledger in 1,000 operations, and 2 in 2,000.
    assert (result.name, result.value) == ("lease_overhead", 2.0)
    assert (result.floor, result.ratio, result.verdict) == (None, None, "met")
    assert result.conditions["ledger_calls_per_1000"] == 6.667


def test_the_verdict_is_on_the_bar_of_that_name() -> None:
    assert RESULT.verdict == "SHORT"
    assert memory("ledger_memory", 110.04, {}).verdict == "met"
    assert memory("client_memory", 110.04, {}).verdict == ""


def test_the_json_is_a_list_of_results(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.json"
    write_json([RESULT, memory("ledger_memory", 110.04, {})], path)
    first, second = json.loads(path.read_text())
    assert list(first) == ["name", "value", "unit", "floor", "ratio", "p50_ms", "p99_ms", "conditions"]
    assert (first["value"], first["ratio"]) == (7000, 0.6)
    assert (second["value"], second["unit"], second["floor"]) == (110.0, "MB", None)


def test_a_row_shows_each_figure_and_leaves_out_what_there_is_not() -> None:
    result = Result("noop", 1234.0, "calls/s", None, None, 0.5, 12.345, {})
    assert cells(result) == ["noop", "1,234", "calls/s", "", "", "0.5", "12.3", *[""] * 10]
    assert cells(RESULT)[-2:] == ["ratio ≥ 0.6, ≥ 12,000", "SHORT"]


def test_the_rounds_that_others_disturbed_are_dropped_for_all_sides() -> None:
    def disturbed(rates: Sequence[int], others: Sequence[float]) -> Record:
        rounds = [
            Round(rate, Load(1.0, [0.001]), CpuClock({}, machine=other, at=1.0))
            for rate, other in zip(rates, others, strict=True)
        ]
        return Record(record("one", [], 0.001).contestant, rounds)

    service = disturbed([1, 2, 3, 4], [0.1, 0.9, 0.2, 0.1])
    floor = disturbed([5, 6, 7, 8], [0.1, 0.0, 0.1, 1.5])
    keep_quietest([service, floor], 2)
    assert [one.operations for one in service.rounds] == [1, 3]
    assert [one.operations for one in floor.rounds] == [5, 7]


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.0754, "0.0754"), (7.0, "7"), (99.94, "99.9"), (12_345.6, "12,346")]
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text
