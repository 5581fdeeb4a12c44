"""Billing periods: months, quarters or years, by the calendar or from the anniversary of an anchor.

Periods tile time: each is half-open, [start, end) in UTC, and ends where the next one begins.
"""

from calendar import monthrange
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from services.kit import zones
from services.kit.errors import InvalidArgument
from services.metering.domain.price_book import PeriodUnit

UTC_ZONE = "UTC"

_MONTHS: Mapping[PeriodUnit, int] = {PeriodUnit.MONTH: 1, PeriodUnit.QUARTER: 3, PeriodUnit.YEAR: 12}
# A calendar period is the anniversary of a day on which a year begins, and so a quarter and a month.
_CALENDAR_ANCHOR = datetime(2000, 1, 1)  # noqa: DTZ001 - local time of any zone


@dataclass(frozen=True, slots=True)
class Period:
    """From `start` until `end`, exclusive; both in UTC."""

    start: datetime
    end: datetime

    def contains(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    @property
    def seconds(self) -> int:
        """How long it is. A month in which clocks change is an hour longer or shorter than its days."""
        return int((self.end - self.start).total_seconds())


@dataclass(frozen=True, slots=True)
class BillingPeriod:
    """How a customer's periods are cut.

    Without an anchor they are those of the calendar in the time zone: they begin at midnight, local time, on
    the first of a month, of January, April, July and October, or of January. With an anchor they begin on its
    day and time of day, local time: an anchor of the 31st begins a period on the last day of a shorter month,
    and on the 31st again in the next one that has it.
    """

    unit: PeriodUnit = PeriodUnit.MONTH
    # An aware time in whole seconds.
    anchor: datetime | None = None
    # Name of the IANA time zone.
    time_zone: str = UTC_ZONE

    def period_containing(self, moment: datetime) -> Period:
        """Return the period that the moment, an aware time from the year 2 to 9997, lies in."""
        local = moment.astimezone(zones.zone(self.time_zone))
        anchor = self._local_anchor()
        step = _MONTHS[self.unit]
        number = ((local.year - anchor.year) * 12 + local.month - anchor.month) // step
        # Within the month of a boundary, the day and the time decide.
        start = self._start(number)
        if moment < start:
            return Period(self._start(number - 1), start)
        end = self._start(number + 1)
        if moment >= end:
            return Period(end, self._start(number + 2))
        return Period(start, end)

    def next(self, period: Period) -> Period:
        """Return the period that follows one of these, without a gap."""
        following = self.period_containing(period.end)
        if following.start == period.end:
            return following
        # The rules of the time zone were changed since that one was cut: its end is no boundary any more.
        # What is left of the period that it lies in is the next one, or a part of that if it is little.
        if following.end - period.end < following.length / 2:
            following = self.period_containing(following.end)
        return Period(period.end, following.end)

    def _local_anchor(self) -> datetime:
        if self.anchor is None:
            return _CALENDAR_ANCHOR
        return self.anchor.astimezone(zones.zone(self.time_zone)).replace(tzinfo=None)

    def _start(self, number: int) -> datetime:
        return _nth_start(self._local_anchor(), number * _MONTHS[self.unit], self.time_zone)


MONTH_IN_UTC = BillingPeriod()


def check_billing_period(billing_period: BillingPeriod, *, field: str) -> None:
    """Raise InvalidArgument unless the time zone is known and the anchor in whole seconds."""
    if not zones.is_zone(billing_period.time_zone):
        raise InvalidArgument.of(
            f"{field}.time_zone", "must be the name of an IANA time zone, such as Europe/Rome"
        )
    anchor = billing_period.anchor
    if anchor is not None and (anchor.microsecond or not 1970 <= anchor.year < 9000):
        raise InvalidArgument.of(f"{field}.anchor_time", "must be in whole seconds, and not before 1970")


@lru_cache(maxsize=4096)
def _nth_start(anchor: datetime, months: int, time_zone: str) -> datetime:
    """Return when the anchor's day and time of day come so many months later, in UTC.

    A local time that a change of clocks leaves out is that change's length later; of one that comes twice,
    the first is meant: both are what `fold=0` says.
    """
    year, month = divmod(anchor.year * 12 + anchor.month - 1 + months, 12)
    last_day = monthrange(year, month + 1)[1]
    local = anchor.replace(year=year, month=month + 1, day=min(anchor.day, last_day), fold=0)
    return local.replace(tzinfo=zones.zone(time_zone)).astimezone(UTC)
