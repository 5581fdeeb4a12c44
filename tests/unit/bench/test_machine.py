"""Reading what programs and the kernel say."""

import pytest

from bench import machine
from bench.machine import CpuClock, Processes, parse_fdatasync


def test_the_line_of_fdatasync_is_found_among_those_of_pg_test_fsync() -> None:
    assert (
        parse_fdatasync("        fdatasync                     13322.106 ops/sec      75 usecs/op\n") == 0.075
    )
    assert (
        parse_fdatasync("        fsync                         10112.991 ops/sec      99 usecs/op\n") is None
    )
    assert parse_fdatasync("        open_datasync                               n/a*\n") is None
    assert parse_fdatasync("1 second per test\n") is None


def test_cpu_of_others_is_what_no_named_process_used() -> None:
    before = CpuClock({"ledger": 10.0, "client": 1.0}, machine=100.0, at=50.0)
    after = CpuClock({"ledger": 11.5, "client": 1.25}, machine=102.5, at=52.0)
    used = after.since(before)
    assert used == CpuClock({"ledger": 1.5, "client": 0.25}, machine=2.5, at=2.0)
    assert used.others == 0.75


def test_clocks_of_different_resolution_leave_no_negative_rest() -> None:
    assert CpuClock({"ledger": 1.005}, machine=1.0, at=1.0).others == 0.0


def test_the_cpu_of_a_twin_is_added_to_that_of_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    # By process id: its own seconds, and those of a child.
    used = {1: [2.0, 0.5], 2: [3.0], 3: [7.0]}
    monkeypatch.setattr(machine, "_cpu_of_tree", lambda pid, _children: used[pid])
    processes = Processes({"ledger": 1, "metering": 3}).with_twin("ledger", 2)
    seconds = dict(processes.cpu().processes)
    seconds.pop("client")
    assert seconds == {"ledger": 5.5, "metering": 7.0}
