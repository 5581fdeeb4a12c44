"""Billing periods: by the calendar or from an anniversary, in any time zone."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument
from services.metering.domain.billing_period import (
    MONTH_IN_UTC,
    BillingPeriod,
    Period,
    check_billing_period,
)
from services.metering.domain.price_book import PeriodUnit

ZONES = (
    "UTC",
    "Europe/Rome",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Asia/Beirut",
    "Australia/Lord_Howe",
    "America/Havana",
    "America/Sao_Paulo",
    "Pacific/Apia",
    "Antarctica/Troll",
)
MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
ANCHORS = MOMENTS.map(lambda moment: moment.replace(microsecond=0))
BILLING = st.builds(BillingPeriod, st.sampled_from(PeriodUnit), st.none() | ANCHORS, st.sampled_from(ZONES))


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


def starts(billing: BillingPeriod, moment: datetime, count: int) -> list[str]:
    """The local begins of so many periods, from that of the moment on."""
    period = billing.period_containing(moment)
    found = []
    for _ in range(count):
        found.append(period.start.astimezone(ZoneInfo(billing.time_zone)).strftime("%Y-%m-%d %H:%M"))
        period = billing.next(period)
    return found


@given(BILLING, MOMENTS)
def test_every_moment_lies_in_the_period_that_contains_it(billing: BillingPeriod, moment: datetime) -> None:
    period = billing.period_containing(moment)
    assert period.start <= moment < period.end
    assert period.contains(moment)


@given(BILLING, MOMENTS)
def test_periods_tile_time(billing: BillingPeriod, moment: datetime) -> None:
    """No gap, no overlap: every moment lies in one period only, which its first and last moment name too."""
    period = billing.period_containing(moment)
    for _ in range(15):
        following = billing.next(period)
        assert following.start == period.end < following.end
        assert billing.period_containing(period.start) == period
        assert billing.period_containing(period.end - timedelta(microseconds=1)) == period
        period = following


@given(BILLING, MOMENTS)
def test_a_period_is_as_long_as_its_months(billing: BillingPeriod, moment: datetime) -> None:
    """Give or take the shifts of clocks, and one of the date line, which Samoa crossed."""
    days = billing.period_containing(moment).seconds / 86_400
    least, most = {PeriodUnit.MONTH: (28, 31), PeriodUnit.QUARTER: (89, 92), PeriodUnit.YEAR: (365, 366)}[
        billing.unit
    ]
    assert least - 1.1 <= days <= most + 0.1


@given(ANCHORS, st.sampled_from(PeriodUnit), st.sampled_from(ZONES))
def test_an_anchor_begins_a_period(anchor: datetime, unit: PeriodUnit, zone: str) -> None:
    """Unless its local time is the second one of the hour that comes twice."""
    local = anchor.astimezone(ZoneInfo(zone))
    if local.fold == 0:
        assert BillingPeriod(unit, anchor, zone).period_containing(anchor).start == anchor


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (PeriodUnit.MONTH, Period(utc(2026, 11, 1), utc(2026, 12, 1))),
        (PeriodUnit.QUARTER, Period(utc(2026, 10, 1), utc(2027, 1, 1))),
        (PeriodUnit.YEAR, Period(utc(2026, 1, 1), utc(2027, 1, 1))),
    ],
)
def test_calendar_periods(unit: PeriodUnit, expected: Period) -> None:
    assert BillingPeriod(unit).period_containing(utc(2026, 11, 29, 20)) == expected


def test_the_31st_is_clamped_and_comes_back() -> None:
    billing = BillingPeriod(anchor=utc(2026, 1, 31, 9, 30))
    assert starts(billing, utc(2026, 2, 1), 5) == [
        "2026-01-31 09:30", "2026-02-28 09:30", "2026-03-31 09:30", "2026-04-30 09:30", "2026-05-31 09:30",
    ]  # fmt: skip
    assert billing.period_containing(utc(2026, 2, 28, 9, 29)).start == utc(2026, 1, 31, 9, 30)


def test_leap_day() -> None:
    assert starts(BillingPeriod(PeriodUnit.YEAR, utc(2024, 2, 29)), utc(2024, 3, 1), 5) == [
        "2024-02-29 00:00", "2025-02-28 00:00", "2026-02-28 00:00", "2027-02-28 00:00", "2028-02-29 00:00",
    ]  # fmt: skip
    # A month that begins on the 30th: the 29th in a leap year's February.
    assert starts(BillingPeriod(anchor=utc(2023, 11, 30)), utc(2024, 2, 1), 3) == [
        "2024-01-30 00:00", "2024-02-29 00:00", "2024-03-30 00:00",
    ]  # fmt: skip


def test_quarters_of_an_anchor() -> None:
    assert starts(BillingPeriod(PeriodUnit.QUARTER, utc(2025, 11, 30)), utc(2026, 1, 1), 3) == [
        "2025-11-30 00:00", "2026-02-28 00:00", "2026-05-30 00:00",
    ]  # fmt: skip


@pytest.mark.parametrize("hours", [-1, 1])
def test_when_a_zone_changes_its_rules_the_next_period_begins_where_the_last_one_ended(hours: int) -> None:
    billing = BillingPeriod(time_zone="Europe/Rome")
    cut = billing.period_containing(utc(2026, 5, 5))
    before = Period(cut.start, cut.end + timedelta(hours=hours))
    assert billing.next(before) == Period(before.end, billing.next(cut).end)


def test_local_time_of_day_is_kept_when_clocks_change() -> None:
    billing = BillingPeriod(anchor=utc(2026, 2, 15, 8), time_zone="Europe/Rome")
    assert starts(billing, utc(2026, 3, 1), 3) == ["2026-02-15 09:00", "2026-03-15 09:00", "2026-04-15 09:00"]
    march = billing.period_containing(utc(2026, 4, 1))
    assert march == Period(utc(2026, 3, 15, 8), utc(2026, 4, 15, 7))
    assert march.seconds == 31 * 86_400 - 3_600


def test_a_midnight_that_is_skipped() -> None:
    """Beirut's clocks went from 2022-03-26 23:59 to 2022-03-27 01:00."""
    billing = BillingPeriod(anchor=utc(2022, 1, 26, 22), time_zone="Asia/Beirut")
    assert starts(billing, utc(2022, 3, 1), 2) == ["2022-02-27 00:00", "2022-03-27 01:00"]


