"""The suite as processes on one machine: `python -m sandbox.stack`, and `Stack` for demo and e2e tests."""

from __future__ import annotations

import argparse
import errno
import os
import secrets
import shlex
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psycopg
from rich.console import Console
from rich.table import Table

from sandbox.process import ChildProcess, SandboxError, run, signals_end_the_program, signals_wait
from sandbox.servers import Stores, stores
from scripts.grpc_health import serving

ServiceName = Literal["ledger", "metering"]
# Callees first. They stop in the opposite order, so that nobody calls a service that has left.
SERVICES: tuple[ServiceName, ...] = ("ledger", "metering")
ROOT = Path(__file__).resolve().parent.parent

START_TIMEOUT_SECONDS = 60.0
# More than a service's own grace for calls in flight (20 seconds).
STOP_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Ports:
    """Where the services listen on loopback."""

    ledger: int = 50051
    metering: int = 50052
    ledger_metrics: int = 9051
    metering_metrics: int = 9052

    def with_free(self) -> Ports:
        """The same, with each 0 replaced by a port that is free now.

        The number is chosen here and not by the service, which has to come back to it after a restart.
        """
        with ExitStack() as open_sockets:
            # All are held until all are chosen: a port given back at once could be given out twice.
            def free() -> int:
                probe = open_sockets.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                return int(probe.getsockname()[1])

            return Ports(
                ledger=self.ledger or free(),
                metering=self.metering or free(),
                ledger_metrics=self.ledger_metrics or free(),
                metering_metrics=self.metering_metrics or free(),
            )

    def check_free(self, *services: ServiceName) -> None:
        """Make sure that nobody else listens where these services will.

        Else the answers of the other would be taken for theirs.

        Raises:
            SandboxError: names the port, and the option that chooses another.
        """
        flags: dict[int, str] = {}
        for name in (each for service in services for each in (service, f"{service}_metrics")):
            port, flag = getattr(self, name), _flag(name)
            if port in flags:
                raise SandboxError(f"{flags[port]} and {flag} are both {port}")
            flags[port] = flag
            with socket.socket() as probe:
                # As the services do: connections of an earlier one that are still closing do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except (OSError, OverflowError) as error:
                    taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
                    why = "another process listens there" if taken else str(error)
                    raise SandboxError(
                        f"cannot listen on port {port}: {why}; choose another with {flag} (0 for a free one)"
                    ) from None


FREE_PORTS = Ports(0, 0, 0, 0)


@dataclass(frozen=True)
class Endpoints:
    """`host:port` of everything that listens, and the URLs of the stores."""

    ledger: str
    metering: str
    ledger_metrics: str
    metering_metrics: str
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)


@dataclass(frozen=True)
class KeyFile:
    """An API key in a file of mode 0600."""

    role: str
    path: Path

    def read(self) -> str:
        """The key itself. Never log it."""
        return self.path.read_text().strip()


