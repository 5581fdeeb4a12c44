"""The runner of the suite, over stand-ins that only migrate, make keys and answer health checks."""

from __future__ import annotations

import json
import os
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

from sandbox.ports import FREE_PORTS, Ports
from sandbox.process import SandboxError, signals_end_the_program
from sandbox.servers import Stores
from sandbox.stack import (
    ROOT,
    SERVICES,
    Stack,
    _print_summary,
    address_exports,
    audit_command,
    crash_command,
    database_identity,
    failures_command,
    first_call,
)
from sandbox.stand_in import StandIn
from sandbox.stripe.client import StripeControl
from sandbox.stripe.server import DEFAULT_KEY
from scripts.grpc_health import serving
from tallystick.cli.session import DEFAULT_ADDRESSES, address_variable

STAND_IN = """
import json, os, signal, sys
from concurrent.futures import ThreadPoolExecutor

name = __spec__.parent.rpartition(".")[2]
command, arguments = sys.argv[1], sys.argv[2:]
with open("calls", "a") as calls:
    print(name, *sys.argv[1:], file=calls)

if os.environ.get("FAIL") == f"{name} {command}":
    sys.exit(f"{name} cannot {command}")
if command == "serve":
    with open(name + ".environment", "w") as environment:
        json.dump(dict(os.environ), environment)
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
KEYS = """
import os, pathlib, sys

with open("calls", "a") as calls:
    print("keys", *sys.argv[1:], file=calls)
for argument in sys.argv[1:]:
    role, _, path = argument.partition("=")
    out = pathlib.Path(path)
    out.touch(mode=0o600, exist_ok=False)
    out.write_text("key of " + role + "\\n")
    if os.environ.get("FAIL") == "keys " + out.name:
        sys.exit("cannot make the key " + out.name)
"""
# What stands in for the stand-in for Stripe: it answers its control API, and records what it is told.
STRIPE = """
import http.server, json, os, sys

with open("calls", "a") as calls:
    print("stripe", sys.argv[1], file=calls)
if os.environ.get("FAIL") == "stripe serve":
    sys.exit("stripe cannot serve")


class Control(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"pid": os.getpid()}).encode())

    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with open("told", "a") as file:
            print(self.path, json.dumps(told), file=file)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")


