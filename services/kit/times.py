"""Times between the contract and the domain."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import FieldViolation, InvalidArgument

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NANOS_PER_SECOND: Final = 1_000_000_000
# Of the years 1 to 9999, as the contract of Timestamp says.
_FIRST_SECOND: Final = -62_135_596_800
_LAST_SECOND: Final = 253_402_300_799


def time_from_proto(message: Any, field: str) -> datetime:
    """The time in a required field, in UTC; raises InvalidArgument naming the field."""
    if not message.HasField(field):
        raise InvalidArgument.of(field, "is required")
    timestamp: Timestamp = getattr(message, field)
    seconds, nanos = timestamp.seconds, timestamp.nanos
    if not (_FIRST_SECOND <= seconds <= _LAST_SECOND and 0 <= nanos < _NANOS_PER_SECOND):
        raise InvalidArgument.of(field, "is not a valid time")
    # What Timestamp.ToDatetime answers, in a quarter of its time.
    return _EPOCH + timedelta(0, seconds, nanos // 1_000)


def optional_time_from_proto(message: Any, field: str) -> datetime | None:
    """The time in a field that may be unset; raises InvalidArgument naming the field."""
    return time_from_proto(message, field) if message.HasField(field) else None


def time_from_page_key(part: str | int) -> datetime:
    """The time in a page token. Raises InvalidArgument for what is none."""
    try:
        return datetime.fromisoformat(str(part)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            "page_token is damaged",
            reason="INVALID_PAGE_TOKEN",
            field_violations=[FieldViolation("page_token", "is damaged")],
        ) from None


def timestamp(moment: datetime) -> Timestamp:
    """A time as it travels."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def set_timestamp(message: Timestamp, moment: datetime) -> None:
    """Say a time in a message that is there already; Timestamp.FromDatetime takes seven times as long."""
    since = moment - _EPOCH
    message.seconds = since.days * 86_400 + since.seconds
    message.nanos = since.microseconds * 1_000


def set_micros(message: Timestamp, micros: int) -> None:
    """The same for micros since 1970."""
    message.seconds, rest = divmod(micros, 1_000_000)
    message.nanos = rest * 1_000


def optional_timestamp(moment: datetime | None) -> Timestamp | None:
    """A time that may be unset as it travels."""
    return None if moment is None else timestamp(moment)
