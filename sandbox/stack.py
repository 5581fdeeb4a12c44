"""The suite as processes on one machine: `python -m sandbox.stack`, and `Stack` for demo and e2e tests."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import grpc
import psycopg
from rich.console import Console
from rich.table import Table

from sandbox.ports import FREE_PORTS, Ports, flag_of
from sandbox.process import ChildProcess, SandboxError, run, signals_end_the_program, signals_wait
from sandbox.servers import Stores, stores
from sandbox.stand_in import StandIn, stripe_itself
from scripts.grpc_health import serving
from tallystick.seal.notes import SignerKey

ServiceName = Literal["ledger", "metering", "payouts", "reporting"]
# Callees first. They stop in the opposite order, so that nobody calls a service that has left.
SERVICES: tuple[ServiceName, ...] = ("ledger", "metering", "payouts", "reporting")
# Calls that only a caller who is known gets an answer to, by who asks the ledger who that is.
_FIRST_CALLS: Mapping[ServiceName, str] = {
    "metering": "/tallystick.metering.v1.PricingService/ListPriceBooks",
    "payouts": "/tallystick.payouts.v1.PayoutService/ListPayouts",
    "reporting": "/tallystick.reporting.v1.ProjectionService/ListProjections",
}
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
ROOT = Path(__file__).resolve().parent.parent

START_TIMEOUT_SECONDS = 60.0
# More than a service's own grace for calls in flight (20 seconds).
STOP_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Endpoints:
    """`host:port` of everything that listens, and the URLs of the stores."""

    ledger: str
    metering: str
    payouts: str
    reporting: str
    ledger_metrics: str
    metering_metrics: str
    payouts_metrics: str
    reporting_metrics: str
    payouts_web: str
    reporting_web: str
    # The stand-in for Stripe. None where payouts calls Stripe itself.
    stripe: str | None
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
    """The services over the given stores; keys in `directory`/secrets, logs in `directory`/logs.

    With payouts comes the stand-in for Stripe, unless STRIPE_API_KEY is set. `services` are those to run, if
    not all; `environment` adds settings of them, such as {"METERING_LOG_LEVEL": "debug"}; `checkout` is the
    folder that holds the packages `services` and `sandbox`.

    Raises:
        SandboxError: STRIPE_API_KEY is a live key, or set without PAYOUTS_WEBHOOK_SECRETS.
    """

    def __init__(
        self,
        directory: Path,
        stores: Stores,
        *,
        services: Sequence[ServiceName] = SERVICES,
        ports: Ports = FREE_PORTS,
        environment: Mapping[str, str] | None = None,
        checkout: Path = ROOT,
    ) -> None:
        self._ports = ports = ports.with_free()
        self._checkout = checkout
        self._services = tuple(name for name in SERVICES if name in services)
        self.directory = directory.resolve()
        given = {**os.environ, **(environment or {})}
        self._stand_in: StandIn | None = None
        if "payouts" in self._services and not stripe_itself(given):
            self._stand_in = StandIn(ports.stripe, log_path=self._log("stripe"), env=given, cwd=checkout)
        self.endpoints = Endpoints(
            ledger=f"127.0.0.1:{ports.ledger}",
            metering=f"127.0.0.1:{ports.metering}",
            payouts=f"127.0.0.1:{ports.payouts}",
            reporting=f"127.0.0.1:{ports.reporting}",
            ledger_metrics=f"127.0.0.1:{ports.ledger_metrics}",
            metering_metrics=f"127.0.0.1:{ports.metering_metrics}",
            payouts_metrics=f"127.0.0.1:{ports.payouts_metrics}",
            reporting_metrics=f"127.0.0.1:{ports.reporting_metrics}",
            payouts_web=f"127.0.0.1:{ports.payouts_web}",
            reporting_web=f"127.0.0.1:{ports.reporting_web}",
            stripe=self._stand_in.address if self._stand_in else None,
            database_url=stores.database_url,
            redis_url=stores.redis_url,
        )
        self._secrets = self.directory / "secrets"
        self.operator_key = KeyFile("operator", self._secrets / "operator.key")
        self.metering_key = KeyFile("service", self._secrets / "metering.key")
        self.payouts_key = KeyFile("service", self._secrets / "payouts.key")
        self.reporting_key = KeyFile("service", self._secrets / "reporting.key")
        # Not API keys: what reservation tokens are signed with, what the stand-in signs webhooks with, and
        # what sessions of the dashboard are sealed with.
        self._token_key = self._secrets / "token.key"
        self._webhook_secrets = self._secrets / "webhook.secrets"
        self._session_secret = self._secrets / "session.secret"
        # What checkpoints of the journal are signed with, and what others check them with.
        self._seal_key = self._secrets / "seal.key"
        self.seal_verifier_key = self._secrets / "seal.vkey"
        # The newest checkpoint, which tells a restored backup: not a secret, and no part of the database.
        self.checkpoint = self.directory / "checkpoint.txt"
        # Whether the database is that of an earlier start. Known once this one has its keys.
        self.used_before = False
        self._stores = stores
        self._environment = {**os.environ, **self._settings(), **(environment or {})}
        self._processes = {name: self._process(name) for name in self._services}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Migrate, make the keys at first use, start everything and return when all of it is healthy.

        Raises:
            SandboxError: with the end of the log of what did not start; all that did start is stopped again.
        """
        for process in reversed(self._everything()):
            # What a killed runner left behind may hold a port, and is ours to end: callers first, as ever.
            process.end_left_over()
        self._ports.check_free(*self._services, *(("stripe",) if self._stand_in else ()))
        try:
            if self._stand_in:
                # It needs nothing of ours, and has until payouts starts to be ready.
                self._stand_in.process.start()
            # A schema each, and safe side by side: what costs time is that each is a Python of its own.
            _at_once([partial(self._command, name, "migrate") for name in self._services])
            self._make_secrets()
            self._make_keys()
            if self._stand_in:
                # Before payouts, which asks it for the time as it starts.
                self._stand_in.wait_until_ready(self._webhook_url, self._webhook_secrets.read_text())
            for process in self._processes.values():
                process.start()
            for name in self._services:
                self._wait_until_healthy(name)
            for name in self._services:
                if name in _FIRST_CALLS:
                    self._wait_until_it_knows_its_callers(name)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop every service: each finishes its calls in flight first. The stand-in for Stripe comes last."""
        # All of them: a signal that came between two would leave the rest behind.
        with signals_wait():
            for process in reversed(self._everything()):
                process.stop(timeout=STOP_TIMEOUT_SECONDS)

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

    def start_killed(self) -> list[ServiceName]:
        """Start the services again that somebody ended with SIGKILL, as what runs them elsewhere would; which
        those are. One that ended by itself stays as it is, for check() to tell.
        """
        killed = [name for name, process in self._processes.items() if process.killed]
        for name in killed:
            self.restart(name)
        return killed

    def check(self) -> None:
        """SandboxError when a service, the stand-in for Stripe or an embedded store is not running, with the
        end of its log.
        """
        # Stores first: a service that ends for want of one is not the cause.
        for server in (self._stores.postgres, self._stores.valkey):
            if server is not None:
                server.check()
        for process in self._everything():
            process.check()

    def pid(self, name: ServiceName) -> int | None:
        """Process id of a running service."""
        return self._processes[name].pid

    def log_path(self, name: ServiceName) -> Path:
        return self._log(name)

    def pid_path(self, name: ServiceName) -> Path:
        """A file whose first line is the process id."""
        return self._log(name).with_suffix(".pid")

    def _log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def _everything(self) -> list[ChildProcess]:
        """Every process, those that are called before those that call them."""
        return [*([self._stand_in.process] if self._stand_in else ()), *self._processes.values()]

    @property
    def _webhook_url(self) -> str:
        return f"http://{self.endpoints.payouts_web}/webhooks/stripe"

    def _settings(self) -> dict[str, str]:
        settings = {
            "DATABASE_URL": self.endpoints.database_url,
            "REDIS_URL": self.endpoints.redis_url,
            "LEDGER_LISTEN_ADDRESS": self.endpoints.ledger,
            "LEDGER_METRICS_ADDRESS": self.endpoints.ledger_metrics,
            # One person is at this machine: nobody else could approve.
            "LEDGER_ADJUSTMENT_APPROVAL": os.environ.get("LEDGER_ADJUSTMENT_APPROVAL", "none"),
            "LEDGER_SEAL_KEY": "",
            "LEDGER_SEAL_KEY_FILE": str(self._seal_key),
            "LEDGER_CHECKPOINT_FILE": str(self.checkpoint),
            "METERING_LISTEN_ADDRESS": self.endpoints.metering,
            "METERING_METRICS_ADDRESS": self.endpoints.metering_metrics,
            "METERING_LEDGER_ADDRESS": self.endpoints.ledger,
            "METERING_LEDGER_API_KEY_FILE": str(self.metering_key.path),
            "METERING_TOKEN_KEYS_FILE": str(self._token_key),
            "PAYOUTS_LISTEN_ADDRESS": self.endpoints.payouts,
            "PAYOUTS_METRICS_ADDRESS": self.endpoints.payouts_metrics,
            "PAYOUTS_WEB_ADDRESS": self.endpoints.payouts_web,
            "PAYOUTS_PUBLIC_URL": f"http://{self.endpoints.payouts_web}",
            "PAYOUTS_LEDGER_ADDRESS": self.endpoints.ledger,
            "PAYOUTS_LEDGER_API_KEY_FILE": str(self.payouts_key.path),
            "REPORTING_LISTEN_ADDRESS": self.endpoints.reporting,
            "REPORTING_METRICS_ADDRESS": self.endpoints.reporting_metrics,
            "REPORTING_WEB_ADDRESS": self.endpoints.reporting_web,
            "REPORTING_PUBLIC_URL": f"http://{self.endpoints.reporting_web}",
            "REPORTING_SESSION_SECRETS": "",
            "REPORTING_SESSION_SECRETS_FILE": str(self._session_secret),
            "REPORTING_LEDGER_ADDRESS": self.endpoints.ledger,
            "REPORTING_METERING_ADDRESS": self.endpoints.metering,
            "REPORTING_PAYOUTS_ADDRESS": self.endpoints.payouts,
            "REPORTING_SERVICE_API_KEY_FILE": str(self.reporting_key.path),
        }
        if "payouts" in self._services:
            # Metering asks it for auto-recharge. Every service takes a key of role service.
            settings |= {
                "METERING_PAYOUTS_ADDRESS": self.endpoints.payouts,
                "METERING_PAYOUTS_API_KEY": "",
                "METERING_PAYOUTS_API_KEY_FILE": str(self.metering_key.path),
            }
        if self._stand_in:
            settings |= self._stand_in.settings()
            # Empty is as good as unset, and a secret is not taken from two places.
            settings |= {
                "PAYOUTS_WEBHOOK_SECRETS": "",
                "PAYOUTS_WEBHOOK_SECRETS_FILE": str(self._webhook_secrets),
            }
        return settings

    def _process(self, name: ServiceName) -> ChildProcess:
        return ChildProcess(
            name,
            self._argv(name, "serve"),
            log_path=self.log_path(name),
            env=self._environment,
            cwd=self._checkout,
            pid_file=self.pid_path(name),
        )

    def _argv(self, name: ServiceName, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"services.{name}", *arguments]

    def _command(self, name: ServiceName, *arguments: str) -> None:
        run(self._argv(name, *arguments), env=self._environment, cwd=self._checkout)

    def _wait_until_healthy(self, name: ServiceName) -> None:
        address = getattr(self.endpoints, name)
        self._processes[name].wait_until(lambda: serving(address), timeout=START_TIMEOUT_SECONDS)

    def _wait_until_it_knows_its_callers(self, name: ServiceName) -> None:
        """It was started beside the ledger, which knows all keys: until it has found it, it refuses all."""
        metadata = (("authorization", f"Bearer {self.operator_key.read()}"),)

        def known() -> bool:
            with grpc.insecure_channel(getattr(self.endpoints, name)) as channel:
                call: Any = channel.unary_unary(_FIRST_CALLS[name])
                try:
                    call(b"", timeout=1.0, metadata=metadata)
                except grpc.RpcError as error:
                    return error.code() not in _AWAY
            return True

        self._processes[name].wait_until(known, timeout=START_TIMEOUT_SECONDS)

    def _make_secrets(self) -> None:
        """What no database knows of: made once, and kept."""
        self._secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_secret(self._token_key, secrets.token_urlsafe(48))
        _make_secret(self._session_secret, secrets.token_urlsafe(48))
        if not self._seal_key.exists():
            seal_key = SignerKey.generate("tallystick.sandbox")
            _make_secret(self._seal_key, seal_key.secret)
            self.seal_verifier_key.write_text(f"{seal_key.verifier}\n")
        # The platform's, and that of connected accounts.
        _make_secret(self._webhook_secrets, ",".join(f"whsec_{secrets.token_urlsafe(24)}" for _ in range(2)))

    def _make_keys(self) -> None:
        """Keys are rows of the ledger's database: files made for another database are made anew."""
        made_for = self._secrets / "made-for"
        database = database_identity(self.endpoints.database_url)
        self.used_before = made_for.exists() and made_for.read_text() == database
        keys = (self.operator_key, self.metering_key, self.payouts_key, self.reporting_key)
        missing = [key for key in keys if not (self.used_before and key.path.exists())]
        if not missing:
            return
        # Gone until all are made: what a start that was interrupted half way leaves behind is made again.
        made_for.unlink(missing_ok=True)
        if not self.used_before:
            # Of another database, which this one is no backup of.
            self.checkpoint.unlink(missing_ok=True)
        for key in missing:
            key.path.unlink(missing_ok=True)
        arguments = [f"{key.role}={key.path}" for key in missing]
        run(
            [sys.executable, "-m", "sandbox.keys", *arguments],
            env=self._environment,
            cwd=self._checkout,
        )
        made_for.write_text(database)


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