host, _, port = sys.argv[sys.argv.index("--address") + 1].partition(":")
http.server.HTTPServer((host, int(port)), Control).serve_forever()
"""
ELSEWHERE = Stores("postgresql://elsewhere/db", "redis://elsewhere")


@pytest.fixture(autouse=True)
def database_is_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no database behind the URLs here."""
    monkeypatch.setattr("sandbox.stack.database_identity", lambda url: url)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder whose packages hold the stand-ins; they record their calls in the file `calls`."""
    for name in SERVICES:
        package = tmp_path / "services" / name
        package.mkdir(parents=True)
        (package / "__main__.py").write_text(STAND_IN)
    stripe = tmp_path / "sandbox" / "stripe"
    stripe.mkdir(parents=True)
    (stripe / "__main__.py").write_text(STRIPE)
    (tmp_path / "sandbox" / "keys.py").write_text(KEYS)
    return tmp_path


def calls(checkout: Path) -> list[str]:
    return (checkout / "calls").read_text().splitlines()


def environment(checkout: Path, service: str) -> dict[str, str]:
    """What a service was started with."""
    found: dict[str, str] = json.loads((checkout / f"{service}.environment").read_text())
    return found


def told(checkout: Path, command: str) -> list[dict[str, object]]:
    """What the stand-in for Stripe was told by a command such as "webhooks/add"."""
    lines = [line.split(" ", 1) for line in (checkout / "told").read_text().splitlines()]
    return [json.loads(body) for path, body in lines if path == f"/_control/{command}"]


def test_start_migrates_then_makes_keys_then_serves(checkout: Path) -> None:
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        addresses = [getattr(stack.endpoints, name) for name in SERVICES]
        assert all(map(serving, addresses))
        stack.check()
        secrets = checkout / "state" / "secrets"
        keys = [
            f"{role}={secrets / name}.key"
            for role, name in (
                ("operator", "operator"),
                *(("service", caller) for caller in ("metering", "payouts", "reporting")),
            )
        ]
        made = calls(checkout)
        # The stand-in for Stripe is there before payouts, whatever else happens meanwhile.
        assert made.index("stripe serve") < made.index("payouts serve")
        made.remove("stripe serve")
        # Services side by side, in any order.
        count = len(SERVICES)
        assert [set(made[:count]), made[count], set(made[count + 1 :])] == [
            {f"{name} migrate" for name in SERVICES},
            " ".join(["keys", *keys]),
            {f"{name} serve" for name in SERVICES},
        ]
    assert not any(map(serving, addresses))


def test_only_the_services_asked_for_are_started(checkout: Path) -> None:
    with Stack(checkout / "state", ELSEWHERE, services=("metering", "ledger"), checkout=checkout) as stack:
        assert serving(stack.endpoints.metering)
        assert stack.endpoints.stripe is None
        assert "METERING_PAYOUTS_ADDRESS" not in environment(checkout, "metering")
    assert not [call for call in calls(checkout) if call.startswith(("payouts", "stripe"))]


def test_payouts_and_the_stand_in_for_stripe_are_told_of_each_other(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYOUTS_WEBHOOK_SECRETS", "whsec_of_somebody_else")
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        endpoints, secrets = stack.endpoints, stack.directory / "secrets"
        settings = environment(checkout, "payouts")
        signing = (secrets / "webhook.secrets").read_text()
        wanted = {
            "STRIPE_API_KEY": DEFAULT_KEY,
            "PAYOUTS_STRIPE_BASE_URL": f"http://{endpoints.stripe}",
            "PAYOUTS_CLOCK_URL": f"http://{endpoints.stripe}/_control/clock/get",
            "PAYOUTS_WEBHOOK_SECRETS_FILE": str(secrets / "webhook.secrets"),
            # Not both.
            "PAYOUTS_WEBHOOK_SECRETS": "",
            "PAYOUTS_LEDGER_ADDRESS": endpoints.ledger,
            "PAYOUTS_LEDGER_API_KEY_FILE": str(stack.payouts_key.path),
            "PAYOUTS_WEB_ADDRESS": endpoints.payouts_web,
            "PAYOUTS_PUBLIC_URL": f"http://{endpoints.payouts_web}",
        }
        assert {name: settings[name] for name in wanted} == wanted
        # Metering asks payouts for auto-recharge.
        assert environment(checkout, "metering")["METERING_PAYOUTS_ADDRESS"] == endpoints.payouts
        key_file = environment(checkout, "metering")["METERING_PAYOUTS_API_KEY_FILE"]
        assert Path(key_file) == stack.metering_key.path
        url = f"http://{endpoints.payouts_web}/webhooks/stripe"
        platform, connect = signing.split(",")
        assert platform != connect
        assert told(checkout, "webhooks/add") == [
            {"url": url, "secret": platform, "connect": False},
            {"url": url, "secret": connect, "connect": True},
        ]
        assert failures_command(stack).startswith(f"STRIPE_STAND_IN={endpoints.stripe} ")
    # The next one signs with the same.
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout):
        assert (secrets / "webhook.secrets").read_text() == signing


def test_with_a_key_of_stripes_there_is_no_stand_in(checkout: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "webhook-secrets"
    secrets.write_text("whsec_of_stripe")
    real = {"STRIPE_API_KEY": "rk_test_of_stripe", "PAYOUTS_WEBHOOK_SECRETS_FILE": str(secrets)}
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout, environment=real) as stack:
        assert stack.endpoints.stripe is None
        assert serving(stack.endpoints.payouts)
        settings = environment(checkout, "payouts")
    assert "stripe serve" not in calls(checkout)
    assert {name: settings[name] for name in real} == real
    assert not {"PAYOUTS_STRIPE_BASE_URL", "PAYOUTS_CLOCK_URL"} & settings.keys()


@pytest.mark.parametrize(
    ("real", "problem"),
    [
        ({"STRIPE_API_KEY": "sk_test_x"}, "PAYOUTS_WEBHOOK_SECRETS must be set too"),
        ({"STRIPE_API_KEY": "sk_live_x", "PAYOUTS_WEBHOOK_SECRETS": "whsec_x"}, "is a live key"),
        ({"STRIPE_API_KEY_FILE": "/nowhere/key"}, "cannot read /nowhere/key"),
    ],
)
def test_a_key_of_stripes_that_cannot_serve_is_refused(
    checkout: Path, real: dict[str, str], problem: str
) -> None:
    with pytest.raises(SandboxError, match=problem):
        Stack(checkout / "state", ELSEWHERE, checkout=checkout, environment=real)


def test_each_stand_in_for_stripe_gives_other_ids(tmp_path: Path) -> None:
    """An account of an earlier start must not come back as that of somebody else."""
    ids: list[str] = []
    for _ in range(2):
        port = FREE_PORTS.with_free().stripe
        stand_in = StandIn(port, log_path=tmp_path / "stripe.log", env=os.environ, cwd=ROOT)
        stand_in.process.start()
        try:
            stand_in.wait_until_ready("http://127.0.0.1:1/webhooks/stripe", "whsec_a,whsec_b")
            endpoints = StripeControl(f"http://{stand_in.address}").run("webhooks list")["endpoints"]
        finally:
            stand_in.process.stop()
        assert [(endpoint["secrets"], endpoint["connect"]) for endpoint in endpoints] == [
            (["whsec_a"], False),
            (["whsec_b"], True),
        ]
        ids += [endpoint["id"] for endpoint in endpoints]
    assert len(set(ids)) == 4


def test_reporting_is_told_of_those_that_it_reads(checkout: Path) -> None:
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        endpoints, settings = stack.endpoints, environment(checkout, "reporting")
        wanted = {
            "REPORTING_LEDGER_ADDRESS": endpoints.ledger,
            "REPORTING_METERING_ADDRESS": endpoints.metering,
            "REPORTING_PAYOUTS_ADDRESS": endpoints.payouts,
            "REPORTING_SERVICE_API_KEY_FILE": str(stack.reporting_key.path),
        }
        assert {name: settings[name] for name in wanted} == wanted


def test_keys_are_for_their_owner_only(checkout: Path) -> None:
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        assert stack.operator_key.read() == "key of operator"
        assert stack.metering_key.read() == "key of service"
        assert stack.payouts_key.read() == "key of service"
        assert stack.reporting_key.read() == "key of service"
        for path, mode in (
            (stack.operator_key.path.parent, 0o700),
            (stack.operator_key.path, 0o600),
            (stack.metering_key.path, 0o600),
            (stack.payouts_key.path, 0o600),
            (stack.reporting_key.path, 0o600),
            (stack.directory / "secrets" / "token.key", 0o600),
            (stack.directory / "secrets" / "webhook.secrets", 0o600),
        ):
            assert stat.S_IMODE(path.stat().st_mode) == mode


def test_keys_are_made_once_per_database(checkout: Path) -> None:
    other = Stores("postgresql://elsewhere/other", "redis://elsewhere")
    made, used = [], []
    for database in (ELSEWHERE, ELSEWHERE, other):
        with Stack(checkout / "state", database, checkout=checkout) as stack:
            made.append(sum(call.startswith("keys") for call in calls(checkout)))
            used.append(stack.used_before)
    assert made == [1, 1, 2]
    assert used == [False, True, False]


def test_a_key_that_is_missing_is_made_and_the_others_stay(checkout: Path) -> None:
    """As in the folder of a version that had no payouts."""
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        pass
    stack.payouts_key.path.unlink()
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        assert stack.payouts_key.read() == "key of service"
    made = [call for call in calls(checkout) if call.startswith("keys")]
    assert made[1:] == [f"keys service={stack.payouts_key.path}"]


def test_keys_that_were_not_all_made_are_all_made_anew(checkout: Path) -> None:
    failing = Stack(
        checkout / "state", ELSEWHERE, checkout=checkout, environment={"FAIL": "keys metering.key"}
    )
    with pytest.raises(SandboxError, match=r"cannot make the key metering\.key"):
        failing.start()
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout):
        made = [call.split()[1:] for call in calls(checkout) if call.startswith("keys")]
    assert [len(keys) for keys in made] == [4, 4]


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
    assert [len(call.split()) - 1 for call in calls(checkout) if call.startswith("keys")] == [4, 4]


def test_an_unreachable_database_has_no_identity(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="cannot ask the database"):
        database_identity(f"postgresql:///db?host={tmp_path}")


@pytest.mark.parametrize("field", list(vars(Ports())))
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
        ports.with_free().check_free(*SERVICES, "stripe")


def test_further_signals_while_stopping_leave_no_service_behind(checkout: Path) -> None:
    stack = Stack(checkout / "state", ELSEWHERE, checkout=checkout, environment={"IMPATIENT": "yes"})
    with pytest.raises(SystemExit), signals_end_the_program(), stack:
        signal.raise_signal(signal.SIGTERM)
    assert [stack.pid(name) for name in SERVICES] == [None] * len(SERVICES)


def test_a_signal_that_comes_first_while_stopping_takes_effect_when_all_have_stopped(checkout: Path) -> None:
    stack = Stack(checkout / "state", ELSEWHERE, checkout=checkout, environment={"IMPATIENT": "yes"})
    stack.start()
    with pytest.raises((KeyboardInterrupt, SystemExit)), signals_end_the_program():
        stack.stop()
    assert [stack.pid(name) for name in SERVICES] == [None] * len(SERVICES)


def test_a_stand_in_for_stripe_that_died_is_named(checkout: Path) -> None:
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        assert stack._stand_in is not None
        stack._stand_in.process.kill()
        with pytest.raises(SandboxError, match=r"the stand-in for Stripe is not running; .*stripe\.log"):
            stack.check()


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


@pytest.mark.parametrize("name", ["metering", "payouts", "reporting"])
def test_a_killed_service_is_noticed_and_comes_back_at_its_address(
    checkout: Path, name: Literal["metering", "payouts", "reporting"]
) -> None:
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        address, pid = getattr(stack.endpoints, name), stack.pid(name)
        stack.kill(name)
        assert not serving(address)
        with pytest.raises(SandboxError, match=f"{name} is not running"):
            stack.check()
        stack.restart(name)
        assert serving(address)
        assert stack.pid(name) not in (None, pid)
        stack.check()


def test_what_somebody_kills_is_started_again_and_what_ends_by_itself_is_not(checkout: Path) -> None:
    with Stack(checkout / "state", ELSEWHERE, checkout=checkout) as stack:
        assert stack.start_killed() == []
        line = subprocess.check_output(["/bin/sh", "-c", f"{crash_command(stack, 'payouts')}; echo done"])
        assert line == b"done\n"
        killed = stack._processes["payouts"]
        assert killed.wait(10) == -signal.SIGKILL
        assert stack.start_killed() == ["payouts"]
        assert serving(stack.endpoints.payouts)
        stack.check()
        pid = stack.pid("metering")
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        assert stack._processes["metering"].wait(10) is not None
        assert stack.start_killed() == []
        with pytest.raises(SandboxError, match="metering is not running"):
            stack.check()


@pytest.mark.parametrize(
    "failing",
    [
        *(f"{name} {command}" for name in SERVICES for command in ("migrate", "serve")),
        "stripe serve",
    ],
)
def test_what_fails_to_start_is_named_and_nothing_is_left_running(checkout: Path, failing: str) -> None:
    name, _, command = failing.partition(" ")
    stack = Stack(checkout / "state", ELSEWHERE, checkout=checkout, environment={"FAIL": failing})
    with pytest.raises(SandboxError, match=f"{name} cannot {command}"):
        stack.start()
    assert [stack.pid(name) for name in SERVICES] == [None] * len(SERVICES)
    assert stack._stand_in is not None
    assert not stack._stand_in.process.running


def test_free_ports_are_distinct_and_given_ones_stay() -> None:
    ports = replace(FREE_PORTS, ledger=50051).with_free()
    assert ports.ledger == 50051
    assert len(set(vars(ports).values())) == len(vars(Ports()))
    assert 0 not in vars(ports).values()
    assert 0 not in vars(FREE_PORTS.with_free()).values()


def test_other_ports_are_told_to_the_command_line_in_lines_that_a_shell_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = replace(Ports(), metering=0, reporting=0).with_free()
    stack = Stack(tmp_path, ELSEWHERE, ports=ports)
    exports = address_exports(stack)
    shown = "; ".join(f"echo ${address_variable(service)}" for service in SERVICES)
    output = subprocess.check_output(["/bin/sh", "-c", f"{exports}\n{shown}"], text=True, env={})
    assert output.splitlines() == ["", stack.endpoints.metering, "", stack.endpoints.reporting]
    _print_summary(stack)
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in printed if line.startswith("export ")] == exports.splitlines()


def test_the_usual_ports_are_those_that_the_command_line_asks_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = Stack(tmp_path, ELSEWHERE, ports=Ports())
    assert address_exports(stack) == ""
    assert {name: getattr(stack.endpoints, name) for name in SERVICES} == DEFAULT_ADDRESSES
    _print_summary(stack)
    assert "export " not in capsys.readouterr().out


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
