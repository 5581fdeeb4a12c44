"""When organizations are paid by themselves, and for which days.

A run pays what was earned before a day. Wednesday's pays what was earned until the end of the Sunday before,
so there are two days for charges that come late.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Final

from services.kit import zones
from services.kit.errors import InvalidArgument

_WEDNESDAY: Final = 2
# Days between the end of what a weekly or monthly run pays, and the run.
_LAG: Final = timedelta(days=2)
_ONE_DAY: Final = timedelta(days=1)


class Interval(StrEnum):
    """How often; values as in the table."""

    MANUAL = "manual"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A row of payouts.payout_schedule."""

    organization_id: str
    interval: Interval = Interval.WEEKLY
    time_zone: str = "UTC"
    # Micros by currency.
    minimums: Mapping[str, int] = field(default_factory=dict)
    next_run_time: datetime | None = None
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a schedule."""

    time: datetime
    # It pays what was earned before this day, in UTC.
    earned_before: date


def next_run(schedule: Schedule, after: datetime) -> Run | None:
    """The first run after a moment; None for a schedule that never runs."""
    if schedule.interval is Interval.MANUAL:
        return None
    zone = zones.zone(schedule.time_zone)
    day = after.astimezone(zone).date()
    # A month ahead there is one of every kind.
    while True:
        if _is_run_day(schedule.interval, day) and (moment := zones.midnight(day, zone)) > after:
            return Run(moment, _earned_before(schedule.interval, day, moment))
        day += _ONE_DAY


def latest_run(schedule: Schedule, now: datetime) -> Run | None:
    """The last run that is due; None if none is. After an outage one run pays for all that were missed."""
    if schedule.next_run_time is None or schedule.next_run_time > now:
        return None
    # From the microsecond before the first that is due, which so is found too.
    run = next_run(schedule, schedule.next_run_time - timedelta(microseconds=1))
    while run is not None and (later := next_run(schedule, run.time)) is not None and later.time <= now:
        run = later
    return run if run is not None and run.time <= now else None


def check_time_zone(name: str) -> str:
    """`name`, if it is an IANA time zone, and "UTC" for ""; raises InvalidArgument otherwise."""
    if name and not zones.is_zone(name):
        raise InvalidArgument.of(
            "schedule.time_zone", "must be the IANA name of a time zone, such as Europe/Berlin, or empty"
        )
    return name or "UTC"


def _is_run_day(interval: Interval, day: date) -> bool:
    match interval:
        case Interval.DAILY:
            return True
        case Interval.WEEKLY:
            return day.weekday() == _WEDNESDAY
        case _:
            return day.day == 1 + _LAG.days


def _earned_before(interval: Interval, day: date, moment: datetime) -> date:
    if interval is Interval.DAILY:
        # East of Greenwich a day begins while the UTC day before it is not over: that one is for the next
        # run.
        return min(day, moment.astimezone(UTC).date())
    return day - _LAG