def _make_secret(path: Path, text: str) -> None:
    """A file of mode 0600 that is there whole or not at all; one that exists stays as it is."""
    if path.exists():
        return
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.rename(path)


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


def address_exports(stack: Stack) -> str:
    """Lines that tell `tallystick` where the services are; none for those where it looks by itself."""
    usual = Ports()
    return "\n".join(
        f"export TALLYSTICK_{name.upper()}_ADDRESS={getattr(stack.endpoints, name)}"
        for name in SERVICES
        if getattr(stack.endpoints, name) != f"127.0.0.1:{getattr(usual, name)}"
    )


def audit_command(stack: Stack) -> str:
    """A line that checks the ledger's balances against its journal, from the top folder of the checkout."""
    database = shlex.quote(stack.endpoints.database_url)
    return f"DATABASE_URL={database} {shlex.quote(_relative(Path(sys.executable)))} -m services.ledger audit"


def failures_command(stack: Stack) -> str:
    """A line that lists the failures that the stand-in for Stripe can be told to play."""
    python = shlex.quote(_relative(Path(sys.executable)))
    return f"STRIPE_STAND_IN={stack.endpoints.stripe} {python} -m sandbox.stripe faults kinds"


def doctor_command(stack: Stack) -> str:
    """A line that checks every service, from the top folder of the checkout."""
    key = shlex.quote(_relative(stack.operator_key.path))
    return (
        f"TALLYSTICK_API_KEY_FILE={key} {shlex.quote(_relative(Path(sys.executable)))} -m tallystick doctor"
    )


