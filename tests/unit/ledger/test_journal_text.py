"""The journal as text: every account has a name, and the page tells it."""

from pathlib import Path

import pytest

from services.ledger.domain.accounts import AccountKind
from services.ledger.domain.journal_text import account_name

PAGE = (Path(__file__).parents[3] / "docs/journal-export.md").read_text()


@pytest.mark.parametrize("kind", AccountKind)
def test_the_page_names_every_account(kind: AccountKind) -> None:
    root, *_, last = account_name("platform", kind).split(":")
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| `") and f"`{kind}`" in line]
    assert f"`{root}:" in row
    assert f":{last}`" in row
