"""Which time a report is about."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit import zones
from services.kit.errors import InvalidArgument
from services.reporting.domain.period import (
    MAX_STEPS,
    Grain,
    Interval,
    Period,
    between,
    cover,
    month_begins,
    named,
    parse,
    previous_month_to_date,
    steps,
    suitable_interval,
)

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
NOW = datetime(2026, 11, 29, 13, 25, 30, tzinfo=UTC)
# The end of what includes now.
AFTER_NOW = NOW + timedelta(microseconds=1)
ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "America/St_Johns",
        "Asia/Kolkata",
        "Asia/Kathmandu",
        "Asia/Beirut",
        "Australia/Lord_Howe",
        "America/Havana",
        "Pacific/Apia",
        "America/Sao_Paulo",
        "Antarctica/Troll",
    ]
)
MOMENTS = st.datetimes(datetime(2009, 1, 1), datetime(2031, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("today", utc(2026, 11, 28, 23)),
        ("1d", utc(2026, 11, 28, 23)),
        ("7d", utc(2026, 11, 22, 23)),
        # Before the clock was put back.
        ("36d", utc(2026, 10, 24, 22)),
        ("1h", utc(2026, 11, 29, 13)),
        ("24h", utc(2026, 11, 28, 14)),
        ("mtd", utc(2026, 10, 31, 23)),
        ("1m", utc(2026, 10, 31, 23)),
        ("12m", utc(2025, 11, 30, 23)),
        ("120m", utc(2016, 11, 30, 23)),
    ],
)
def test_a_period_up_to_now_includes_the_hour_day_or_month_that_has_begun(name: str, start: datetime) -> None:
    assert named(name, "Europe/Berlin", now=NOW) == Period(start, AFTER_NOW, "Europe/Berlin")


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("2026", utc(2025, 12, 31, 18, 30), utc(2026, 12, 31, 18, 30)),
        ("2026-11", utc(2026, 10, 31, 18, 30), utc(2026, 11, 30, 18, 30)),
        ("2026-12", utc(2026, 11, 30, 18, 30), utc(2026, 12, 31, 18, 30)),
        ("2024-02-29", utc(2024, 2, 28, 18, 30), utc(2024, 2, 29, 18, 30)),
    ],
)
def test_a_year_a_month_or_a_day_is_that_of_the_time_zone(name: str, start: datetime, end: datetime) -> None:
    assert named(name, "Asia/Kolkata", now=NOW) == Period(start, end, "Asia/Kolkata")


def test_a_day_on_which_the_clock_is_put_has_23_or_25_hours() -> None:
    spring = named("2026-03-29", "Europe/Berlin", now=NOW)
    autumn = named("2026-10-25", "Europe/Berlin", now=NOW)
    assert (spring.end - spring.start, autumn.end - autumn.start) == (23 * HOUR, 25 * HOUR)
    assert [len(steps(day, Interval.HOUR)) for day in (spring, autumn)] == [23, 25]


def test_a_day_whose_midnight_is_skipped_begins_when_the_clock_is_put_forward() -> None:
    # In Beirut the clock went from midnight to one.
    day = named("2026-03-29", "Asia/Beirut", now=NOW)
    assert (day.start, day.end - day.start) == (utc(2026, 3, 28, 22), 23 * HOUR)
    assert steps(day, Interval.HOUR)[:2] == [utc(2026, 3, 28, 22), utc(2026, 3, 28, 23)]


def test_a_day_that_the_islands_left_out_at_the_date_line_is_no_step_and_no_period() -> None:
    week = between(utc(2011, 12, 29, 10), utc(2012, 1, 1, 10), "Pacific/Apia")
    # The 29th, the 31st, the 1st.
    assert steps(week, Interval.DAY) == [utc(2011, 12, 29, 10), utc(2011, 12, 30, 10), utc(2011, 12, 31, 10)]
    with pytest.raises(InvalidArgument, match="left out"):
        named("2011-12-30", "Pacific/Apia", now=NOW)


def test_where_the_clock_is_put_by_half_an_hour_a_step_is_half_an_hour() -> None:
    # On Lord Howe Island two o'clock becomes half past one: 1:00, 1:30 again, 2:00.
    night = between(utc(2026, 4, 4, 14), utc(2026, 4, 4, 16, 30), "Australia/Lord_Howe")
    assert steps(night, Interval.HOUR) == [utc(2026, 4, 4, 14), utc(2026, 4, 4, 15), utc(2026, 4, 4, 15, 30)]


def test_hours_begin_where_the_clock_of_the_zone_shows_them() -> None:
    start, *_, last = steps(named("24h", "Asia/Kathmandu", now=NOW), Interval.HOUR)
    assert (start, last) == (utc(2026, 11, 28, 14, 15), utc(2026, 11, 29, 13, 15))


def test_what_begins_at_this_very_moment_has_begun() -> None:
    for name in ("today", "mtd", "1h", "1d"):
        period = named(name, "UTC", now=utc(2026, 12, 1))
        assert steps(period, Interval.HOUR) == [utc(2026, 12, 1)]
    assert steps(named("2d", "UTC", now=utc(2026, 12, 1)), Interval.DAY) == [
        utc(2026, 11, 30),
        utc(2026, 12, 1),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "30",
        "0d",
        "-1d",
        "030d",
        "30D",
        "1w",
        "1e3d",
        "٣d",
        "ytd",
        "26",
        "2026-",
        "2026-1",
        "2026-11-2",
        " 1d",
    ],
)
def test_what_is_no_name_is_answered_with_what_would_be_one(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        named(name, "UTC", now=NOW)
    assert caught.value.field_violations[0].field == "period.name"


@pytest.mark.parametrize(
    "name",
    ["87673h", "3654d", "121m", "99999m", "2026-13", "2026-00", "2026-02-29", "0000", "1969", "2200", "9999"],
)
def test_no_name_reaches_beyond_the_bounds(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        named(name, "UTC", now=NOW)
    assert caught.value.field_violations[0].field == "period.name"


@pytest.mark.parametrize(
    ("name", "start", "end", "zone", "part"),
    [
        ("30d", NOW, NOW + DAY, "", "name"),
        ("", NOW, None, "", "end_time"),
        ("", None, NOW, "", "start_time"),
        ("", NOW, NOW, "", "end_time"),
        ("", NOW, NOW - DAY, "", "end_time"),
        ("", NOW, NOW + 3654 * DAY, "", "end_time"),
        ("", datetime.min.replace(tzinfo=UTC), NOW, "", "start_time"),
        ("", NOW, datetime.max.replace(tzinfo=UTC), "", "end_time"),
        ("", None, None, "Mars/Olympus", "time_zone"),
        ("", NOW, NOW + DAY, "../UTC", "time_zone"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_field(
    name: str, start: datetime | None, end: datetime | None, zone: str, part: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(name, start, end, zone, now=NOW, field="filter.period")
    assert [violation.field for violation in caught.value.field_violations] == [f"filter.period.{part}"]


def test_the_last_30_days_of_utc_or_what_the_caller_says_is_meant_by_nothing() -> None:
    assert parse("", None, None, "", now=NOW) == Period(utc(2026, 10, 31), AFTER_NOW)
    assert parse("", None, None, "", now=NOW, default="mtd") == Period(utc(2026, 11, 1), AFTER_NOW)
    both = parse("", utc(2026, 1, 5), utc(2026, 1, 6), "Europe/Berlin", now=NOW)
    assert both == Period(utc(2026, 1, 5), utc(2026, 1, 6), "Europe/Berlin")


@pytest.mark.parametrize(
    ("name", "interval"),
    [
        ("today", Interval.HOUR),
        ("72h", Interval.HOUR),
        ("3d", Interval.HOUR),
        ("4d", Interval.DAY),
        ("30d", Interval.DAY),
        ("3m", Interval.DAY),
        ("2026-11", Interval.DAY),
        ("5m", Interval.MONTH),
        ("2026", Interval.MONTH),
    ],
)
def test_steps_suit_the_length_of_the_period(name: str, interval: Interval) -> None:
    assert suitable_interval(named(name, "Europe/Berlin", now=NOW)) is interval


def test_three_days_are_shown_in_hours_when_one_has_25_of_them() -> None:
    # Until the last hour of the day on which the clock was put back.
    now = utc(2026, 10, 25, 22, 59)
    assert suitable_interval(named("3d", "Europe/Berlin", now=now)) is Interval.HOUR


def test_there_are_at_most_1500_steps() -> None:
    start = utc(2026, 1, 1)
    assert len(steps(between(start, start + MAX_STEPS * HOUR, "UTC"), Interval.HOUR)) == MAX_STEPS
    with pytest.raises(InvalidArgument, match="1500") as caught:
        steps(between(start, start + MAX_STEPS * HOUR + timedelta(microseconds=1), "UTC"), Interval.HOUR)
    assert caught.value.field_violations[0].field == "interval"
    assert len(steps(named("120m", "UTC", now=NOW), Interval.MONTH)) == 120


@settings(max_examples=60)
@given(MOMENTS, st.timedeltas(timedelta(microseconds=1), 59 * DAY), ZONES, st.sampled_from(Interval))
def test_steps_begin_with_the_period_and_are_whole_by_the_clock_of_the_zone(
    start: datetime, length: timedelta, zone: str, interval: Interval
) -> None:
    period = between(start, start + length, zone)
    found = steps(period, interval)
    assert found[0] == start
    assert all(one < other for one, other in pairwise(found))
    assert found[-1] < period.end
    where = zones.zone(zone)
    for begin in found[1:]:
        local = begin.astimezone(where)
        just_before = (begin - timedelta(microseconds=1)).astimezone(where)
        if interval is Interval.HOUR:
            put = local.utcoffset() != just_before.utcoffset()
            assert put or (local.minute, local.second, local.microsecond) == (0, 0, 0)
        else:
            assert local.date() > just_before.date()
            assert interval is Interval.DAY or local.day == 1
    # At Troll the clock is put by two hours.
    longest = {Interval.HOUR: HOUR, Interval.DAY: 26 * HOUR, Interval.MONTH: 31 * DAY + 2 * HOUR}[interval]
    assert all(other - one <= longest for one, other in pairwise([*found, period.end]))


@settings(max_examples=60)
@given(MOMENTS, ZONES, st.integers(1, 100), st.sampled_from("hdm"))
def test_a_number_of_hours_days_or_months_has_so_many_steps(
    now: datetime, zone: str, count: int, unit: str
) -> None:
    interval = {"h": Interval.HOUR, "d": Interval.DAY, "m": Interval.MONTH}[unit]
    found = steps(named(f"{count}{unit}", zone, now=now), interval)
    # One less where a day was left out, one more or less where the clock was put by half an hour.
    exact = zone not in ("Pacific/Apia", "Australia/Lord_Howe")
    assert len(found) == count if exact else abs(len(found) - count) <= 1


def test_months_of_a_trend_end_with_the_current_one() -> None:
    assert month_begins(3, "Europe/Berlin", now=NOW) == [
        utc(2026, 8, 31, 22),
        utc(2026, 9, 30, 22),
        utc(2026, 10, 31, 23),
    ]


def test_the_month_before_is_compared_up_to_the_same_age_and_never_beyond_its_end() -> None:
    assert previous_month_to_date("UTC", now=NOW) == Period(utc(2026, 10, 1), AFTER_NOW - 31 * DAY)
    # February was shorter.
    assert previous_month_to_date("UTC", now=utc(2026, 3, 31)) == Period(utc(2026, 2, 1), utc(2026, 3, 1))


SIZES = {Grain.QUARTER: timedelta(minutes=15), Grain.DAY: DAY}


def is_whole(moment: datetime, grain: Grain) -> bool:
    if grain is Grain.MONTH:
        return moment == datetime.combine(moment.date().replace(day=1), datetime.min.time(), UTC)
    return (moment - utc(2000, 1, 1)) % SIZES[grain] == timedelta(0)


@given(MOMENTS, st.timedeltas(timedelta(0), 900 * DAY) | st.timedeltas(timedelta(0), 2 * HOUR))
def test_pieces_cover_exactly_and_in_order(start: datetime, length: timedelta) -> None:
    end = start + length
    pieces = cover(start, end)
    # Each begins where the one before ends, the first at the start, the last ends at the end.
    assert [*(piece.start for piece in pieces), end] == [start, *(piece.end for piece in pieces)]
    assert all(piece.start < piece.end for piece in pieces)
    for piece in pieces:
        if piece.grain is Grain.RAW:
            assert piece.end - piece.start < timedelta(minutes=30)
        else:
            assert is_whole(piece.start, piece.grain)
            assert is_whole(piece.end, piece.grain)
    # Coarse in the middle, fine towards the ends: at most seven, at most two of them rows.
    order = [list(Grain).index(piece.grain) for piece in pieces]
    peak = order.index(max(order)) if order else 0
    assert order[: peak + 1] == sorted(set(order[: peak + 1]))
    assert order[peak:] == sorted(set(order[peak:]), reverse=True)
    # No finer piece holds a whole rollup of a coarser grain.
    for piece in pieces:
        if piece.grain in (Grain.RAW, Grain.QUARTER):
            coarser = Grain.QUARTER if piece.grain is Grain.RAW else Grain.DAY
            first = utc(2000, 1, 1) - (utc(2000, 1, 1) - piece.start) // SIZES[coarser] * SIZES[coarser]
            assert first + SIZES[coarser] > piece.end
        if piece.grain is Grain.DAY:
            assert (piece.end - piece.start).days < 61


def test_whole_months_are_one_piece_and_a_ragged_year_seven() -> None:
    assert [piece.grain for piece in cover(utc(2025, 1, 1), utc(2026, 1, 1))] == [Grain.MONTH]
    assert [(piece.grain, piece.start) for piece in cover(utc(2025, 1, 1, 5, 1), utc(2026, 3, 4, 5, 46))] == [
        (Grain.RAW, utc(2025, 1, 1, 5, 1)),
        (Grain.QUARTER, utc(2025, 1, 1, 5, 15)),
        (Grain.DAY, utc(2025, 1, 2)),
        (Grain.MONTH, utc(2025, 2, 1)),
        (Grain.DAY, utc(2026, 3, 1)),
        (Grain.QUARTER, utc(2026, 3, 4)),
        (Grain.RAW, utc(2026, 3, 4, 5, 45)),
    ]


@settings(max_examples=40)
@given(MOMENTS, ZONES)
def test_days_of_every_zone_of_today_need_no_rows(now: datetime, zone: str) -> None:
    """Offsets are whole quarters of an hour, so that only what ends now is ragged."""
    day = now.astimezone(zones.zone(zone)).date()
    start, end = zones.midnight(day, zones.zone(zone)), zones.midnight(day + DAY, zones.zone(zone))
    assert all(piece.grain is not Grain.RAW for piece in cover(start, end))