class Stack:
    """Ledger and metering over the given stores; keys in `directory`/secrets, logs in `directory`/logs.

    `environment` adds settings of the services, such as {"METERING_LOG_LEVEL": "debug"}; `checkout` is the
    folder that holds the package `services`.
    """

    def __init__(
        self,
        directory: Path,
        stores: Stores,
        *,
        ports: Ports = FREE_PORTS,
        environment: Mapping[str, str] | None = None,
        checkout: Path = ROOT,
    ) -> None:
        self._ports = ports = ports.with_free()
        self._checkout = checkout
        self.directory = directory.resolve()
        self.endpoints = Endpoints(
            ledger=f"127.0.0.1:{ports.ledger}",
            metering=f"127.0.0.1:{ports.metering}",
            ledger_metrics=f"127.0.0.1:{ports.ledger_metrics}",
            metering_metrics=f"127.0.0.1:{ports.metering_metrics}",
            database_url=stores.database_url,
            redis_url=stores.redis_url,
        )
        self._secrets = self.directory / "secrets"
        self.operator_key = KeyFile("operator", self._secrets / "operator.key")
        self.metering_key = KeyFile("service", self._secrets / "metering.key")
        # Not an API key: what reservation tokens are signed with.
        self._token_key = self._secrets / "token.key"
        self._stores = stores
        self._environment = {**os.environ, **self._settings(), **(environment or {})}
        self._processes = {name: self._process(name) for name in SERVICES}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Migrate, make the keys at first use, start every service and return when all of them are healthy.

        Raises:
            SandboxError: with the end of the log of what did not start; all that did start is stopped again.
        """
        for process in self._processes.values():
            # What a killed runner left behind may hold a port, and is ours to end.
            process.end_left_over()
        self._ports.check_free(*SERVICES)
        try:
            # A schema each, and safe side by side: what costs time is that each is a Python of its own.
            _at_once([partial(self._command, name, "migrate") for name in SERVICES])
            self._make_keys()
            for process in self._processes.values():
                process.start()
            for name in SERVICES:
                self._wait_until_healthy(name)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop every service: each finishes its calls in flight first."""
        # All of them: a signal that came between two would leave the rest behind.
        with signals_wait():
            for name in reversed(SERVICES):
                self._processes[name].stop(timeout=STOP_TIMEOUT_SECONDS)

    def kill(self, name: ServiceName) -> None:
        """SIGKILL one service, as a crash would. restart() brings it back on the same address."""
        self._processes[name].kill()

    def restart(self, name: ServiceName) -> None:
        """Stop one service if it runs, start it, and return when it is healthy."""
        self._processes[name].stop(timeout=STOP_TIMEOUT_SECONDS)
        self._ports.check_free(name)
        self._processes[name].start()
        try:
            self._wait_until_healthy(name)
        except BaseException:
            self.kill(name)
            raise

    def check(self) -> None:
        """SandboxError when a service or an embedded store is not running, with the end of its log."""
        # Stores first: a service that ends for want of one is not the cause.
        for server in (self._stores.postgres, self._stores.valkey):
            if server is not None:
                server.check()
        for process in self._processes.values():
            process.check()

    def pid(self, name: ServiceName) -> int | None:
        """Process id of a running service."""
        return self._processes[name].pid

    def log_path(self, name: ServiceName) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def _settings(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self.endpoints.database_url,
            "REDIS_URL": self.endpoints.redis_url,
            "LEDGER_LISTEN_ADDRESS": self.endpoints.ledger,
            "LEDGER_METRICS_ADDRESS": self.endpoints.ledger_metrics,
            "METERING_LISTEN_ADDRESS": self.endpoints.metering,
            "METERING_METRICS_ADDRESS": self.endpoints.metering_metrics,
            "METERING_LEDGER_ADDRESS": self.endpoints.ledger,
            "METERING_LEDGER_API_KEY_FILE": str(self.metering_key.path),
            "METERING_TOKEN_KEYS_FILE": str(self._token_key),
        }

    def _process(self, name: ServiceName) -> ChildProcess:
        return ChildProcess(
            name,
            self._argv(name, "serve"),
            log_path=self.log_path(name),
            env=self._environment,
            cwd=self._checkout,
            pid_file=self.log_path(name).with_suffix(".pid"),
        )

    def _argv(self, name: ServiceName, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"services.{name}", *arguments]

    def _command(self, name: ServiceName, *arguments: str) -> None:
        run(self._argv(name, *arguments), env=self._environment, cwd=self._checkout)

    def _wait_until_healthy(self, name: ServiceName) -> None:
        address = getattr(self.endpoints, name)
        self._processes[name].wait_until(lambda: serving(address), timeout=START_TIMEOUT_SECONDS)

    def _make_keys(self) -> None:
        """Keys are rows of the ledger's database: files made for another database are made anew."""
        self._secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._token_key.exists():
            # Renamed into place when complete: tokens that were signed must stay readable.
            new = self._token_key.with_suffix(".new")
            new.touch(mode=0o600)
            new.write_text(secrets.token_urlsafe(48))
            new.rename(self._token_key)
        made_for = self._secrets / "made-for"
        database = database_identity(self.endpoints.database_url)
        keys = (self.operator_key, self.metering_key)
        known = made_for.read_text() if made_for.exists() else None
        if known == database and all(key.path.exists() for key in keys):
            return
        _at_once([partial(self._make_key, key) for key in keys])
        # Written last: a start that was interrupted half way makes both again.
        made_for.write_text(database)

    def _make_key(self, key: KeyFile) -> None:
        key.path.unlink(missing_ok=True)
        self._command("ledger", "create-key", "--role", key.role, "--out", str(key.path))
        key.path.chmod(0o600)


