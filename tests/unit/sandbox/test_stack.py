"""The runner of the suite, over stand-ins that only migrate, make keys and answer health checks."""

from __future__ import annotations

import shlex
import signal
import socket
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from sandbox.process import SandboxError, signals_end_the_program
from sandbox.servers import Stores
from sandbox.stack import FREE_PORTS, SERVICES, Ports, Stack, audit_command, database_identity, first_call
from scripts.grpc_health import serving

STAND_IN = """
import os, pathlib, signal, sys
from concurrent.futures import ThreadPoolExecutor

name = __spec__.parent.rpartition(".")[2]
command, arguments = sys.argv[1], sys.argv[2:]
with open("calls", "a") as calls:
    print(name, *sys.argv[1:], file=calls)

if os.environ.get("FAIL") == f"{name} {command}":
    sys.exit(f"{name} cannot {command}")
if command == "create-key":
    out = pathlib.Path(arguments[arguments.index("--out") + 1])
    out.touch(mode=0o600, exist_ok=False)
    out.write_text("key of " + arguments[arguments.index("--role") + 1] + "\\n")
if command == "serve":
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(os.environ[name.upper() + "_LISTEN_ADDRESS"])

    def leave(*_):
        if "IMPATIENT" in os.environ:
            os.kill(os.getppid(), signal.SIGINT)
            os.kill(os.getppid(), signal.SIGTERM)
        server.stop(None)

    signal.signal(signal.SIGTERM, leave)
    server.start()
    server.wait_for_termination()
"""
ELSEWHERE = Stores("postgresql://elsewhere/db", "redis://elsewhere")


@pytest.fixture(autouse=True)
def database_is_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no database behind the URLs here."""
    monkeypatch.setattr("sandbox.stack.database_identity", lambda url: url)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder whose package `services` holds the stand-ins; they record their calls in the file `calls`."""
    for name in ("ledger", "metering"):
        package = tmp_path / "services" / name
        package.mkdir(parents=True)
        (package / "__main__.py").write_text(STAND_IN)
    return tmp_path


def calls(checkout: Path) -> list[str]:
    return (checkout / "calls").read_text().splitlines()


def test_start_migrates_then_makes_keys_then_serves(checkout: Path) -> None:
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        assert serving(stack.endpoints.ledger)
        assert serving(stack.endpoints.metering)
        stack.check()
        secrets = checkout / "state" / "secrets"
        made = calls(checkout)
        # Two at a time, in either order.
        assert [set(made[:2]), set(made[2:4]), set(made[4:])] == [
            {"ledger migrate", "metering migrate"},
            {
                f"ledger create-key --role operator --out {secrets / 'operator.key'}",
                f"ledger create-key --role service --out {secrets / 'metering.key'}",
            },
            {"ledger serve", "metering serve"},
        ]
    assert not serving(stack.endpoints.ledger)
    assert not serving(stack.endpoints.metering)


def test_keys_are_for_their_owner_only(checkout: Path) -> None:
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        assert stack.operator_key.read() == "key of operator"
        assert stack.metering_key.read() == "key of service"
        for path, mode in (
            (stack.operator_key.path.parent, 0o700),
            (stack.operator_key.path, 0o600),
            (stack.metering_key.path, 0o600),
        ):
            assert stat.S_IMODE(path.stat().st_mode) == mode


def test_keys_are_made_once_per_database(checkout: Path) -> None:
    other = Stores("postgresql://elsewhere/other", "redis://elsewhere")
    made = []
    for database in (ELSEWHERE, ELSEWHERE, other):
        with Stack(checkout / "state", database, checkout=checkout):
            made.append(sum("create-key" in call for call in calls(checkout)))
    assert made == [2, 2, 4]


def test_a_database_that_is_made_again_is_another_one(
    empty_database_url: str, session_stores: Stores
) -> None:
    name = str(conninfo_to_dict(empty_database_url)["dbname"])
    first = database_identity(empty_database_url)
    assert database_identity(empty_database_url) == first
    with psycopg.connect(session_stores.database_url, autocommit=True) as connection:
        for command in ("DROP", "CREATE"):
            connection.execute(sql.SQL(f"{command} DATABASE {{}}").format(sql.Identifier(name)))
    assert database_identity(empty_database_url) != first


