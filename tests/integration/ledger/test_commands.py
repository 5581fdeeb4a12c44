"""The commands of both services: exit statuses, and what they say with the database away."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
import structlog

from services.ledger import __main__ as ledger
from services.metering import __main__ as metering

Main = Callable[[Sequence[str]], int]


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, events = root.handlers[:], root.level, structlog.get_config()
    yield
    structlog.configure(**events)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A directory without a server's socket.
    monkeypatch.setenv("DATABASE_URL", f"postgresql://bob:s3cret@/x?host={tmp_path}")


@pytest.mark.usefixtures("away")
@pytest.mark.parametrize(
    ("main", "argv", "status"),
    [
        (ledger.main, ["audit"], 2),
        (ledger.main, ["migrate"], 1),
        (metering.main, ["migrate"], 1),
    ],
)
def test_with_the_database_away_one_line_says_so(
    main: Main, argv: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == status
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("error: connection ")
    assert "s3cret" not in line


@pytest.mark.usefixtures("away")
def test_without_a_database_no_key_is_made(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        ledger.main(["create-key", "--role", "operator", "--out", str(tmp_path / "key")])

    # Text, which Python writes to standard error, ending with status 1.
    said = str(ended.value.code)
    assert said.startswith("error: connection ")
    assert "\n" not in said
    assert "s3cret" not in said
    assert not (tmp_path / "key").exists()


def test_the_audit_of_sound_books(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)

    assert ledger.main(["audit"]) == 0
    assert capsys.readouterr().out.endswith("the ledger is sound\n")


def test_a_database_without_the_ledger_cannot_be_audited(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)

    with pytest.raises(SystemExit) as ended:
        ledger.main(["audit"])

    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_defect_of_the_audit_is_no_difference(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(_url: str) -> int:
        raise KeyError("a defect")

    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setattr("services.ledger.audit.audit", broken)

    assert ledger.main(["audit"]) == 2
    assert json.loads(capsys.readouterr().err)["event"] == "audit.failed"


def test_migrate_logs_json_on_standard_error(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)

    assert metering.main(["migrate"]) == 0

    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["schema.migrated"]
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT to_regnamespace('metering') IS NOT NULL").fetchone() == (True,)


@pytest.mark.parametrize("main", [ledger.main, metering.main])
def test_help_is_an_answer_and_an_unknown_command_is_not(
    main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        out, err = capsys.readouterr()
        assert out.startswith("usage: python -m services.")
        assert err == ""

    assert main(["dance"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: unknown command dance\n")
    assert "COMMAND" in err
