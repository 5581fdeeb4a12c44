"""The parts of the dashboard that need no service: amounts, sessions, attempts, pictures, words."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.kit.clock import FixedClock
from services.kit.zones import zone
from services.reporting.web import words
from services.reporting.web.attempts import MAX_FAILURES, WINDOW, FailedAttempts
from services.reporting.web.charts import HEIGHT, bars
from services.reporting.web.common import leads_away
from services.reporting.web.forms import FormError, parse_amount, type_amount
from services.reporting.web.rendering import day, exact, moment, money, path, percent, span
from services.reporting.web.session import LIFETIME, Session, SessionSealer
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import charge_pb2
from tallystick.metering.v1 import charge_line_pb2, usage_pb2
from tallystick.payouts.v1 import connected_account_pb2, payout_pb2, purchase_pb2, reconciliation_pb2
from tallystick.reporting.v1 import projection_pb2

VENDOR = Path(__file__).parents[3] / "services/reporting/web/static/vendor"
START = datetime(2026, 11, 29, 14, 3, tzinfo=UTC)
SECRET, OTHER = "s" * 32, "t" * 32


def amount(micros: int, currency: str = "USD") -> money_pb2.Money:
    return money_pb2.Money(currency_code=currency, amount_micros=micros)


def text(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html)


@pytest.mark.parametrize(
    ("micros", "currency", "headline", "column", "value"),
    [
        (0, "USD", "0.00", "0.000000", "0.000000"),
        (1_234_567_890_123, "USD", "1,234,567.890123", "1,234,567.890123", "1234567.890123"),
        (12_500_000, "USD", "12.50", "12.500000", "12.500000"),
        (-1, "USD", "−0.000001", "−0.000001", "-0.000001"),
        (-1_500_000, "USD", "−1.50", "−1.500000", "-1.500000"),
        (1_500_000, "JPY", "1.5", "1.500000", "1.500000"),
        (3_000_000, "JPY", "3", "3.000000", "3.000000"),
        (1_234_500, "KWD", "1.2345", "1.234500", "1.234500"),
        (2**63 - 1, "USD", "9,223,372,036,854.775807", "9,223,372,036,854.775807", "9223372036854.775807"),
        (7, "", "0.000007", "0.000007", "0.000007"),
    ],
)
def test_an_amount_is_shown_to_its_last_digit(
    micros: int, currency: str, headline: str, column: str, value: str
) -> None:
    assert text(money(amount(micros, currency))) == headline
    assert text(exact(amount(micros, currency))) == column
    assert f'value="{value}"' in money(amount(micros, currency))


@given(st.integers(min_value=1, max_value=99_999_999), st.sampled_from(["USD", "JPY", "KWD"]))
def test_what_is_proposed_can_be_typed(units: int, currency: str) -> None:
    micros = units * 1_000_000 + units % 1_000_000
    typed = type_amount(micros, currency)
    parsed = parse_amount(typed, currency)
    assert parsed <= micros
    assert micros - parsed < 1_000_000
    assert type_amount(parsed, currency) == typed


@pytest.mark.parametrize(
    "typed", ["", " ", "a", "1,5", "-1", "+1", "1e3", "٣", "0", "0.00", "1.", ".5", "9" * 10, "1.0000001"]
)
def test_what_is_no_amount_is_refused(typed: str) -> None:
    with pytest.raises(FormError):
        parse_amount(typed, "USD")


def test_amounts_are_in_what_a_currency_can_move() -> None:
    assert parse_amount(" 12.5 ", "USD") == 12_500_000
    assert parse_amount("7", "JPY") == 7_000_000
    assert parse_amount("1.234", "KWD") == 1_234_000
    for typed, currency in (("1.005", "USD"), ("1.5", "JPY"), ("1.2345", "KWD")):
        with pytest.raises(FormError):
            parse_amount(typed, currency)
    assert type_amount(-5, "USD") == "0.00"


def test_a_session_survives_only_as_it_was_sealed() -> None:
    clock = FixedClock(START)
    sealer = SessionSealer([SECRET], clock)
    session = sealer.begin("tsk_a_b", "Europe/Vienna")
    assert sealer.open(sealer.seal(session)) == session
    assert "tsk_a_b" not in repr(session)
    assert SessionSealer([OTHER], clock).open(sealer.seal(session)) is None
    # A secret that is being replaced still opens; the new one seals.
    both = SessionSealer([OTHER, SECRET], clock)
    assert both.open(sealer.seal(session)) == session
    assert sealer.open(both.seal(session)) is None
    clock.advance(LIFETIME)
    assert sealer.open(sealer.seal(session)) is None


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda raw: raw.hex())))
def test_no_other_text_is_a_session(cookie: str) -> None:
    assert SessionSealer([SECRET], FixedClock(START)).open(cookie) is None


@pytest.mark.parametrize("secrets", [[], [""], ["short"], [SECRET, "short"]])
def test_short_secrets_seal_nothing(secrets: list[str]) -> None:
    with pytest.raises(ValueError, match="32 characters"):
        SessionSealer(secrets, FixedClock(START))


def test_the_csrf_tokens_of_two_sessions_differ() -> None:
    sealer = SessionSealer([SECRET], FixedClock(START))
    one, other = sealer.begin("k", "UTC"), sealer.begin("k", "UTC")
    assert one.csrf_token != other.csrf_token
    assert isinstance(one, Session)


def test_failures_are_counted_by_network_and_forgotten() -> None:
    clock = FixedClock(START)
    attempts = FailedAttempts(clock, max_addresses=3)
    for _ in range(MAX_FAILURES):
        assert attempts.wait("2001:db8::1") is None
        attempts.fail("2001:db8::1")
    assert attempts.wait("2001:db8::ffff") == WINDOW
    assert attempts.wait("2001:db8:0:1::1") is None
    clock.advance(WINDOW - timedelta(seconds=1))
    assert attempts.wait("2001:db8::1") == timedelta(seconds=1)
    clock.advance(timedelta(seconds=1))
    assert attempts.wait("2001:db8::1") is None
    for number in range(100):
        attempts.fail(f"192.0.2.{number}")
    assert len(attempts._failures) == 3
    attempts.fail("not an address" * 100)


def test_an_attempt_that_did_not_fail_is_excused() -> None:
    attempts = FailedAttempts(FixedClock(START))
    for _ in range(3 * MAX_FAILURES):
        attempts.fail("192.0.2.1")
        attempts.excuse("192.0.2.1")
    assert attempts.wait("192.0.2.1") is None
    assert not attempts._failures
    # Forgotten meanwhile.
    attempts.excuse("192.0.2.1")
    for _ in range(MAX_FAILURES):
        attempts.fail("192.0.2.1")
    assert attempts.wait("192.0.2.1") == WINDOW


def test_an_ipv4_address_fails_for_itself_also_where_a_server_listens_on_both() -> None:
    attempts = FailedAttempts(FixedClock(START))
    for _ in range(MAX_FAILURES):
        attempts.fail("::ffff:192.0.2.1")
    assert attempts.wait("::ffff:192.0.2.1") == attempts.wait("192.0.2.1") == WINDOW
    assert attempts.wait("::ffff:192.0.2.2") is None


@given(st.lists(st.integers(min_value=-(10**15), max_value=10**15), max_size=40))
def test_bars_stay_within_their_picture(values: list[int]) -> None:
    drawn = bars(values)
    assert len(drawn.bars) == len(values)
    for bar, value in zip(drawn.bars, values, strict=True):
        assert 0 <= bar.y <= HEIGHT
        assert bar.y + bar.height <= HEIGHT
        assert (bar.height > 0) == (value != 0)
    if any(values):
        assert max(bar.height for bar in drawn.bars) * 2 >= HEIGHT - 2


def test_times_are_those_of_the_reader() -> None:
    stamp = Timestamp()
    stamp.FromDatetime(datetime(2026, 12, 31, 23, 30, tzinfo=UTC))
    assert text(moment(stamp, zone("Asia/Tokyo"))) == "1 Jan 2027, 08:30"
    assert 'datetime="2026-12-31T23:30:00.000Z"' in moment(stamp, zone("Asia/Tokyo"))
    assert (
        text(day(stamp, UTC, "hour")) == "31 Dec, 23:00" or text(day(stamp, UTC, "hour")) == "31 Dec, 23:30"
    )
    assert text(day(stamp, UTC, "month")) == "Dec 2026"


def test_small_words() -> None:
    assert [span(timedelta(seconds=s)) for s in (0, 0.25, 90, 300, 7200, 400_000)] == [
        "0 ms",
        "250 ms",
        "90 s",
        "5 min",
        "2 h",
        "4 days",
    ]
    assert percent(1_234) == "12.3\u00a0%"
    assert percent(-5) == "−0.0\u00a0%"
    assert path("a/../b?c#d") == "a%2F..%2Fb%3Fc%23d"
    assert words.reason("account_closed") == "account closed"
    assert words.reason("Closed by R_D") == "Closed by R_D"
    assert words.concentration(10_000) == "highly concentrated"
    line = charge_line_pb2.ChargeLine(component_name="input", quantity=5, tier=2)
    assert words.line_note(line) == "tier 2"
    line.kind, line.tier = charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT, 0
    assert words.line_note(line) == "discount"
    assert words.line_note(charge_line_pb2.ChargeLine(component_name="input", quantity=5)) == ""


@pytest.mark.parametrize(
    ("enum", "put"),
    [
        (payout_pb2.PayoutState, lambda n: words.payout_status(payout_pb2.Payout(state=n)).text),
        (payout_pb2.PayoutHold, lambda n: words.hold(payout_pb2.Payout(hold=n))),
        (purchase_pb2.PurchaseState, lambda n: words.purchase_status(purchase_pb2.Purchase(state=n)).text),
        (usage_pb2.Outcome, lambda n: words.outcome(n).text),
        (charge_line_pb2.ChargeLineKind, lambda n: words.line_note(charge_line_pb2.ChargeLine(kind=n))),
        (charge_pb2.ChargeComponent, words.component),
        (
            connected_account_pb2.ConnectedAccountState,
            lambda n: words.account_status(connected_account_pb2.ConnectedAccount(state=n)).text,
        ),
        (
            projection_pb2.ProjectionState,
            lambda n: words.projection_status(projection_pb2.Projection(state=n)).text,
        ),
        (reconciliation_pb2.DifferenceKind, words.difference),
    ],
    ids=lambda value: getattr(getattr(value, "DESCRIPTOR", None), "name", ""),
)
def test_every_state_has_words_of_its_own(enum: object, put: object) -> None:
    said = [put(number) for number in enum.values() if number]  # type: ignore[attr-defined, operator]
    # The first of these is for what has no words.
    assert put(999) not in said  # type: ignore[operator]
    assert len(set(said)) == len(said)


def test_nobody_is_sent_where_no_browser_should_go() -> None:
    for good in ("https://connect.stripe.com/setup/x", "http://127.0.0.1:12111/connect/x"):
        assert leads_away(good) == good
    for bad in ("javascript:alert(1)", "http://evil.example:80/", "data:text/html,x", "//evil.example", ""):
        with pytest.raises(ValueError, match="scheme"):
            leads_away(bad)


def test_what_is_not_ours_is_as_it_came() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", (VENDOR / "README.md").read_text(), re.MULTILINE
    )
    told = dict(rows)
    files = [file for file in VENDOR.rglob("*") if file.suffix in (".js", ".css")]
    assert {file.relative_to(VENDOR).as_posix() for file in files} == set(told)
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == told[file.relative_to(VENDOR).as_posix()]
        assert (file.parent / "LICENSE").is_file()
