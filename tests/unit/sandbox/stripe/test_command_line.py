"""The command line: every command, by hand, as the documentation plays it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.stripe.__main__ import main, parser
from sandbox.stripe.control import COMMANDS
from sandbox.stripe.faults import KINDS
from sandbox.stripe.server import StripeStandIn
from sandbox.stripe.signatures import TAMPERINGS
from sandbox.stripe.webhooks import HANDLINGS
from tests.unit.sandbox.stripe.driving import Receiver

ROOT = Path(__file__).resolve().parents[4]
DOCUMENT = (ROOT / "docs" / "stripe-stand-in.md").read_text()
PROGRAM = "python -m sandbox.stripe"
FAILURES = (ROOT / "docs" / "payouts-failures.md").read_text()
FAILURE_BLOCKS = re.findall(r"```sh\n(.*?)```", FAILURES, re.S)
# `tell` is `stripe` without its answer.
FAILURE_COMMANDS = sorted(
    {
        re.sub(r"\$\(.*?\)|\$\w+", "x_1", command)
        for block in FAILURE_BLOCKS[1:]
        for command in re.findall(r"(?:tell|stripe) ((?:\$\(.*?\)|[^;|)\n>])+)", block)
    }
)
BLOCKS = re.findall(r"^### (.+?)\n.*?```sh\n(.*?)```", DOCUMENT, re.S | re.M)


def lines(block: str) -> list[str]:
    return [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def play(block: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a block line by line as a shell would, with `# refused` on lines that must fail."""
    variables = {"URL": url}
    for line in lines(block):
        text, _, comment = line.partition("#")
        text = re.sub(r"\$(\w+)", lambda match: variables[match[1]], text).strip()
        assigned = re.fullmatch(r"(\w+)=\$\((.*)\)", text)
        command = assigned[2] if assigned else text
        assert command.startswith(PROGRAM), line
        status = main(shlex.split(command.removeprefix(PROGRAM)))
        printed = capsys.readouterr()
        assert (status != 0) == ("refused" in comment), f"{line}\n{printed.err}"
        if assigned:
            variables[assigned[1]] = printed.out.strip()


@pytest.mark.parametrize(("title", "block"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_the_documentation_can_be_played(
    standin: StripeStandIn,
    receiver: Receiver,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    title: str,
    block: str,
) -> None:
    monkeypatch.setenv("STRIPE_STAND_IN", standin.url.removeprefix("http://"))
    monkeypatch.setattr("sandbox.stripe.__main__.DEFAULT_KEY", standin.api_key)
    play(block, receiver.url, capsys)


@pytest.mark.parametrize("command", FAILURE_COMMANDS)
def test_the_commands_that_play_a_failure_exist(command: str) -> None:
    parser().parse_args(shlex.split(command))


def test_bash_understands_how_to_play_the_failures() -> None:
    subprocess.run(["/bin/bash", "-n"], input="\n".join(FAILURE_BLOCKS), text=True, check=True)


def test_every_failure_is_documented_and_has_its_test() -> None:
    documented = [int(number) for number in re.findall(r"^### (\d+)\. ", FAILURES, re.M)]
    tests = (ROOT / "tests" / "faults" / "test_payout_faults.py").read_text()
    tested = {int(number) for number in re.findall(r"^async def test_fault_(\d\d)_", tests, re.M)}
    assert documented == sorted(tested) == list(range(1, 31))


def test_the_documentation_names_every_command_and_fault() -> None:
    missing = [
        name
        for name in [
            *(f"{command.group} {command.verb}" for command in COMMANDS.values()),
            *(f"`{kind}`" for kind in (*KINDS, *HANDLINGS, *TAMPERINGS)),
        ]
        if name not in DOCUMENT
    ]
    assert missing == []


def test_every_command_says_what_it_does_and_takes() -> None:
    for command in COMMANDS.values():
        assert command.help
        assert all(parameter.help for parameter in command.parameters), command.path


def test_who_has_read_enough_of_an_answer_is_no_error(standin: StripeStandIn) -> None:
    command = [sys.executable, "-m", "sandbox.stripe", "clock", "get", "--address", standin.url[7:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Nobody reads: what is written to it fails.
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--address", "0.0.0.0:1"],
        ["serve", "--address", "127.0.0.1"],
        ["clock", "get", "--address", "127.0.0.1:1"],
        ["call", "GET", "/v1/balance", "--address", "127.0.0.1:1"],
    ],
)
def test_what_cannot_work_says_why(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "arguments", [["serve", "--webhook", "http://127.0.0.1"], ["call", "GET", "/", "a"], []]
)
def test_what_makes_no_sense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(arguments)
