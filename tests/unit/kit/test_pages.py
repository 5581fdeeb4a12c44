import base64
import json

import pytest

from services.kit.errors import InvalidArgument
from services.kit.pages import Page

ROWS = [(f"2026-01-{day:02d}", day) for day in range(1, 8)]
FILTER: dict[str, str | int | None] = {"customer_id": "cus_1", "account": None}


def parse(size: int = 3, token: str = "", filter: dict[str, str | int | None] = FILTER) -> Page:
    return Page.parse(size, token, key_types=(str, int), filter=filter)


def read(page: Page) -> list[tuple[str, int]]:
    """What a store would: rows after the keyset, up to the limit."""
    return [row for row in ROWS if page.after is None or row > page.after][: page.limit]


def test_walking_the_pages_sees_every_row_once() -> None:
    seen, token, sizes = [], "", []
    while True:
        page = parse(token=token)
        rows, token = page.cut(read(page), key=lambda row: row)
        seen += rows
        sizes.append(len(rows))
        if not token:
            break
    assert seen == ROWS
    assert sizes == [3, 3, 1]


def test_a_page_that_ends_exactly_at_the_end_is_the_last() -> None:
    page = parse(size=7)
    rows, token = page.cut(read(page), key=lambda row: row)
    assert (len(rows), token) == (7, "")


@pytest.mark.parametrize(("asked", "size"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_page_size_has_a_default_and_a_cap(asked: int, size: int) -> None:
    assert parse(size=asked).size == size


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse(size=-1)
    assert (raised.value.reason, raised.value.field_violations[0].field) == ("INVALID_FIELD", "page_size")


def token_of(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def good_token() -> str:
    page = parse()
    return page.cut(read(page), key=lambda row: row)[1]


def test_a_token_belongs_to_its_filter() -> None:
    assert parse(token=good_token()).after == ROWS[2]
    assert parse(token=good_token(), filter=dict(reversed(FILTER.items()))).after == ROWS[2]
    with pytest.raises(InvalidArgument, match="another filter") as raised:
        parse(token=good_token(), filter={**FILTER, "customer_id": "cus_2"})
    assert raised.value.reason == "INVALID_PAGE_TOKEN"


HASH = parse().filter_hash


@pytest.mark.parametrize(
    "token",
    [
        "!!!",
        "é",
        "YQ",
        good_token()[:-4],
        token_of([]),
        token_of({"f": HASH}),
        token_of({"k": "2026", "f": HASH}),
        token_of({"k": ["2026-01-01"], "f": HASH}),
        token_of({"k": [1, "2026-01-01"], "f": HASH}),
        token_of({"k": ["2026-01-01", True], "f": HASH}),
        token_of({"k": ["2026-01-01", 2**63], "f": HASH}),
        token_of({"k": ["2026\x00", 1], "f": HASH}),
        token_of({"k": [["x"], 1], "f": HASH}),
        base64.urlsafe_b64encode(b"[" * 1500).decode(),
        "A" * 5000,
    ],
)
def test_a_damaged_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument, match="damaged") as raised:
        parse(token=token)
    assert raised.value.reason == "INVALID_PAGE_TOKEN"
