"""docs/pricing.md tells the truth: its commands are run from an empty directory, and its files are read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick.cli.session import address_variable
from tests.conftest import FreshDatabase
from tests.integration.cli.test_docs_cli import words
from tests.integration.cli.world import World, running_world

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/pricing.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
EXAMPLES = ROOT / "examples/prices"


@pytest.fixture(scope="module")
def world(fresh_database: FreshDatabase) -> Iterator[World]:
    """One of its own: what is charged here shows in balances."""
    with fresh_database() as database_url, running_world(database_url) as running:
        yield running


class Reader:
    """Somebody who does what the page says, in an empty directory."""

    def __init__(self, folder: Path, world: World) -> None:
        self._folder = folder
        self._metering = world.addresses["metering"]
        self._exports: list[str] = []
        tools = folder / "bin"
        tools.mkdir()
        for name, command in (("tallystick", f"{sys.executable} -m tallystick"), ("python", sys.executable)):
            (tools / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (tools / name).chmod(0o755)
        for who in ("owner", "host"):
            (folder / f"{who}.key").write_text(world.keys[who])
        (folder / "condition.yaml").write_text((EXAMPLES / "condition.yaml").read_text())
        self._environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            **{address_variable(service): address for service, address in world.addresses.items()},
        }

    def write(self, text: str) -> None:
        """A file of the page, whose first line names it."""
        name, _, content = text.partition("\n")
        # The client of a host is told where metering is.
        content = content.replace("Client()", f'Client(metering="{self._metering}")')
        (self._folder / name.removeprefix("# ")).write_text(content if "py" in name else text)

    def run(self, commands: str) -> tuple[str, int]:
        """What commands print, on both streams, and how the last of them ends."""
        self._exports += [line for line in commands.splitlines() if line.startswith("export ")]
        done = subprocess.run(
            ["/bin/sh", "-c", "\n".join([*self._exports, commands])],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout, done.returncode


def shown_lines(text: str) -> list[str]:
    """Without what differs from time to time, and what is left out before."""
    return [line for line in words(re.sub(r"^…\n", "", text)) if line]


def test_the_commands_of_the_page_print_what_it_says(world: World, tmp_path: Path) -> None:
    reader = Reader(tmp_path, world)
    following = [*BLOCKS[1:], ("", "")]
    commands = 0
    for (language, text), (next_language, shown) in zip(BLOCKS, following, strict=True):
        if language == "python" or text.startswith("# book.yaml"):
            reader.write(text)
        if language != "sh":
            continue
        printed, status = reader.run(text)
        commands += 1
        if next_language != "text":
            assert (status, "error" in printed) == (0, False), f"{text}\n{printed}"
            continue
        wanted, found = shown_lines(shown), shown_lines(printed)
        assert found[-len(wanted) :] == wanted, f"{text}\n{printed}"
        assert shown.startswith("…\n") or len(found) == len(wanted), printed
    assert commands >= 10


PARTS = [text for language, text in BLOCKS if language == "yaml" and text.startswith("# examples/")]


@pytest.mark.parametrize("part", PARTS, ids=[part.partition("\n")[0] for part in PARTS])
def test_what_the_page_shows_of_an_example_stands_there(part: str) -> None:
    name, _, content = part.partition("\n")
    wanted = textwrap.dedent(content).splitlines()
    lines = (ROOT / name.removeprefix("# ")).read_text().splitlines()
    # Comments are for the reader of the file.
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    windows = (lines[at : at + len(wanted)] for at in range(len(lines)))
    assert any(textwrap.dedent("\n".join(window)).splitlines() == wanted for window in windows)


def test_every_file_of_the_page_is_executed_or_quoted() -> None:
    files = [text for language, text in BLOCKS if language == "yaml"]
    assert {text.partition("\n")[0] for text in files if text not in PARTS} == {"# book.yaml"}
    assert {language for language, _ in BLOCKS} == {"sh", "text", "yaml", "python"}


def test_every_key_is_in_the_reference() -> None:
    reference = PAGE[PAGE.index("## Every key") :]
    source = "".join((ROOT / f"tallystick/prices/{name}.py").read_text() for name in ("file", "document"))
    keys = {
        key for call in re.findall(r"\.known\(([^)]*)\)", source) for key in re.findall(r'"(\w+)"', call)
    } | set(re.findall(r'"(\w+)"', source[source.index("_PRICE_KEYS") : source.index("_KINDS")]))
    assert len(keys) > 30
    assert {key for key in keys if f"`{key}`" not in reference} == set()
