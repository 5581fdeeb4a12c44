"""The runner of the suite, over stand-ins that only migrate, make keys and answer health checks."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from sandbox.process import SandboxError
from sandbox.servers import Stores
from sandbox.stack import FREE_PORTS, Ports, Stack, first_call
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
    signal.signal(signal.SIGTERM, lambda *_: server.stop(None))
    server.start()
    server.wait_for_termination()
"""
ELSEWHERE = Stores("postgresql://elsewhere/db", "redis://elsewhere")


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
