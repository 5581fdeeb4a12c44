"""What failed beside others is run again; what is broken, or was cut short, stays a failure."""

import json
import sys
from pathlib import Path

import pytest

from scripts import retest

FLAKY = """
from pathlib import Path

def test_that_fails_once():
    flag = Path("flag")
    seen = flag.exists()
    flag.touch()
    assert seen
"""
BROKEN = "def test_that_is_broken(): assert False"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _ran(exit_status: int, *failed: str) -> None:
    for key, value in (
        ("cache/lastfailed", dict.fromkeys(failed, True)),
        ("tallystick/exit_status", exit_status),
    ):
        path = Path(".pytest_cache/v") / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


def test_what_passes_alone_passes() -> None:
    Path("test_it.py").write_text(FLAKY)
    Path("flag").touch()
    _ran(1, "test_it.py::test_that_fails_once")
    assert retest.main() == 0


def test_what_fails_alone_fails() -> None:
    Path("test_it.py").write_text(BROKEN)
    _ran(1, "test_it.py::test_that_is_broken")
    assert retest.main() == 1


@pytest.mark.parametrize(
    ("exit_status", "failed"),
    [
        pytest.param(2, ["test_it.py::test_that_fails_once"], id="interrupted"),
        pytest.param(1, [f"test_it.py::test_{number}" for number in range(4)], id="too many"),
        pytest.param(1, ["test_it.py"], id="not collected"),
        pytest.param(1, [], id="nothing known"),
    ],
)
def test_a_run_that_says_little_is_not_made_good(
    exit_status: int, failed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    _ran(exit_status, *failed)
    assert retest.main() == 1


def test_without_a_run_there_is_nothing_to_make_good() -> None:
    assert retest.main() == 1
