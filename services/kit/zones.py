"""Time zones, which only move where a day or a month begins."""

import re
from datetime import UTC, date, datetime, time, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

# Names that the tz database gives to files of one machine, to variants with leap seconds, and to no place.
_NO_ZONES: Final = frozenset({"Factory", "localtime", "posixrules"})
_ZONE_NAME: Final = re.compile(r"(?!posix/|right/)[A-Za-z][A-Za-z0-9_+/-]{0,63}", re.ASCII)


def zone(name: str) -> tzinfo:
    """The zone with this IANA name. Raises for a name of which `is_zone` is False."""
    # Without a look at the tz database: it is always there.
    return UTC if name == "UTC" else ZoneInfo(name)


def is_zone(name: str) -> bool:
    """Whether a caller's text is the IANA name of a time zone."""
    if name in _NO_ZONES or not _ZONE_NAME.fullmatch(name):
        return False
    try:
        zone(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # A folder of the database, or a file that is not a zone.
        return False
    return True


def midnight(day: date, where: tzinfo) -> datetime:
    """The begin of a day, in UTC.

    Of a midnight that comes twice, the first; of one that is skipped, the moment of the skip.
    """
    return datetime.combine(day, time.min, where).astimezone(UTC)
