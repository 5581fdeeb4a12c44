"""What the machine and its processes did, from /proc, and how fast it makes data durable."""

from __future__ import annotations

import os
import platform
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.summary import median

_PROC = Path("/proc")
_PROBE_WRITES = 200
_PROBE_BYTES = 8192


@dataclass(frozen=True, slots=True)
class CpuClock:
    """CPU seconds used so far: by each named process, and by everything on the machine."""

    processes: Mapping[str, float]
    machine: float
    at: float

    def since(self, earlier: CpuClock) -> CpuClock:
        """What was used between the two, and for how long."""
        used = {name: seconds - earlier.processes[name] for name, seconds in self.processes.items()}
        return CpuClock(used, self.machine - earlier.machine, self.at - earlier.at)

    @property
    def others(self) -> float:
        """CPU seconds of this interval that were none of the named processes'."""
        return max(self.machine - sum(self.processes.values()), 0.0)


class Processes:
    """The processes that take part, by name; each counts with its children."""

    def __init__(self, pids: Mapping[str, int], twins: Sequence[tuple[str, int]] = ()) -> None:
        self._pids = dict(pids)
        self._twins = tuple(twins)

    def with_process(self, name: str, pid: int) -> Processes:
        """These and one more."""
        return Processes({**self._pids, name: pid}, self._twins)

    def with_twin(self, name: str, pid: int) -> Processes:
        """These and a second process of this name, whose CPU is added to that of the first."""
        return Processes(self._pids, (*self._twins, (name, pid)))

    def cpu(self) -> CpuClock:
        """CPU seconds used so far. "client" is the caller itself."""
        children = _children()
        used = dict.fromkeys(self._pids, 0.0)
        for name, pid in (*self._pids.items(), *self._twins):
            used[name] += sum(_cpu_of_tree(pid, children))
        own = resource.getrusage(resource.RUSAGE_SELF)
        used["client"] = own.ru_utime + own.ru_stime
        return CpuClock(used, _machine_cpu(), time.perf_counter())

    def peak_memory_mb(self, name: str) -> float:
        """The most resident memory that the process had, in megabytes."""
        return self._status_mb(name, "VmHWM")

    def memory_mb(self, name: str) -> float:
        """The resident memory that the process has now, in megabytes."""
        return self._status_mb(name, "VmRSS")

    def _status_mb(self, name: str, field: str) -> float:
        for line in (_PROC / str(self._pids[name]) / "status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise ValueError(f"no {field} of {name}")

    def programs(self, name: str) -> Path:
        """The folder that the process's program is in."""
        return (_PROC / str(self._pids[name]) / "exe").resolve().parent


def parent_of(pid: int) -> int:
    """The process id of a process's parent."""
    return int(_stat(pid)[1])


def description() -> dict[str, object]:
    """What the figures depend on and the machine tells."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def fsync_milliseconds(directory: Path, programs: Path) -> float:
    """How long an 8 kB write and fdatasync take in this folder.

    By PostgreSQL's own pg_test_fsync, if it is among its `programs`; else by a probe like it.
    """
    path, program = directory / "fsync.probe", programs / "pg_test_fsync"
    try:
        measured = _pg_test_fsync(program, path) if program.exists() else None
        return _probe(path) if measured is None else measured
    finally:
        path.unlink(missing_ok=True)


def _pg_test_fsync(program: Path, path: Path) -> float | None:
    """What it says of one 8 kB write with fdatasync; it is stopped before its other tests."""
    process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own program
        [str(program), "-s", "1", "-f", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"LC_ALL": "C"},
    )
    try:
        for line in process.stdout or ():
            if (milliseconds := parse_fdatasync(line)) is not None:
                return milliseconds
        return None
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def parse_fdatasync(line: str) -> float | None:
    """Milliseconds per operation in a line of pg_test_fsync, None if it is not that of fdatasync."""
    words = line.split()
    if len(words) != 5 or words[0] != "fdatasync" or words[4] != "usecs/op":
        return None
    return float(words[3]) / 1000


def _probe(path: Path) -> float:
    taken = []
    file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(_PROBE_WRITES):
            started = time.perf_counter()
            os.pwrite(file, b"\0" * _PROBE_BYTES, 0)
            os.fdatasync(file)
            taken.append(time.perf_counter() - started)
    finally:
        os.close(file)
    return median(taken) * 1000


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(parent_of(int(entry.name)), []).append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # It ended since the folder was listed.
    return children


def _cpu_of_tree(pid: int, children: Mapping[int, list[int]]) -> Iterator[float]:
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return
    # Own time, and that of children which have ended.
    yield sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    for child in children.get(pid, ()):
        yield from _cpu_of_tree(child, children)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the program's name, which may hold anything."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _machine_cpu() -> float:
    user, nice, system, _idle, _iowait, irq, softirq = map(
        int, (_PROC / "stat").read_text().split(maxsplit=8)[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _cpu_model() -> str:
    for line in (_PROC / "cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
