"""What the benchmarks of reports write, and what the floor of catching up sends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bench.feeds import statements
from bench.http_client import get
from bench.reports import ORGANIZATION, SMALL_EARNINGS, History
from services.reporting.domain.facts import JournalBatch, PostedTransaction, UsageBatch

END = datetime(2026, 11, 29, 12, 30, tzinfo=UTC)


def moments(history: History) -> list[datetime]:
    """When each of them happened, as they are written."""
    return [history.start + number * history.step for number in range(1, history.count + 1)]


def test_a_history_lasts_a_year_and_ends_now() -> None:
    first, *_, last = moments(History(ORGANIZATION, 1_000, END))
    assert last == END
    assert timedelta(days=364) < last - first < timedelta(days=365)


@pytest.mark.parametrize("count", [1, 7, 1_000])
def test_the_period_of_the_first_so_many_has_these_and_no_others(count: int) -> None:
    history = History(ORGANIZATION, 1_000, END)
    start, end = history.first(count)
    assert [one for one in moments(history) if start <= one < end] == moments(history)[:count]


@pytest.mark.parametrize("count", [SMALL_EARNINGS, 1_000_000, 10_000_000])
def test_every_customer_of_a_history_comes_every_day_or_nearly(count: int) -> None:
    history = History(ORGANIZATION, count, END)
    assert timedelta(days=1) / (history.step * history.visit) >= 250


def test_the_floor_sends_what_reporting_sends() -> None:
    transaction = PostedTransaction(1, "txn_1", "grant", "", "", "", "welcome", 5, 6)
    journal = JournalBatch("log_1", 0, 1, head=1, apply_time=6)
    journal.transactions.append(transaction)
    usage = UsageBatch("log_2", 4, 4)
    (first,), (second,) = statements([journal], [usage])
    assert ("apply_journal" in first.text, "apply_usage" in second.text) == (True, True)
    # The projection, which is put in its place each time, and from where to where the feed moves.
    assert first.parameters[:5] == (0, "log_1", 0, 1, 1)
    assert second.parameters[:5] == (0, "log_2", 4, 4, 0)
    assert '{"txn_1"}' in first.parameters


def test_a_request_for_a_page_ends_with_its_headers() -> None:
    assert get("127.0.0.1:1", "/path", {"Cookie": "a=b"}) == (
        b"GET /path HTTP/1.1\r\nHost: 127.0.0.1:1\r\nCookie: a=b\r\n\r\n"
    )
