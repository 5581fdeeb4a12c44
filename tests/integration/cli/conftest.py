"""One platform for all tests in here, and the command line as somebody calls it."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest

from tallystick.cli import main
from tallystick.cli.session import SERVICES, address_variable
from tests.conftest import FreshDatabase
from tests.integration.cli.world import World, running_world


@dataclass(frozen=True)
class Ran:
    """What a command printed, and how it ended."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Its answer, in JSON."""
        assert self.status == 0, self.err
        return json.loads(self.out)


Run: TypeAlias = Callable[..., Ran]


@pytest.fixture(scope="package")
def world(fresh_database: FreshDatabase) -> Iterator[World]:
    with fresh_database() as database_url, running_world(database_url) as running:
        yield running


class OwnThread(io.StringIO):
    """What this thread prints. The servers log in another one, to the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return super().write(text) if threading.get_ident() == self._thread else len(text)


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command as somebody, against the platform: `run("owner", "balance", "--json")`."""
    for service in SERVICES:
        monkeypatch.setenv(address_variable(service), world.addresses[service])
    for variable in ("TALLYSTICK_API_KEY_FILE", "TALLYSTICK_TLS_CA_FILE", "TALLYSTICK_INSECURE"):
        monkeypatch.delenv(variable, raising=False)

    def run_command(somebody: str, *argv: str) -> Ran:
        monkeypatch.setenv("TALLYSTICK_API_KEY", world.keys.get(somebody, somebody))
        out, err = OwnThread(), OwnThread()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(argv)
        return Ran(status, out.getvalue(), err.getvalue())

    return run_command
