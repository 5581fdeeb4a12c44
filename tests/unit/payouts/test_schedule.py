"""When organizations are paid by themselves."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument
from services.payouts.domain.schedule import Interval, Schedule, check_time_zone, latest_run, next_run

# A Wednesday.
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/Los_Angeles", "Pacific/Auckland", "Asia/Beirut"])
RUNNING = st.sampled_from([Interval.DAILY, Interval.WEEKLY, Interval.MONTHLY])


def schedule(interval: Interval, zone: str = "UTC") -> Schedule:
    return Schedule("org_lark", interval=interval, time_zone=zone)


def test_weekly_pays_on_wednesday_what_was_earned_until_sunday() -> None:
    run = next_run(schedule(Interval.WEEKLY), NOON)
    assert run is not None
    assert run.time == datetime(2026, 12, 2, tzinfo=UTC)
    # Earned before Monday the 30th: until the end of Sunday the 29th.
    assert run.earned_before == date(2026, 11, 30)


def test_monthly_pays_on_the_third_what_was_earned_in_the_month_before() -> None:
    run = next_run(schedule(Interval.MONTHLY), NOON)
    assert run is not None
    assert (run.time, run.earned_before) == (datetime(2026, 12, 3, tzinfo=UTC), date(2026, 12, 1))


def test_daily_pays_what_was_earned_until_the_day_before() -> None:
    run = next_run(schedule(Interval.DAILY), NOON)
    assert run is not None
    assert (run.time, run.earned_before) == (datetime(2026, 11, 26, tzinfo=UTC), date(2026, 11, 26))


def test_east_of_greenwich_the_utc_day_that_is_not_over_is_for_the_next_run() -> None:
    run = next_run(schedule(Interval.DAILY, "Pacific/Auckland"), NOON)
    assert run is not None
    assert run.time == datetime(2026, 11, 26, 11, tzinfo=UTC)
    assert run.earned_before == date(2026, 11, 26)


def test_a_manual_schedule_never_runs() -> None:
    assert next_run(schedule(Interval.MANUAL), NOON) is None


@given(RUNNING, ZONES, MOMENTS)
def test_a_run_is_later_than_asked_and_never_pays_for_a_day_to_come(
    interval: Interval, zone: str, after: datetime
) -> None:
    run = next_run(schedule(interval, zone), after)
    assert run is not None
    assert after < run.time <= after + timedelta(days=33)
    assert run.earned_before <= run.time.date()


@given(RUNNING, ZONES, MOMENTS, st.integers(0, 90))
def test_after_an_outage_the_last_run_that_was_missed_pays_for_all(
    interval: Interval, zone: str, start: datetime, days: int
) -> None:
    planned = next_run(schedule(interval, zone), start)
    assert planned is not None
    waiting = replace(schedule(interval, zone), next_run_time=planned.time)
    now = planned.time + timedelta(days=days)
    run = latest_run(waiting, now)
    assert run is not None
    assert planned.time <= run.time <= now
    following = next_run(waiting, now)
    assert following is not None
    # None lies between the one that is run, and the one that is planned next.
    assert next_run(waiting, run.time) == following


def test_nothing_is_due_before_its_time() -> None:
    planned = next_run(schedule(Interval.WEEKLY), NOON)
    assert planned is not None
    waiting = replace(schedule(Interval.WEEKLY), next_run_time=planned.time)
    assert latest_run(waiting, planned.time - timedelta(microseconds=1)) is None
    assert latest_run(waiting, planned.time) == planned


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "posixrules", "Europe"])
def test_what_is_not_a_time_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        check_time_zone(name)


def test_no_time_zone_is_utc() -> None:
    assert check_time_zone("") == "UTC"
    assert check_time_zone("Europe/Berlin") == "Europe/Berlin"