def test_keys_for_an_older_database_at_the_same_url_are_made_anew(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for identity in ("1/5", "1/6"):
        monkeypatch.setattr("sandbox.stack.database_identity", lambda _, it=identity: it)
        with Stack(checkout / "state", ELSEWHERE, checkout=checkout):
            pass
    roles = [call.split()[3] for call in calls(checkout) if "create-key" in call]
    assert sorted(roles) == ["operator", "operator", "service", "service"]


def test_an_unreachable_database_has_no_identity(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="cannot ask the database"):
        database_identity(f"postgresql:///db?host={tmp_path}")


@pytest.mark.parametrize("field", ["ledger", "metering", "ledger_metrics", "metering_metrics"])
def test_a_port_that_another_process_holds_is_refused_before_anything_starts(
    checkout: Path, field: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = replace(FREE_PORTS, **{field: port})
        stack = Stack(checkout / "state", ELSEWHERE, ports=ports, checkout=checkout)
        flag = f"--{field.replace('_', '-')}-port"
        with pytest.raises(SandboxError, match=rf"port {port}: another process listens there.*{flag}"):
            stack.start()
    assert not (checkout / "calls").exists()


def test_a_port_that_was_taken_meanwhile_is_refused_at_a_restart(checkout: Path) -> None:
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        stack.kill("metering")
        host, _, port = stack.endpoints.metering.partition(":")
        with (
            socket.create_server((host, int(port))),
            pytest.raises(SandboxError, match=f"port {port}: another process"),
        ):
            stack.restart("metering")
        assert stack.pid("metering") is None


@pytest.mark.parametrize(
    ("ports", "problem"),
    [
        (replace(FREE_PORTS, ledger=70_000), "port 70000.*--ledger-port"),
        (replace(FREE_PORTS, ledger=1234, metering=1234), "--ledger-port and --metering-port are both 1234"),
    ],
)
def test_ports_that_cannot_be_are_refused(ports: Ports, problem: str) -> None:
    with pytest.raises(SandboxError, match=problem):
        ports.with_free().check_free(*SERVICES)


def test_further_signals_while_stopping_leave_no_service_behind(checkout: Path) -> None:
    stack = Stack(checkout / "state", ELSEWHERE, checkout=checkout, environment={"IMPATIENT": "yes"})
    with pytest.raises(SystemExit), signals_end_the_program(), stack:
        signal.raise_signal(signal.SIGTERM)
    assert [stack.pid(name) for name in SERVICES] == [None, None]


def test_a_signal_that_comes_first_while_stopping_takes_effect_when_all_have_stopped(checkout: Path) -> None:
    stack = Stack(checkout / "state", ELSEWHERE, checkout=checkout, environment={"IMPATIENT": "yes"})
    stack.start()
    with pytest.raises((KeyboardInterrupt, SystemExit)), signals_end_the_program():
        stack.stop()
    assert [stack.pid(name) for name in SERVICES] == [None, None]


@pytest.mark.parametrize("name", ["PostgreSQL", "Valkey"])
def test_a_killed_store_is_named_with_the_end_of_its_log(
    checkout: Path, own_stores: Stores, name: Literal["PostgreSQL", "Valkey"]
) -> None:
    server = own_stores.postgres if name == "PostgreSQL" else own_stores.valkey
    assert server is not None
    with Stack(checkout / "state", own_stores, checkout=checkout) as stack:
        stack.check()
        server.kill()
        # The services suffer from it too, and are not what went wrong.
        stack.kill("metering")
        with pytest.raises(
            SandboxError, match=rf"(?s){name} is not running; the end of \S+\.log:.*[Rr]eady to accept"
        ):
            stack.check()


def test_the_printed_audit_is_one_shell_line_that_names_the_database(checkout: Path) -> None:
    database = "postgresql://elsewhere/db?host=/a b"
    stack = Stack(checkout / "state", replace(ELSEWHERE, database_url=database), checkout=checkout)
    setting, *command = shlex.split(audit_command(stack))
    assert setting == f"DATABASE_URL={database}"
    assert command[1:] == ["-m", "services.ledger", "audit"]


def test_a_killed_service_is_noticed_and_comes_back_at_its_address(checkout: Path) -> None:
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        address, pid = stack.endpoints.metering, stack.pid("metering")
        stack.kill("metering")
        assert not serving(address)
        with pytest.raises(SandboxError, match="metering is not running"):
            stack.check()
        stack.restart("metering")
        assert serving(address)
        assert stack.pid("metering") not in (None, pid)
        stack.check()


@pytest.mark.parametrize(
    "failing", ["ledger migrate", "metering migrate", "ledger create-key", "ledger serve", "metering serve"]
)
def test_what_fails_to_start_is_named_and_nothing_is_left_running(checkout: Path, failing: str) -> None:
    name, _, command = failing.partition(" ")
    stack = Stack(checkout / "state", ELSEWHERE, checkout=checkout, environment={"FAIL": failing})
    with pytest.raises(SandboxError, match=f"{name} cannot {command}"):
        stack.start()
    assert stack.pid("ledger") is None
    assert stack.pid("metering") is None


def test_free_ports_are_distinct_and_given_ones_stay() -> None:
    ports = Ports(ledger=50051, metering=0, ledger_metrics=0, metering_metrics=0).with_free()
    assert ports.ledger == 50051
    assert len(set(vars(ports).values())) == 4
    assert 0 not in vars(ports).values()
    assert 0 not in vars(FREE_PORTS.with_free()).values()


def test_the_printed_call_is_one_shell_line_that_sends_the_key(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stack(checkout / "state of mine", ELSEWHERE, checkout=checkout) as stack:
        monkeypatch.chdir(checkout)
        # Stands in for grpcurl on PATH, and prints what it was given.
        program = checkout / "bin" / "grpcurl"
        program.parent.mkdir()
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")
        output = subprocess.check_output(["/bin/sh", "-c", first_call(stack)], text=True)
    assert output.splitlines() == [
        "-plaintext",
        "-H",
        "authorization: Bearer key of operator",
        stack.endpoints.ledger,
        "tallystick.ledger.v1.DirectoryService/ListOrganizations",
    ]
