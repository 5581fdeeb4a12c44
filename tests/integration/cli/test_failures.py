"""What goes wrong is one line with the reason and what to do, and an exit status that is not zero."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.kit import errors as server
from tests.integration.cli.conftest import Ran, Run
from tests.integration.cli.world import World

ROOT = Path(__file__).parents[3]
NOWHERE = "127.0.0.1:1"
WRONG_KEY = "tsk_wrong_" + "w" * 43


def only_line(ran: Ran) -> str:
    """What it said, which is one line on standard error, and nothing on standard output."""
    assert ran.status != 0
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    return line


def without_request(line: str) -> str:
    before, _, after = line.partition(", request ")
    return before + after[after.index("]") :] if after else before


COMMANDS: list[tuple[str, ...]] = [
    ("balance",),
    ("usage",),
    ("earnings",),
    ("payouts",),
    ("charge", "show", "ch_1"),
    ("keys", "create", "--role", "host"),
    ("audit",),
    ("audit", "--last"),
    ("journal", "export", "--output", "/dev/null"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_wrong_key_is_refused(run: Run, command: tuple[str, ...]) -> None:
    assert without_request(only_line(run(WRONG_KEY, *command))) == (
        "error: the API key is unknown, revoked or expired [API_KEY_INVALID]; do: use a valid key:"
        " --api-key-file, or TALLYSTICK_API_KEY; operators make one with `keys create`"
    )
    told = json.loads(only_line(run(WRONG_KEY, *command, "--json")))["error"]
    assert (told["code"], told["reason"]) == ("UNAUTHENTICATED", "API_KEY_INVALID")
    assert told["request_id"]
    assert told["advice"].startswith("use a valid key")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_server_that_is_away_is_named(run: Run, command: tuple[str, ...]) -> None:
    away = [option for service in ("ledger", "metering", "reporting") for option in (f"--{service}", NOWHERE)]
    line = only_line(run("owner", *command, *away, "--timeout", "0.3"))
    # The last attempt may have had no time left to hear that nobody is there.
    assert "[UNAVAILABLE, request " in line or "[DEADLINE_EXCEEDED, request " in line
    assert line.endswith("do: see with `tallystick doctor` what is away, then try again")


def test_a_role_that_may_not_is_told_so(run: Run) -> None:
    line = only_line(run("host", "earnings"))
    assert "a key of role host may not call" in line
    assert "do: use a key of a role that may" in line


def test_what_is_not_found_is_told_so(run: Run) -> None:
    line = only_line(run("customer", "charge", "show", "ch_00000000000000000000000000000000"))
    assert "[CHARGE_NOT_FOUND, request " in line
    assert "do: check the id" in line


def test_what_is_malformed_is_named(run: Run, world: World) -> None:
    world.reporting.errors = [server.InvalidArgument.of("period.name", "is not a period")]
    line = only_line(run("owner", "usage", "--period", "yesteryear"))
    assert "period.name" in line
    assert line.count("is not a period") == 1
    assert line.endswith("do: correct what is named")


def test_what_may_pass_is_asked_again(run: Run, world: World) -> None:
    world.reporting.errors = [server.Unavailable("soon")] * 2
    assert run("owner", "usage").status == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("balance", "--customer", "cus_ada", "--organization", "org_lark"), "do: name one of them"),
        (("balance",), "do: name --customer or --organization"),
        (("keys", "create", "--role", "host", "--expires", "tomorrow"), "do: give 12h, 90d, or 2027-01-31"),
        (("balance", "--api-key-file", "/nonexistent/key"), "cannot read the API key"),
        (("balance", "--tls-ca", "/nonexistent/roots.pem"), "cannot read the roots of trust"),
        (("balance", "--tls-ca", "roots.pem", "--insecure"), "choose one"),
        (("balance", "--api-key", "ключ"), "holds characters that no key has"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_misuse_is_one_line(run: Run, argv: tuple[str, ...], said: str) -> None:
    ran = run("operator", *argv)
    assert ran.status == 2
    assert said in only_line(ran)
    told = json.loads(only_line(run("operator", *argv, "--json")))["error"]
    assert told["code"] == "MISUSE"


def test_no_key_at_all_is_told(run: Run) -> None:
    ran = run("", "balance")
    assert ran.status == 2
    assert only_line(ran) == (
        "error: an API key is needed; do: give --api-key-file, or set TALLYSTICK_API_KEY"
        " or TALLYSTICK_API_KEY_FILE"
    )


@pytest.mark.parametrize(
    "argv",
    [("balanse",), ("usage", "--periode", "30d"), ("usage", "--group-by", "colour"), ("charge", "show")],
)
def test_what_no_command_understands_is_misuse(run: Run, argv: tuple[str, ...]) -> None:
    ran = run("operator", *argv)
    assert ran.status == 2
    assert ran.out == ""
    assert ran.err.startswith("Usage: tallystick ")


def test_help_tells_of_every_command(run: Run) -> None:
    shown = run("operator", "--help")
    assert shown.status == 0
    for name in ("balance", "usage", "earnings", "payouts", "charge", "keys", "doctor"):
        assert f"\n  {name} " in shown.out
    assert "TALLYSTICK_REPORTING_ADDRESS" in " ".join(shown.out.split())
    assert "--group-by" in run("operator", "usage", "--help").out


def test_without_the_extra_it_says_how_to_get_it() -> None:
    for missing in ("typer", "rich"):
        program = (
            "import sys\n"
            f"sys.modules[{missing!r}] = None\n"
            "import tallystick\n"  # which needs neither
            "from tallystick.cli import main\n"
            "sys.exit(main(['balance']))\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 1
        assert ran.stderr == "error: the command line is not installed; do: pip install 'tallystick[cli]'\n"


def test_the_client_does_not_import_the_command_line() -> None:
    program = "import sys, tallystick\nsys.exit(bool({'typer', 'rich'} & set(sys.modules)))\n"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_it_runs_as_a_module() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tallystick", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0
    assert ran.stdout.startswith("Usage: tallystick ")
