"""Times as somebody types them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from tallystick.cli.failures import Misuse

_SPAN = re.compile(r"(\d{1,5})([hd])")


def moment_of(text: str, *, option: str, now: datetime) -> datetime:
    """A span from now (12h, 90d), a date or a time, UTC unless it says. Raises Misuse, naming the option."""
    if span := _SPAN.fullmatch(text):
        number = int(span[1])
        return now + (timedelta(hours=number) if span[2] == "h" else timedelta(days=number))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Misuse(f"{option} {text} is no time; do: give 12h, 90d, or 2027-01-31") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
