"""The spans of time that pages offer."""

from typing import Final, NamedTuple

from services.reporting.web.site import Visit
from tallystick.reporting.v1 import period_pb2


class Choice(NamedTuple):
    """A span of time, with the steps that suit it."""

    name: str
    label: str
    interval: period_pb2.Interval.ValueType
    step: str


CHOICES: Final = (
    Choice("24h", "24 hours", period_pb2.INTERVAL_HOUR, "hour"),
    Choice("7d", "7 days", period_pb2.INTERVAL_DAY, "day"),
    Choice("30d", "30 days", period_pb2.INTERVAL_DAY, "day"),
    Choice("12m", "12 months", period_pb2.INTERVAL_MONTH, "month"),
)
_BY_NAME: Final = {choice.name: choice for choice in CHOICES}
_DEFAULT: Final = _BY_NAME["30d"]


def chosen(visit: Visit) -> Choice:
    """What the address asks for; the default for anything else."""
    return _BY_NAME.get(visit.request.query_params.get("period", ""), _DEFAULT)


def period(visit: Visit, choice: Choice) -> period_pb2.Period:
    """The same for reporting, in the reader's time zone."""
    return period_pb2.Period(name=choice.name, time_zone=visit.session.time_zone)
