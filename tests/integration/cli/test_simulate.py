"""`simulate`: tables, data and a page, from a running metering."""

import json
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Run

ROOT = Path(__file__).parents[3]
FLAT = {
    "currency_code": "USD",
    "prices": [
        {
            "name": "run",
            "components": [
                {"name": "start", "base_fee": {"price": {"amount": "0.01"}}},
                {
                    "name": "won",
                    "outcome_bonus": {"outcome": "OUTCOME_SUCCESS", "price": {"amount": "0.5"}},
                },
            ],
        }
    ],
    "plans": [{"name": "team", "fee": {"amount": "20"}, "seat_fee": {"amount": "1.50"}}],
}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    file = tmp_path / "flat.json"
    file.write_text(json.dumps(FLAT))
    return file


def test_books_are_compared_on_the_same_runs(run: Run, book: Path) -> None:
    options = ("--runs", "1000", "--success", "62.5", "--seed", "3", "--model", "gpt-4o")
    ran = run("owner", "simulate", f"a={book}", f"b={book}", "--plan", "b=team:2", *options, "--json")
    one, other = ran.data["books"]
    assert (one["label"], other["label"]) == ("a", "b")
    won = next(each["run_count"] for each in ran.data["workload"]["outcomes"] if each["outcome"] == "success")
    assert 550 < won < 700
    revenue = Decimal("0.01") * 1_000 + Decimal("0.5") * won
    assert one["revenue"] == {"currency": "USD", "amount": f"{revenue:.6f}"}
    # 20 and two seats, of 100 customers.
    assert Decimal(other["revenue"]["amount"]) == revenue + 100 * 23
    again = run("owner", "simulate", f"a={book}", f"b={book}", "--plan", "b=team:2", *options, "--json")
    assert again.data == ran.data


def test_tables_are_for_people(run: Run, book: Path) -> None:
    ran = run(
        "operator", "simulate", str(book), "--runs", "500", "--tokens", "input_tokens=0:5,50:80,100:900"
    )
    assert ran.status == 0, ran.err
    assert "Simulation of 500 runs, input_tokens" in ran.out
    assert re.search(r"flat +255\.000000 +– +– +– +0", ran.out)
    assert "What the models cost is not known of 500 runs: there is no margin." in ran.out


class _Page(HTMLParser):
    """What a page asks for, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "onload", "action")]
        if tag in ("script", "link", "img", "iframe"):
            self.asked.append(tag)
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "rect"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else(run: Run, book: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    label = "<script>alert(1)</script>"
    ran = run(
        "owner",
        "simulate",
        f"{label}={book}",
        f"other={book}",
        "--runs",
        "1000",
        "--model",
        "gpt-4o",
        "--success",
        "50",
        "--html",
        str(file),
    )
    assert ran.status == 0, ran.err
    page = _Page()
    page.feed(file.read_text())
    assert page.open == []
    assert page.asked == []
    assert "url(" not in file.read_text()
    assert label in page.text
    # What the table of the command says, the page does.
    revenue = re.search(r"other +([0-9.,]+)", ran.out)
    assert revenue is not None
    assert revenue[1] in page.text


def test_misuse_is_said(run: Run, book: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"currency_code": "USD", "prises": []}')
    for arguments, said in (
        (("prices.txt",), "is neither a version"),
        ((str(tmp_path / "missing.json"),), "cannot read"),
        ((str(wrong),), "prises"),
        ((str(book), "--tokens", "input_tokens=many"), "must be meter=500"),
        ((str(book), "--plan", "other=team"), "with one of the books"),
        ((str(book), "--success", "lots"), "is not a number"),
        ((str(book), "--start", "yesterday"), "is not a day"),
    ):
        ran = run("owner", "simulate", *arguments)
        assert ran.status == 2, arguments
        assert said in ran.err
    ran = run("customer", "simulate", str(book))
    assert ran.status == 1
    assert "ROLE_NOT_ALLOWED" in ran.err


def test_a_book_is_given_as_the_file_that_would_be_applied(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "flat-fee.yaml"
    file.write_text((ROOT / "examples/prices/flat-fee.yaml").read_text())
    ran = run("owner", "simulate", str(file), "--runs", "100", "--json")
    assert ran.status == 0, ran.err
    (book,) = ran.data["books"]
    assert book["label"] == "flat-fee"
    assert Decimal(book["revenue"]["amount"]) > 0
    file.write_text("currency: USD\nprices: nothing\n")
    ran = run("owner", "simulate", str(file))
    assert ran.status != 0
    assert re.search(r"flat-fee\.yaml:2:\d+: ", ran.err)
