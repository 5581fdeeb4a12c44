"""Times between the contract and the domain."""

from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import FieldViolation, InvalidArgument

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def time_from_proto(message: Any, field: str) -> datetime:
    """The time in a required field, in UTC; raises InvalidArgument naming the field."""
    if not message.HasField(field):
        raise InvalidArgument.of(field, "is required")
    timestamp: Timestamp = getattr(message, field)
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument.of(field, "is not a valid time") from None


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


def optional_timestamp(moment: datetime | None) -> Timestamp | None:
    """A time that may be unset as it travels."""
    return None if moment is None else timestamp(moment)
