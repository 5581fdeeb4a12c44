"""`audit`, `journal export`, and what `doctor` says of the books."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from services.ledger.store.audit import CHECKS
from tests.integration.cli.conftest import Run
from tests.integration.cli.world import World

NAMES = [check.name for check in CHECKS]


@contextmanager
def changed(world: World, *statements: str) -> Iterator[psycopg.Connection]:
    """What somebody with the whole machine does, and undoes."""
    with psycopg.connect(world.ledger.database_url, autocommit=True) as superuser:
        superuser.execute("SET session_replication_role = replica")
        for statement in statements:
            superuser.execute(statement.encode())
        yield superuser


def test_an_audit_of_sound_books(run: Run) -> None:
    shown = run("operator", "audit")
    assert shown.status == 0, shown.err
    assert shown.out.rstrip().endswith("The books are sound.")
    assert shown.err == ""
    told = run("operator", "audit", "--json").data
    assert told["sound"] is True
    assert [one["name"] for one in told["checks"]] == NAMES
    last = run("operator", "audit", "--last", "--json").data
    assert last == told


def test_differences_end_it_with_one(run: Run, world: World) -> None:
    raise_ = (
        "UPDATE ledger.account SET credits = credits + {}"
        " WHERE kind = 'platform_fees' AND owner_id = 'org_lark'"
    )
    with changed(world, raise_.format(1)) as superuser:
        ran = run("operator", "audit", "--json")
        shown = run("operator", "audit")
        last = run("operator", "audit", "--last")
        doctor = run("operator", "doctor", "--json")
        superuser.execute(raise_.format(-1).encode())
    assert ran.status == shown.status == last.status == 1
    found = {one["name"]: one for one in json.loads(ran.out)["checks"] if one["difference_count"]}
    assert list(found) == ["accounts_match_entries"]
    (difference,) = found["accounts_match_entries"]["differences"]
    assert json.loads(difference)["owner_id"] == "org_lark"
    assert "✗   accounts_match_entries" in shown.out
    assert "accounts_match_entries breaks that the credits and debits" in shown.out
    assert f"1 of {len(NAMES)} checks found differences." in shown.out
    (books,) = [one for one in json.loads(doctor.out)["findings"] if one["about"] == "books"]
    assert books["state"] == "problem"
    assert books["found"].endswith("accounts_match_entries")
    assert "tallystick audit --last" in books["advice"]
    assert run("operator", "audit").status == 0


def test_books_that_were_audited_long_ago_are_found(run: Run, world: World) -> None:
    run("operator", "audit")
    older = "UPDATE ledger.audit_run SET snapshot_time = snapshot_time {0}, end_time = end_time {0}"
    with changed(world, older.format("- interval '3 days'")) as superuser:
        told = run("operator", "doctor", "--json")
        superuser.execute(older.format("+ interval '3 days'").encode())
    (books,) = [one for one in json.loads(told.out)["findings"] if one["about"] == "books"]
    assert books["state"] == "problem"
    assert books["found"].endswith(f"that is {timedelta(days=3).days} days ago")
    assert told.status == 1


def test_books_that_were_never_audited_are_found(run: Run, world: World) -> None:
    with changed(
        world, "CREATE TEMP TABLE kept AS TABLE ledger.audit_run", "DELETE FROM ledger.audit_run"
    ) as superuser:
        told = run("operator", "doctor", "--json")
        last = run("operator", "audit", "--last")
        superuser.execute("INSERT INTO ledger.audit_run SELECT * FROM kept")
    (books,) = [one for one in json.loads(told.out)["findings"] if one["about"] == "books"]
    assert (books["state"], books["found"]) == ("problem", "were never audited")
    assert "never audited" in last.out


@pytest.mark.parametrize("somebody", ["owner", "customer", "host"])
def test_only_operators_audit_and_export(run: Run, somebody: str, tmp_path: Path) -> None:
    file = tmp_path / "books"
    for command in (
        ("audit",),
        ("audit", "--last"),
        ("journal", "export", "--output", str(file)),
    ):
        ran = run(somebody, *command)
        assert ran.status == 1
        assert "ROLE_NOT_ALLOWED" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["hledger", "beancount"])
def test_the_journal_is_written_whole(run: Run, format: str, tmp_path: Path) -> None:
    file = tmp_path / "books"
    told = run("operator", "journal", "export", "--format", format, "-o", str(file), "--json").data
    assert told["until"] > 0
    text = file.read_text()
    assert text.count(" * ") == told["until"]
    assert "Liabilities:Organizations:Org-lark:OrganizationPayable" in text
    assert [one.name for one in tmp_path.iterdir()] == ["books"]
    part = run(
        "operator",
        "journal",
        "export",
        "--format",
        format,
        "-o",
        str(file),
        "--until",
        "1",
        "--log",
        told["log_id"],
    )
    assert part.status == 0, part.err
    assert file.read_text().count(" * ") == 1


def test_a_refused_export_leaves_the_file_that_was_there(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "books"
    file.write_text("the last one")
    ran = run("operator", "journal", "export", "-o", str(file), "--after", "1", "--log", "log_of_another")
    assert ran.status == 1
    assert "log_id" in ran.err
    assert file.read_text() == "the last one"
    assert [one.name for one in tmp_path.iterdir()] == ["books"]
    missing = run("operator", "journal", "export", "-o", str(tmp_path / "no" / "books"))
    assert missing.status == 2
    assert "cannot write" in missing.err
