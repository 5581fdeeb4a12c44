"""Ledger and metering as processes that are killed and come back in a fraction of a second.

A new Python takes seconds to import the services. So one process has imported them, and every start is a fork
of it: what is killed with SIGKILL is a process of its own all the same.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Mapping
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final, Literal, Self

from sandbox.ports import FREE_PORTS
from sandbox.process import POLL_SECONDS, Deadline, SandboxError
from scripts.grpc_health import serving
from tests.support.ledger_server import platform_key
from tests.support.metering_server import TOKEN_KEY

ServiceName = Literal["ledger", "metering"]
# Callees first.
SERVICES: Final[tuple[ServiceName, ...]] = ("ledger", "metering")

# The times of leases and reservations, short, so that what nobody ends is back within seconds.
LONGEST_TTL: Final = timedelta(seconds=5)
# Twice as long as anything stands still: half of it is for the ledger to be asked in, half for the way to
# Valkey.
GRACE: Final = timedelta(seconds=5)
LEASE: Final = timedelta(seconds=8)
# Longer than the longest leased reservation, as in production.
DRAIN: Final = timedelta(seconds=6)
REAP: Final = timedelta(milliseconds=200)
# After its last use, everything that was kept for anything is back.
TIME_TO_LIVE: Final = LONGEST_TTL + GRACE + REAP + timedelta(seconds=3)

_START_SECONDS: Final = 60.0
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        "services.kit.server",
        "services.ledger.__main__",
        "services.ledger.app",
        "services.metering.__main__",
        "services.metering.app",
    ]
)


class Services:
    """Both services over given stores, with a key for each who calls them."""

    def __init__(self, directory: Path, database_url: str, redis_url: str) -> None:
        self._directory = directory
        self._database_url = database_url
        ports = FREE_PORTS.with_free()
        self.ledger = f"127.0.0.1:{ports.ledger}"
        self.metering = f"127.0.0.1:{ports.metering}"
        self._environment = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "LEDGER_LISTEN_ADDRESS": self.ledger,
            "LEDGER_METRICS_ADDRESS": f"127.0.0.1:{ports.ledger_metrics}",
            "LEDGER_LEASE_DURATION": _seconds(LEASE),
            "LEDGER_LEASE_DRAIN": _seconds(DRAIN),
            "LEDGER_REAP_INTERVAL": _seconds(REAP),
            "LEDGER_COLLECT_INTERVAL": "0.2",
            "LEDGER_ADJUSTMENT_APPROVAL": "none",
            "METERING_LISTEN_ADDRESS": self.metering,
            "METERING_METRICS_ADDRESS": f"127.0.0.1:{ports.metering_metrics}",
            "METERING_LEDGER_ADDRESS": self.ledger,
            "METERING_TOKEN_KEYS": TOKEN_KEY,
            "METERING_RESERVATION_GRACE": _seconds(GRACE),
            "METERING_LEASE_INTERVAL": "0.4",
            "METERING_LEASE_IDLE": "1",
            "METERING_RECOVERY_INTERVAL": "0.05",
            "METERING_RECOVERY_DELAY": "0.5",
        }
        self.keys: Mapping[str, str] = {}
        self._running: dict[ServiceName, ForkServerProcess] = {}

    def __enter__(self) -> Self:
        self.keys = {
            role: asyncio.run(platform_key(self._database_url, role))
            for role in ("operator", "host", "service")
        }
        self._environment["METERING_LEDGER_API_KEY"] = self.keys["service"]
        try:
            for name in SERVICES:
                self.start(name)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self, name: ServiceName) -> None:
        """Start a service that does not run, and return when it is healthy."""
        log_path = self._directory / f"{name}.log"
        process = _forks.Process(target=_serve, args=(name, self._environment, log_path), daemon=True)
        process.start()
        self._running[name] = process
        address, deadline = getattr(self, name), Deadline(_START_SECONDS)
        while not serving(address):
            process.join(POLL_SECONDS)
            if process.exitcode is not None or deadline.passed:
                log = log_path.read_text(errors="replace")[-2000:]
                raise SandboxError(f"{name} did not start (status {process.exitcode}):\n{log}")

    def kill(self, name: ServiceName) -> None:
        """SIGKILL, as a crash would."""
        process = self._running.pop(name)
        process.kill()
        process.join()

    def restart(self, name: ServiceName) -> None:
        """Kill a service and bring it back."""
        self.kill(name)
        self.start(name)

    def pause(self, name: ServiceName) -> None:
        """Let a service stand still, with its connections open."""
        os.kill(self._pid(name), signal.SIGSTOP)

    def resume(self, name: ServiceName) -> None:
        """Let it go on."""
        os.kill(self._pid(name), signal.SIGCONT)

    def check(self) -> None:
        """Raise SandboxError if a service has ended that nobody killed."""
        for name, process in self._running.items():
            if process.exitcode is not None:
                raise SandboxError(f"{name} has ended by itself, with status {process.exitcode}")

    def _pid(self, name: ServiceName) -> int:
        pid = self._running[name].pid
        if pid is None:
            raise SandboxError(f"{name} does not run")
        return pid

    def _end(self) -> None:
        for name in tuple(self._running):
            self.kill(name)


def _seconds(time: timedelta) -> str:
    return str(time.total_seconds())


def _serve(name: ServiceName, environment: Mapping[str, str], log_path: Path) -> None:
    """The child: `python -m services.NAME serve`, without the wait for its imports."""
    # A session of its own: Ctrl-C reaches only who started it.
    os.setsid()
    with log_path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(environment)
    if name == "ledger":
        from services.ledger.__main__ import main
    else:
        from services.metering.__main__ import main
    raise SystemExit(main(["serve"]))
