"""`prices …`: a file becomes a published version once, and every mistake is told where it stands."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tallystick.cli.failures import Misuse
from tallystick.cli.session import Session
from tallystick.metering.v1 import price_book_pb2 as pb
from tallystick.metering.v1 import pricing_service_pb2
from tallystick.prices import lines
from tallystick.prices.file import read
from tallystick.prices.text import to_yaml
from tests.integration.cli.conftest import Run

EXAMPLES = Path(__file__).parents[3] / "examples/prices"

# An owner has one book per currency.
_CURRENCIES = iter(["AED", "ARS", "AUD", "BRL", "CAD", "CHF", "CNY", "CZK", "DKK", "EUR", "GBP", "HKD"])
BOOK = """\
book: {book}
organization: org_lark
currency: {currency}
name: Lark

prices:
  - name: ticket
    actions: [ticket.resolve]
    components:
      - name: run
        fee: 0.005
      - name: input
        tokens: input
        price: 0.60 per 1_000_000
      - name: resolved
        bonus: 0.20
        outcome: success
"""


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def book(tmp_path: Path) -> tuple[str, Path]:
    """The id of a book that is not there yet, in a currency of its own, and its file."""
    currency = next(_CURRENCIES)
    name = f"pb_lark_{currency.lower()}"
    file = tmp_path / "book.yaml"
    file.write_text(BOOK.format(book=name, currency=currency))
    return name, file


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def words(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def versions(run: Run, name: str) -> list[int]:
    return [one["version_number"] for one in run("owner", "prices", "list", name, "--json").data["versions"]]


def test_a_file_is_applied_once(run: Run, book: tuple[str, Path]) -> None:
    name, file = book
    first = run("owner", "prices", "apply", str(file), "--yes")
    assert first.status == 0, first.err
    assert "+ prices[ticket].components[input].price 0.60 per 1_000_000" in words(first.out)
    assert f"version 1 of {name}" in words(first.out)

    again = run("owner", "prices", "apply", str(file), "--yes")
    assert (again.status, again.err) == (0, "")
    assert again.out.startswith(f"Nothing to change: version 1 of {name} has applied since 20")
    # Written otherwise, it says the same.
    change(file, "0.20", "0.2")
    change(file, "1_000_000", "1000000")
    assert run("owner", "prices", "apply", str(file), "--json").data["state"] == "unchanged"
    assert versions(run, name) == [1]


def test_a_dry_run_shows_the_difference_and_stores_nothing(run: Run, book: tuple[str, Path]) -> None:
    name, file = book
    shown = run("owner", "prices", "apply", str(file), "--dry-run")
    assert (shown.status, shown.out.splitlines()[-1]) == (0, "Dry run: nothing is stored.")
    listed = run("owner", "prices", "list", "--json").data["price_books"]
    assert name not in [one["price_book_id"] for one in listed]

    assert run("owner", "prices", "apply", str(file), "--yes").status == 0
    change(file, "0.60 per", "0.75 per")
    change(file, "      - name: run\n        fee: 0.005\n", "")
    shown = run("owner", "prices", "apply", str(file), "--dry-run")
    assert {
        f"Changes of {name} after version 1",
        "~ prices[ticket].components[input].price 0.60 per 1_000_000 0.75 per 1_000_000",
        "- prices[ticket].components[run].fee 0.005",
    } <= set(words(shown.out))
    told = run("owner", "prices", "apply", str(file), "--dry-run", "--json").data
    assert (told["state"], told["base_version"], told["difference_count"]) == ("previewed", 1, 2)
    assert versions(run, name) == [1]


def test_it_asks_before_it_publishes(
    run: Run, book: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, file = book
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    unasked = run("owner", "prices", "apply", str(file))
    assert unasked.status == 2
    assert "nobody is here to be asked; do: give --yes" in unasked.err

    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    refused = run("owner", "prices", "apply", str(file))
    assert refused.status == 1
    assert "+ prices[ticket].components[run].fee" in " ".join(refused.out.split())
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    agreed = run("owner", "prices", "apply", str(file))
    assert agreed.status == 0, agreed.err
    assert versions(run, name) == [1]


def test_what_was_interrupted_is_finished_by_applying_again(
    run: Run, book: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, file = book
    call = Session.call

    def interrupted(session: Session, method: Any, request: Any) -> Any:
        if isinstance(request, pricing_service_pb2.PublishPriceVersionRequest):
            raise Misuse("the line is cut")
        return call(session, method, request)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "call", interrupted)
        assert "the line is cut" in run("owner", "prices", "apply", str(file), "--yes").err
    drafted = run("owner", "prices", "list", name, "--json").data["versions"]
    assert [one["state"] for one in drafted] == ["draft"]
    published = run("owner", "prices", "apply", str(file), "--yes", "--json").data["version"]
    assert published["price_version_id"] == drafted[0]["price_version_id"]
    assert versions(run, name) == [1]


def test_a_version_is_announced(run: Run, book: tuple[str, Path]) -> None:
    name, file = book
    assert run("owner", "prices", "apply", str(file), "--yes").status == 0
    change(file, "0.60", "0.70")
    later = ("--effective-time", "90d")
    announced = run("owner", "prices", "apply", str(file), "--yes", *later, "--json").data["version"]
    assert (announced["version_number"], announced["state"]) == (2, "published")
    assert run("owner", "prices", "apply", str(file)).out.startswith(
        f"Nothing to change: version 2 of {name} applies from "
    )
    # What is in force is still the one before.
    assert "0.60 per 1_000_000" in run("owner", "prices", "show", name).out
    assert "0.70 per 1_000_000" in run("owner", "prices", "show", name, "--version", "2").out
    states = [line.split()[1] for line in run("owner", "prices", "list", name).out.splitlines()[3:]]
    assert states == ["published", "in"]
    change(file, "0.70", "0.80")
    early = run("owner", "prices", "apply", str(file), "--dry-run", "--effective-time", "12h")
    assert (early.status, "effective_time: must be after that of the version before" in early.err) == (
        1,
        True,
    )
    wrong = run("owner", "prices", "apply", str(file), "--effective-time", "soon")
    assert (wrong.status, wrong.err) == (
        2,
        "error: --effective-time soon is no time; do: give 12h, 90d, or 2027-01-31\n",
    )


def test_what_is_published_is_recorded_with_its_actor(run: Run, book: tuple[str, Path]) -> None:
    _, file = book
    version = run("owner", "prices", "apply", str(file), "--yes", "--json").data["version"]
    assert version["publisher_api_key_id"].startswith("key_")
    assert version["publisher_api_key_id"] in run("owner", "prices", "list", version["price_book_id"]).out


def test_mistakes_are_told_where_they_stand_and_nothing_is_stored(run: Run, book: tuple[str, Path]) -> None:
    name, file = book
    change(file, "fee: 0.005", "fee: -0.005\n        fees: 1")
    change(file, "outcome: success", "outcome: good")
    told = run("owner", "prices", "apply", str(file), "--yes")
    assert (told.status, told.out) == (1, "")
    assert told.err.splitlines() == [
        f"{file}:11:14: must not be negative",
        f"{file}:12:9: 'fees' is no key of a component; did you mean 'fee'?",
        f"{file}:18:18: must be success, failure or partial",
    ]
    as_json = json.loads(run("owner", "prices", "apply", str(file), "--yes", "--json").err)["error"]
    assert (as_json["code"], as_json["problems"][0]) == (
        "INVALID_FILE",
        {"file": str(file), "line": 11, "column": 14, "reason": "must not be negative"},
    )
    listed = run("operator", "prices", "list", "--json").data["price_books"]
    assert name not in [one["price_book_id"] for one in listed]


def test_what_the_service_refuses_is_told_where_it_stands(run: Run, book: tuple[str, Path]) -> None:
    name, file = book
    change(file, "[ticket.resolve]", '[ticket.resolve, "no action"]')
    told = run("owner", "prices", "apply", str(file), "--yes")
    assert told.status == 1
    assert told.err == f"{file}:8:14: 'no action' is not an action type\n"
    change(file, '[ticket.resolve, "no action"]', "[ticket.resolve]")
    change(file, "currency: ", "currency: XAX # ")
    told = run("owner", "prices", "apply", str(file), "--dry-run")
    assert told.err == f"{file}:3:11: 'XAX' is not an active ISO 4217 currency code\n"
    change(file, "currency: XAX # ", "currency: ")
    change(file, "organization: org_lark", "organization: org_other")
    assert "ORGANIZATION_NOT_FOUND" in run("owner", "prices", "apply", str(file), "--yes").err
    change(file, "organization: org_other", "organization: org_lark")
    assert run("owner", "prices", "apply", str(file), "--yes").status == 0
    change(file, "currency: ", "currency: NOK # ")
    change(file, "name: Lark", "name: Robin")
    told = run("owner", "prices", "apply", str(file), "--yes")
    assert [line.partition(": ")[0] for line in told.err.splitlines()] == [f"{file}:3:11", f"{file}:4:7"]
    assert f"{name} has 'Lark', and that never changes" in told.err


def test_check_asks_nobody(run: Run, book: tuple[str, Path], tmp_path: Path) -> None:
    name, file = book
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("book: pb_x\nprices: []\n")
    good = run("", "prices", "check", str(file))
    assert (good.status, f"✓ {file} {name} 1 0 0" in words(good.out)) == (0, True)
    both = run("", "prices", "check", str(wrong), str(file))
    assert both.status == 1
    assert both.out.splitlines()[-2:] == [
        f"{wrong}:1:1: a price book needs 'currency'",
        f"{wrong}:2:9: needs at least one price",
    ]
    told = json.loads(run("", "prices", "check", str(wrong), str(file), "--json").out)
    assert [one["valid"] for one in told["files"]] == [False, True]
    missing = run("", "prices", "check", str(tmp_path / "none.yaml"))
    assert (missing.status, "cannot read" in missing.err) == (2, True)


def test_what_is_shown_as_yaml_is_applied_as_the_same(run: Run, book: tuple[str, Path]) -> None:
    name, file = book
    assert run("owner", "prices", "apply", str(file), "--yes").status == 0
    exported = run("owner", "prices", "show", name, "--yaml")
    assert exported.status == 0
    file.write_text(exported.out)
    assert run("owner", "prices", "apply", str(file), "--json").data["state"] == "unchanged"
    # The names of messages are not those of files, but what they say is the same.
    told = run("owner", "prices", "show", name, "--json").data
    assert told["prices"][0]["components"][0] == {"name": "run", "fee": "0.005"}


def test_versions_and_files_are_compared(run: Run, book: tuple[str, Path]) -> None:
    name, file = book
    assert run("owner", "prices", "apply", str(file), "--yes").status == 0
    change(file, "0.60", "0.90")
    found = run("owner", "prices", "diff", name, str(file))
    assert "~ prices[ticket].components[input].price 0.60 per 1_000_000 0.90 per 1_000_000" in words(
        found.out
    )
    assert run("owner", "prices", "apply", str(file), "--yes").status == 0
    told = run("owner", "prices", "diff", f"{name}@1", f"{name}@2", "--json").data
    assert [one["before"] for one in told["differences"]] == ["0.60 per 1_000_000"]
    assert run("owner", "prices", "diff", str(file), name).out == f"{file} and {name} say the same.\n"
    for wrong, why in (
        (f"{name}@7", "has no version 7"),
        (f"{name}@x", "is no version"),
        ("pb_none", "does not exist"),
    ):
        assert why in run("owner", "prices", "diff", name, wrong).err


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_service_takes_every_example_as_it_stands(run: Run, tmp_path: Path, file: Path) -> None:
    told = run("owner", "prices", "apply", str(file), "--dry-run", "--json").data
    assert (told["state"], told["price_book_id"]) == ("previewed", read(file).price_book_id)
    paths = [one["path"] for one in told["differences"]]
    assert paths == list(lines(read(file).document))


def test_all_that_a_file_can_say_is_stored_and_shown_again(run: Run, book: tuple[str, Path]) -> None:
    name, file = book
    version = pb.PriceVersion()
    for example in sorted(EXAMPLES.glob("*.yaml")):
        said = read(example)
        for price in said.prices:
            price.name = f"{example.stem}-{price.name}"
        version.prices.extend(said.prices)
        version.plans.extend(said.plans)
        # Compute units are the same in all.
        version.meters.extend(one for one in said.meters if one not in version.meters)
    currency = file.read_text().splitlines()[2].removeprefix("currency: ")
    owner = pb.PriceBook(
        price_book_id=name, organization_id="org_lark", currency_code=currency, display_name="Lark"
    )
    file.write_text(to_yaml(owner, version))
    applied = run("owner", "prices", "apply", str(file), "--yes")
    assert applied.status == 0, applied.err
    assert run("owner", "prices", "show", name, "--yaml").out == file.read_text()
    assert run("owner", "prices", "apply", str(file), "--json").data["state"] == "unchanged"
