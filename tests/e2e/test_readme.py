"""The tours of README and of pages in docs/: their commands run as printed, and answer what is printed there.

A block `sh` holds commands; where a block `text` follows at once, it shows what they print, with `…` for what
is left out. Ids that are made anew may differ.
"""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import redis

from sandbox.servers import Stores
from sandbox.stack import Endpoints, Stack
from tests.conftest import FreshDatabase

ROOT = Path(__file__).parents[2]
TOURS = ("README.md", "docs/payouts.md", "docs/tutorial.md")
ENDS = "end-of-answer"
# What is folded a moment later is asked for again.
ATTEMPTS = 50
# For the whole tour, which takes seconds.
DEADLINE_SECONDS = 300.0


@dataclass(frozen=True)
class Step:
    """Commands of the tour, and the lines that the README shows of what they print, if it does."""

    commands: str
    shown: tuple[str, ...] | None


def steps(page: str) -> list[Step]:
    found = re.findall(
        r"^```sh\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?",
        (ROOT / page).read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    return [Step(commands, tuple(shown.splitlines()) if shown else None) for commands, shown in found]


def localized(text: str, endpoints: Endpoints, stack: Stack) -> str:
    """The commands for this stack: a Python environment, ports and secrets of its own."""
    text = text.replace(".venv/bin/grpcurl", str(Path(sys.executable).parent / "grpcurl"))
    text = text.replace(".venv/bin/python", f"STRIPE_STAND_IN={endpoints.stripe} {sys.executable}")
    text = text.replace("Client()", f'Client(metering="{endpoints.metering}")')
    text = text.replace(".sandbox/secrets", str(stack.operator_key.path.parent))
    ports = {
        "50051": endpoints.ledger,
        "50052": endpoints.metering,
        "50053": endpoints.payouts,
        "50054": endpoints.reporting,
    }
    return re.sub(r"\bcall (5005[1234])\b", lambda found: f"call {port(ports[found[1]])}", text)


def port(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


def masked(line: str) -> str:
    """Without what differs each time: times, and ids that the server makes from the time."""
    line = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "T", line.rstrip())
    return re.sub(r'"(txn|pv)_[0-9a-z]+"', r'"\1_"', line)


def answers(printed: list[str], step: Step) -> bool:
    """Whether the lines shown are among those printed, in order, and without gaps but where `…` says so."""
    lines = [masked(line) for line in printed]
    if step.shown is None:
        return "ERROR:" not in lines
    at, gap = 0, False
    for line in map(masked, step.shown):
        if line == "…":
            gap = True
            continue
        where = [index for index in range(at, len(lines)) if lines[index] == line]
        if not where or (not gap and where[0] != at):
            return False
        at, gap = where[0] + 1, False
    return gap or at == len(lines)


class Shell:
    """One bash for the whole tour, since its commands set variables. It ends at the deadline."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["/bin/bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
            cwd=ROOT,
        )
        self._deadline = threading.Timer(DEADLINE_SECONDS, self._bash.kill)
        self._deadline.start()

    def run(self, command: str) -> list[str]:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\nprintf '\\n{ENDS}\\n'\n")
        self._bash.stdin.flush()
        printed: list[str] = []
        for line in self._bash.stdout:
            if line.strip() == ENDS:
                break
            printed.append(line)
        return [line for line in printed if line.strip()]

    def close(self) -> None:
        self._deadline.cancel()
        self._bash.kill()
        self._bash.communicate()


@pytest.fixture(scope="module")
def stack(
    session_stores: Stores, fresh_database: FreshDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """One for all tours, as for who takes one after the other: each has an organization of its own."""
    with redis.Redis.from_url(session_stores.redis_url) as client:
        client.flushdb()
    with fresh_database() as database_url:
        own = replace(session_stores, database_url=database_url)
        with Stack(tmp_path_factory.mktemp("stack"), own) as running:
            yield running


@pytest.mark.parametrize("page", TOURS)
def test_a_tour_goes_as_its_page_shows(stack: Stack, page: str, tmp_path: Path) -> None:
    tour = steps(page)
    assert len(tour) > 5
    endpoints = stack.endpoints
    shell = Shell(
        {
            # Where client and command line look for services, and agents of the tour are written to.
            "TALLYSTICK_LEDGER_ADDRESS": endpoints.ledger,
            "TALLYSTICK_METERING_ADDRESS": endpoints.metering,
            "TALLYSTICK_PAYOUTS_ADDRESS": endpoints.payouts,
            "TALLYSTICK_REPORTING_ADDRESS": endpoints.reporting,
            "TMPDIR": str(tmp_path),
        }
    )
    try:
        for step in tour:
            commands = localized(step.commands, endpoints, stack)
            for _ in range(ATTEMPTS):
                printed = shell.run(commands)
                if answers(printed, step) or "Service/Get" not in commands:
                    break
            assert answers(printed, step), f"{step.commands}\nanswered\n{''.join(printed)}"
    finally:
        shell.close()