def crash_command(stack: Stack, name: ServiceName) -> str:
    """A line that ends a service as a crash would."""
    return f"kill -9 $(head -1 {shlex.quote(_relative(stack.pid_path(name)))})"


def _relative(path: Path) -> str:
    """`path` as a person in the current folder would write it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _print_summary(stack: Stack) -> None:
    rows = {
        "ledger (gRPC)": stack.endpoints.ledger,
        "metering (gRPC)": stack.endpoints.metering,
        "payouts (gRPC)": stack.endpoints.payouts,
        "reporting (gRPC)": stack.endpoints.reporting,
        "dashboard": f"http://{stack.endpoints.reporting_web}",
        "payouts web": f"http://{stack.endpoints.payouts_web}",
        "ledger metrics": f"http://{stack.endpoints.ledger_metrics}/metrics",
        "metering metrics": f"http://{stack.endpoints.metering_metrics}/metrics",
        "payouts metrics": f"http://{stack.endpoints.payouts_metrics}/metrics",
        "reporting metrics": f"http://{stack.endpoints.reporting_metrics}/metrics",
        "Stripe": f"http://{stack.endpoints.stripe}, a stand-in" if stack.endpoints.stripe else "itself",
        "PostgreSQL": stack.endpoints.database_url,
        "Valkey": stack.endpoints.redis_url,
        "key that checks proofs": _relative(stack.seal_verifier_key),
        "operator key": _relative(stack.operator_key.path),
        "metering's key for the ledger": _relative(stack.metering_key.path),
        "payouts' key for the ledger": _relative(stack.payouts_key.path),
        "reporting's key for the others": _relative(stack.reporting_key.path),
        "logs": _relative(stack.directory / "logs"),
    }
    table = Table("what", "where", title="Tallystick is up")
    for what, where in rows.items():
        table.add_row(what, where)
    # Wide enough for the longest line, so that nothing is cut or folded and all of it can be copied.
    width = 10 + max(map(len, rows)) + max(map(len, rows.values()))
    Console(width=max(width, Console().width)).print(table)
    if exports := address_exports(stack):
        lines = exports.replace("\n", "\n  ")
        print(f"Not the usual ports: so that `tallystick`, and the doctor below, find them:\n\n  {lines}\n")
    print(f"A first call:\n\n  {first_call(stack)}\n")
    print(f"The same figures in a browser: http://{stack.endpoints.reporting_web}, with the operator key.\n")
    print(f"Whether all is well:\n\n  {doctor_command(stack)}\n")
    print(f"An audit of the ledger:\n\n  {audit_command(stack)}\n")
    print(f"A crash of a service, which is started again then:\n\n  {crash_command(stack, 'payouts')}\n")
    if stack.endpoints.stripe:
        print(
            f"Failures of Stripe to play, as docs/payouts-failures.md tells:\n\n  {failures_command(stack)}\n"
        )
        if stack.used_before:
            print(
                "This stand-in is a new one: it does not know the connected accounts and transfers of an"
                " earlier start,\nand its clock tells the time of this machine.\n"
            )
    print("Ctrl-C stops everything.", flush=True)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.stack", description=__doc__)
    parser.add_argument("--directory", type=Path, default=ROOT / ".sandbox", help="data, secrets and logs")
    for name, port in vars(Ports()).items():
        parser.add_argument(
            flag_of(name), type=int, default=port, dest=name, help=f"0 for a free one (default {port})"
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
                # Another one may be killed while one starts.
                while back := stack.start_killed():
                    print(f"killed, and started again: {', '.join(back)}", flush=True)
                stack.check()
    except KeyboardInterrupt:
        print("\nstopped")
    except SandboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
