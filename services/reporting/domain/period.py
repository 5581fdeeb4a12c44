"""The time that a report is about, its steps, and the rollups that cover it.

Days and months are those of the reader's time zone, rollups those of UTC: a period is a pair of moments, and
is covered by whatever rollups fit between them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Final

from services.kit import zones
from services.kit.errors import InvalidArgument

DEFAULT_NAME: Final = "30d"
MONTH_TO_DATE: Final = "mtd"
MAX_STEPS: Final = 1500

# Ten years, with their leap days.
_LONGEST: Final = timedelta(days=3653)
_LONGEST_HOURS: Final = _LONGEST // timedelta(hours=1)
_LONGEST_MONTHS: Final = 120
_FIRST_YEAR: Final = 1970
_LAST_YEAR: Final = 2199
_EARLIEST: Final = datetime(_FIRST_YEAR, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(_LAST_YEAR + 1, 1, 1, tzinfo=UTC)

_HOURS_UP_TO: Final = timedelta(days=3)
# The longest three months.
_DAYS_UP_TO: Final = timedelta(days=92)

_ONE_MICROSECOND: Final = timedelta(microseconds=1)
_ONE_SECOND: Final = timedelta(seconds=1)
_ONE_HOUR: Final = timedelta(hours=1)
_ONE_DAY: Final = timedelta(days=1)

_SPAN: Final = re.compile(r"([1-9][0-9]{0,4})([hdm])", re.ASCII)
_CALENDAR: Final = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2}))?)?", re.ASCII)
_NAME_RULE: Final = (
    'must be "today", "mtd", a number of hours, days or months such as "24h", "30d" or "12m",'
    ' or a year, month or day such as "2026", "2026-11" or "2026-11-29"'
)


class Interval(StrEnum):
    """How long the steps of a series are, in the time zone of the period."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Grain(StrEnum):
    """What a piece of time is read from: rows, or rollups of so much time, which begin with it in UTC."""

    RAW = "raw"
    QUARTER = "quarter"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Period:
    """From `start` to before `end`, both in UTC; `start` is before `end`."""

    start: datetime
    end: datetime
    time_zone: str = "UTC"

    @property
    def zone(self) -> tzinfo:
        """The time zone in which its days and months begin."""
        return zones.zone(self.time_zone)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a time that is read from rollups of one grain, all of them whole, or from rows."""

    grain: Grain
    start: datetime
    end: datetime


def parse(
    name: str,
    start: datetime | None,
    end: datetime | None,
    time_zone: str,
    *,
    now: datetime,
    default: str = DEFAULT_NAME,
    field: str = "period",
) -> Period:
    """The period that a caller asks for: by name, or by both times, or `default`.

    Raises InvalidArgument naming the part of `field`.
    """
    time_zone = check_time_zone(time_zone, field=f"{field}.time_zone")
    if start is None and end is None:
        return named(name or default, time_zone, now=now, field=f"{field}.name")
    if name:
        raise InvalidArgument.of(f"{field}.name", "must be empty if times are given")
    if start is None or end is None:
        missing = "start_time" if start is None else "end_time"
        raise InvalidArgument.of(f"{field}.{missing}", "is required if the other time is given")
    return between(start, end, time_zone, field=field)


def named(name: str, time_zone: str, *, now: datetime, field: str = "period.name") -> Period:
    """The period with this name. Raises InvalidArgument naming `field`.

    One up to now begins with an hour, day or month of the zone, and `now` is the last moment of it: so the
    hour, day or month that begins at this very moment is in it, too. A year, a month or a day ends with
    itself, even if that is still to come.
    """
    zone = zones.zone(time_zone)
    if calendar := _CALENDAR.fullmatch(name):
        start, end = _calendar(calendar, zone, field)
        return Period(start, end, time_zone)
    today = now.astimezone(zone).date()
    if name == "today":
        start = zones.midnight(today, zone)
    elif name == MONTH_TO_DATE:
        start = zones.midnight(today.replace(day=1), zone)
    elif span := _SPAN.fullmatch(name):
        start = _begin_of_span(int(span[1]), span[2], now, zone, field)
    else:
        raise InvalidArgument.of(field, _NAME_RULE)
    return Period(start, max(now.astimezone(UTC), start) + _ONE_MICROSECOND, time_zone)


def between(start: datetime, end: datetime, time_zone: str, *, field: str = "period") -> Period:
    """The period between two moments. Raises InvalidArgument naming the part of `field`."""
    for moment, part in ((start, "start_time"), (end, "end_time")):
        if not _EARLIEST <= moment <= _LATEST:
            raise InvalidArgument.of(f"{field}.{part}", f"must be from {_FIRST_YEAR} to {_LAST_YEAR}")
    if start >= end:
        raise InvalidArgument.of(f"{field}.end_time", "must be after start_time")
    if end - start > _LONGEST:
        raise InvalidArgument.of(f"{field}.end_time", "must be at most ten years after start_time")
    return Period(start.astimezone(UTC), end.astimezone(UTC), time_zone)


def check_time_zone(name: str, *, field: str = "time_zone") -> str:
    """`name`, if it is an IANA time zone, and "UTC" for "".

    Raises InvalidArgument naming `field` otherwise.
    """
    if name and not zones.is_zone(name):
        raise InvalidArgument.of(
            field, "must be the IANA name of a time zone, such as Europe/Berlin, or empty"
        )
    return name or "UTC"


def suitable_interval(period: Period) -> Interval:
    """Hours up to three days, days up to three months, months above: by the clock on the wall."""
    start, end = (
        moment.astimezone(period.zone).replace(tzinfo=None) for moment in (period.start, period.end)
    )
    wall = end - start
    if wall <= _HOURS_UP_TO:
        return Interval.HOUR
    return Interval.DAY if wall <= _DAYS_UP_TO else Interval.MONTH


def steps(period: Period, interval: Interval, *, field: str = "interval") -> list[datetime]:
    """When the steps of a period begin, in UTC. Each ends where the next one begins, the last with it.

    The first begins with the period, be it in the middle of an hour, day or month. Raises InvalidArgument
    naming `field` for more than MAX_STEPS.
    """
    found = [period.start]
    for begin in _begins_after(period.start, interval, period.zone):
        if begin >= period.end:
            return found
        if len(found) == MAX_STEPS:
            break
        found.append(begin)
    raise InvalidArgument.of(field, f"makes more than {MAX_STEPS} steps of this period: take a longer one")


def month_begins(count: int, time_zone: str, *, now: datetime) -> list[datetime]:
    """When the last `count` months began, in UTC, the current one last."""
    zone = zones.zone(time_zone)
    first = now.astimezone(zone).date().replace(day=1)
    return [zones.midnight(_months_later(first, -back), zone) for back in reversed(range(count))]


def month_to_date(time_zone: str, *, now: datetime) -> Period:
    """The current month so far."""
    return named(MONTH_TO_DATE, time_zone, now=now)


def previous_month_to_date(time_zone: str, *, now: datetime) -> Period:
    """The month before, as long as the current one is old; all of it if it was shorter."""
    current = month_to_date(time_zone, now=now)
    before, _ = month_begins(2, time_zone, now=now)
    return Period(before, min(before + (current.end - current.start), current.start), time_zone)


def cover(start: datetime, end: datetime) -> list[Piece]:
    """The pieces that make up the time from `start` to before `end`, in order and without gaps.

    The coarsest rollups that fit, so at most seven pieces: rows, quarter hours, days, months, days, quarter
    hours, rows. Rows are read for what whole quarter hours do not cover: less than half an hour in one piece,
    or less than a quarter at either end. Months, days and quarter hours are those of UTC.
    """
    return list(_cover(start.astimezone(UTC), end.astimezone(UTC), (Grain.MONTH, Grain.DAY, Grain.QUARTER)))


def _cover(start: datetime, end: datetime, grains: tuple[Grain, ...]) -> Iterator[Piece]:
    if start >= end:
        return
    if not grains:
        yield Piece(Grain.RAW, start, end)
        return
    grain, *finer = grains
    last = _floor(end, grain)
    first = _floor(start, grain)
    if first < start:
        first = _next(first, grain)
    if first >= last:
        yield from _cover(start, end, tuple(finer))
        return
    yield from _cover(start, first, tuple(finer))
    yield Piece(grain, first, last)
    yield from _cover(last, end, tuple(finer))


def _floor(moment: datetime, grain: Grain) -> datetime:
    """When the rollup of a moment begins."""
    match grain:
        case Grain.MONTH:
            return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        case Grain.DAY:
            return moment.replace(hour=0, minute=0, second=0, microsecond=0)
        case _:
            return moment.replace(minute=moment.minute - moment.minute % 15, second=0, microsecond=0)


def _next(begin: datetime, grain: Grain) -> datetime:
    """When the rollup after one that begins then begins."""
    match grain:
        case Grain.MONTH:
            return _floor(begin + timedelta(days=31), grain)
        case Grain.DAY:
            return begin + _ONE_DAY
        case _:
            return begin + timedelta(minutes=15)


def _calendar(parts: re.Match[str], zone: tzinfo, field: str) -> tuple[datetime, datetime]:
    """The begin and the end of a year, a month or a day."""
    year, month, day = parts.groups()
    try:
        first = date(int(year), int(month or 1), int(day or 1))
    except ValueError:
        raise InvalidArgument.of(field, "is no day of the calendar") from None
    if not _FIRST_YEAR <= first.year <= _LAST_YEAR:
        raise InvalidArgument.of(field, f"must be from {_FIRST_YEAR} to {_LAST_YEAR}")
    after = first + _ONE_DAY if day else _months_later(first, 1 if month else 12)
    start, end = zones.midnight(first, zone), zones.midnight(after, zone)
    if start == end:
        # The islands that crossed the date line left a day out.
        raise InvalidArgument.of(field, "is a day that this time zone has left out")
    return start, end


def _begin_of_span(count: int, unit: str, now: datetime, zone: tzinfo, field: str) -> datetime:
    """When so many hours, days or months began, the current one included."""
    longest = {"h": _LONGEST_HOURS, "d": _LONGEST.days, "m": _LONGEST_MONTHS}[unit]
    if count > longest:
        raise InvalidArgument.of(field, f"must be at most {longest}{unit}: ten years")
    today = now.astimezone(zone).date()
    match unit:
        case "h":
            return _begin_of_hour(_begin_of_hour(now, zone) - (count - 1) * _ONE_HOUR, zone)
        case "d":
            return zones.midnight(today - (count - 1) * _ONE_DAY, zone)
        case _:
            return zones.midnight(_months_later(today.replace(day=1), 1 - count), zone)


def _begins_after(moment: datetime, interval: Interval, zone: tzinfo) -> Iterator[datetime]:
    """When hours, days or months begin after a moment, without end."""
    if interval is Interval.HOUR:
        while True:
            moment = _next_hour(moment, zone)
            yield moment
    day = moment.astimezone(zone).date()
    if interval is Interval.MONTH:
        day = day.replace(day=1)
    while True:
        day = _months_later(day, 1) if interval is Interval.MONTH else day + _ONE_DAY
        # A day that was left out at the date line has no length.
        if (begin := zones.midnight(day, zone)) > moment:
            moment = begin
            yield begin


def _next_hour(moment: datetime, zone: tzinfo) -> datetime:
    """When the clock next shows a full hour, or is next put forward or back, in UTC.

    So no step has two hours in it: an hour that comes twice is two steps, and where the clock is put by half
    an hour, one step is half an hour long.
    """
    local = moment.astimezone(zone)
    full = moment - _past_hour(local) + _ONE_HOUR
    return _first_change(moment, full, zone) or full


def _begin_of_hour(moment: datetime, zone: tzinfo) -> datetime:
    """When the step of hours that has this moment begins, in UTC."""
    moment = moment.astimezone(UTC)
    full = moment - _past_hour(moment.astimezone(zone))
    return _first_change(full, moment, zone) or full


def _past_hour(local: datetime) -> timedelta:
    return timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)


def _first_change(start: datetime, end: datetime, zone: tzinfo) -> datetime | None:
    """When the clock is put after `start` and up to `end`, an hour later at most; None if it is not."""
    before = start.astimezone(zone).utcoffset()
    if end.astimezone(zone).utcoffset() == before:
        return None
    # Clocks are put at full seconds.
    low = start.replace(microsecond=0)
    high = end if end.microsecond == 0 else end.replace(microsecond=0) + _ONE_SECOND
    while high - low > _ONE_SECOND:
        middle = low + (high - low) // _ONE_SECOND // 2 * _ONE_SECOND
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


def _months_later(first: date, count: int) -> date:
    """The first day of the month so many months after the one of `first`."""
    months = first.year * 12 + first.month - 1 + count
    return date(months // 12, months % 12 + 1, 1)