def test_a_midnight_that_comes_twice_begins_the_day_the_first_time() -> None:
    """Havana's clocks went from 2026-11-01 01:00 back to midnight."""
    november = BillingPeriod(time_zone="America/Havana").period_containing(utc(2026, 11, 1, 4, 30))
    assert november == Period(utc(2026, 11, 1, 4), utc(2026, 12, 1, 5))


@pytest.mark.parametrize("time_zone", ["", "Rome", "Europe", "../UTC", "/etc/passwd", "posix/UTC", "a\0"])
def test_unknown_time_zones_are_refused(time_zone: str) -> None:
    with pytest.raises(InvalidArgument, match=r"billing_period\.time_zone"):
        check_billing_period(BillingPeriod(time_zone=time_zone), field="billing_period")


@pytest.mark.parametrize("anchor", [utc(1969, 12, 31), utc(9000, 1, 1), utc(2026, 1, 1, 0, 0, 0, 1)])
def test_anchors_are_moments_of_our_time_in_whole_seconds(anchor: datetime) -> None:
    with pytest.raises(InvalidArgument, match=r"billing_period\.anchor_time"):
        check_billing_period(BillingPeriod(anchor=anchor), field="billing_period")


def test_the_default_is_a_valid_calendar_month() -> None:
    check_billing_period(MONTH_IN_UTC, field="billing_period")
    assert MONTH_IN_UTC.period_containing(utc(2026, 2, 28, 23, 59)) == Period(
        utc(2026, 2, 1), utc(2026, 3, 1)
    )