def database_identity(url: str) -> str:
    """The database itself, whatever its URL: one that is dropped and created again is another one."""
    try:
        with psycopg.connect(url, connect_timeout=10) as connection:
            row = connection.execute(
                "SELECT system_identifier, oid FROM pg_control_system(), pg_database"
                " WHERE datname = current_database()"
            ).fetchone()
    except psycopg.Error as error:
        raise SandboxError(f"cannot ask the database which one it is: {error}") from error
    return "" if row is None else f"{row[0]}/{row[1]}"


def _at_once(steps: Sequence[Callable[[], None]]) -> None:
    """Take steps that do not depend on each other side by side; raise the first error when all have ended."""
    with ThreadPoolExecutor(len(steps)) as pool:
        for taken in [pool.submit(step) for step in steps]:
            taken.result()


def first_call(stack: Stack) -> str:
    """A grpcurl line that works as printed, from the current folder."""
    grpcurl = "grpcurl" if shutil.which("grpcurl") else _relative(Path(sys.executable).parent / "grpcurl")
    key = f"$(cat {shlex.quote(_relative(stack.operator_key.path))})"
    return (
        f'{shlex.quote(grpcurl)} -plaintext -H "authorization: Bearer {key}"'
        f" {stack.endpoints.ledger} tallystick.ledger.v1.DirectoryService/ListOrganizations"
    )


def audit_command(stack: Stack) -> str:
    """A line that checks the ledger's balances against its journal, from the top folder of the checkout."""
    database = shlex.quote(stack.endpoints.database_url)
    return f"DATABASE_URL={database} {shlex.quote(_relative(Path(sys.executable)))} -m services.ledger audit"


def _flag(name: str) -> str:
    """The option that sets a field of Ports."""
    return f"--{name.replace('_', '-')}-port"


def _relative(path: Path) -> str:
    """`path` as a person in the current folder would write it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _print_summary(stack: Stack) -> None:
    rows = {
        "ledger (gRPC)": stack.endpoints.ledger,
        "metering (gRPC)": stack.endpoints.metering,
        "ledger metrics": f"http://{stack.endpoints.ledger_metrics}/metrics",
        "metering metrics": f"http://{stack.endpoints.metering_metrics}/metrics",
        "PostgreSQL": stack.endpoints.database_url,
        "Valkey": stack.endpoints.redis_url,
        "operator key": _relative(stack.operator_key.path),
        "metering's key for the ledger": _relative(stack.metering_key.path),
        "logs": _relative(stack.directory / "logs"),
    }
    table = Table("what", "where", title="Tallystick is up")
    for what, where in rows.items():
        table.add_row(what, where)
    # Wide enough for the longest line, so that nothing is cut or folded and all of it can be copied.
    width = 10 + max(map(len, rows)) + max(map(len, rows.values()))
    Console(width=max(width, Console().width)).print(table)
    print(f"A first call:\n\n  {first_call(stack)}\n")
    print(f"An audit of the ledger:\n\n  {audit_command(stack)}\n\nCtrl-C stops everything.", flush=True)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.stack", description=__doc__)
    parser.add_argument("--directory", type=Path, default=ROOT / ".sandbox", help="data, secrets and logs")
    for name, port in vars(Ports()).items():
        parser.add_argument(
            _flag(name), type=int, default=port, dest=name, help=f"0 for a free one (default {port})"
        )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Keep the stack up until Ctrl-C or SIGTERM. Exit status 1 when something did not start, or died."""
    arguments = _arguments(argv)
    ports = Ports(**{name: getattr(arguments, name) for name in vars(Ports())})
    try:
        with (
            signals_end_the_program(),
            stores(arguments.directory) as found,
            Stack(arguments.directory, found, ports=ports) as stack,
        ):
            _print_summary(stack)
            pause = threading.Event()
            while not pause.wait(1.0):
                stack.check()
    except KeyboardInterrupt:
        print("\nstopped")
    except SandboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
