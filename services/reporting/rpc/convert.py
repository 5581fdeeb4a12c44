"""Between the contract and the domain: what all reports share."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.clock import Clock
from services.kit.errors import InvalidArgument
from services.kit.money import check_currency
from services.kit.times import optional_timestamp
from services.reporting.domain import period as periods
from services.reporting.domain.period import DEFAULT_NAME, Interval, Period
from services.reporting.store.snapshots import Known
from services.reporting.store.spans import Span
from tallystick.common.v1 import money_pb2
from tallystick.reporting.v1 import period_pb2

DEFAULT_CURRENCY: Final = "USD"

_INTERVALS_TO_PROTO: Final = {
    Interval.HOUR: period_pb2.INTERVAL_HOUR,
    Interval.DAY: period_pb2.INTERVAL_DAY,
    Interval.MONTH: period_pb2.INTERVAL_MONTH,
}
_INTERVALS_FROM_PROTO: Final[Mapping[int, Interval]] = {
    number: interval for interval, number in _INTERVALS_TO_PROTO.items()
}


def money(currency_code: str, amount: int) -> money_pb2.Money:
    """An amount as it travels."""
    return money_pb2.Money(currency_code=currency_code, amount_micros=amount)


def currency_of(code: str) -> str:
    """The currency of a report: USD when empty. Raises InvalidArgument."""
    return check_currency(code or DEFAULT_CURRENCY)


def limit_from_proto(limit: int, *, field: str, default: int, most: int) -> int:
    """A number of groups or months, `default` for zero. Raises InvalidArgument naming the field."""
    if not 0 <= limit <= most:
        raise InvalidArgument.of(field, f"must be from 0 to {most}")
    return limit or default


def period_from_proto(message: period_pb2.Period, clock: Clock, *, default: str = DEFAULT_NAME) -> Period:
    """The period that a caller asks for, `default` if it says nothing. Raises InvalidArgument."""
    return periods.parse(
        message.name,
        _time(message.start_time, "period.start_time") if message.HasField("start_time") else None,
        _time(message.end_time, "period.end_time") if message.HasField("end_time") else None,
        message.time_zone,
        now=clock.now(),
        default=default,
    )


def says_nothing(message: period_pb2.Period) -> bool:
    """Whether a period names no time."""
    return not (message.name or message.HasField("start_time") or message.HasField("end_time"))


def interval_from_proto(number: int, period: Period) -> Interval:
    """How long steps are, one that suits the period if unspecified. Raises InvalidArgument."""
    if number == period_pb2.INTERVAL_UNSPECIFIED:
        return periods.suitable_interval(period)
    if number not in _INTERVALS_FROM_PROTO:
        raise InvalidArgument.of("interval", "must be a known interval")
    return _INTERVALS_FROM_PROTO[number]


def interval_to_proto(interval: Interval) -> period_pb2.Interval.ValueType:
    """An interval as it travels."""
    return _INTERVALS_TO_PROTO[interval]


def steps_of(period: Period, interval: Interval) -> list[Span]:
    """The steps of a period. Raises InvalidArgument for too many."""
    begins = periods.steps(period, interval)
    return list(zip(begins, [*begins[1:], period.end], strict=True))


def as_of_to_proto(known: Known) -> period_pb2.AsOf:
    """What an answer knows."""
    return period_pb2.AsOf(
        journal_position=known.journal_position,
        usage_position=known.usage_position,
        time=optional_timestamp(known.time),
    )


def _time(message: Timestamp, field: str) -> datetime:
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument.of(field, "is not a valid time") from None
