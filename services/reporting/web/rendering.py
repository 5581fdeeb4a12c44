"""Pages from templates. What is put into them is escaped; amounts are shown to the last micro."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from google.protobuf.timestamp_pb2 import Timestamp
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from services.kit.money import MICROS_PER_UNIT, MINOR_UNIT_DIGITS
from services.reporting.web import charts, words
from services.reporting.web.statics import StaticFiles
from tallystick.common.v1 import money_pb2

_TEMPLATES: Final = Path(__file__).parent / "templates"
_MICRO_DIGITS: Final = 6
_MONTHS: Final = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


@cache
def make_environment(statics: StaticFiles) -> Environment:
    """Templates that fail on anything they are not given, and escape everything they are."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        money=money,
        exact=exact,
        count=count,
        percent=percent,
        path=path,
        minus=minus,
        moment=moment,
        day=day,
        clock=clock,
        span=span,
    )
    environment.globals.update(words=words, bars=charts.bars, static=statics.url)
    for name in environment.list_templates():
        # Now, so that nobody waits for it.
        environment.get_template(name)
    return environment


def money(amount: money_pb2.Money) -> Markup:
    """An amount for a headline: what is below the minor unit stands smaller, and only if there is any."""
    return _money(amount, pad=False)


def exact(amount: money_pb2.Money) -> Markup:
    """An amount for a column of a table: all digits, so that points stand below each other."""
    return _money(amount, pad=True)


def _money(amount: money_pb2.Money, *, pad: bool) -> Markup:
    # An amount that was left out of an answer is zero of no currency.
    digits = MINOR_UNIT_DIGITS.get(amount.currency_code, 2)
    sign = "\u2212" if amount.amount_micros < 0 else ""
    units, fraction = divmod(abs(amount.amount_micros), MICROS_PER_UNIT)
    decimals = f"{fraction:0{_MICRO_DIGITS}d}"
    minor, rest = decimals[:digits], decimals[digits:]
    if not pad:
        rest = rest.rstrip("0")
    if rest and not digits:
        rest = f".{rest}"
    # Put together without escaping, on which a page of figures would spend most of its time: it is digits.
    small = f'<span class="micro">{rest}</span>' if rest else ""
    value = f"{'-' if sign else ''}{units}.{decimals}"
    shown = f"{sign}{units:,}{'.' if digits else ''}{minor}{small}"
    return Markup(f'<data class="money{" negative" if sign else ""}" value="{value}">{shown}</data>')  # noqa: S704


def minus(amount: money_pb2.Money) -> money_pb2.Money:
    """What is taken off: the amount with the other sign."""
    return money_pb2.Money(currency_code=amount.currency_code, amount_micros=-amount.amount_micros)


def count(number: int) -> str:
    """12,345."""
    return f"{number:,}".replace("-", "\u2212")


def percent(bps: int) -> str:
    """Basis points as a percentage: 1234 is 12.3 %. Rounded down, as they came."""
    sign = "\u2212" if bps < 0 else ""
    whole, rest = divmod(abs(bps), 100)
    return f"{sign}{whole}.{rest // 10}\u00a0%"


def path(text: str) -> str:
    """A text as one step of a URL's path, whatever is in it."""
    return quote(text, safe="")


def moment(time: Timestamp, zone: tzinfo) -> Markup:
    """A day and a time of day, "29 Nov 2026, 14:03", in the reader's zone."""
    at = _at(time, zone)
    return _time(at, f"{at.day} {_MONTHS[at.month - 1]} {at.year}, {at:%H:%M}")


def clock(time: Timestamp, zone: tzinfo) -> Markup:
    """A time of day with seconds."""
    at = _at(time, zone)
    return _time(at, f"{at:%H:%M:%S}")


def day(time: Timestamp, zone: tzinfo, interval: str = "day") -> Markup:
    """The begin of a step of a series: "29 Nov", "29 Nov, 14:00" or "Nov 2026"."""
    at = _at(time, zone)
    month = _MONTHS[at.month - 1]
    text = {
        "hour": f"{at.day} {month}, {at:%H:%M}",
        "day": f"{at.day} {month}",
        "month": f"{month} {at.year}",
    }[interval]
    return _time(at, text)


def span(delta: timedelta) -> str:
    """How long something takes or is: "350 ms", "12 s", "3 min", "5 h", "2 days"."""
    milliseconds = delta // timedelta(milliseconds=1)
    if milliseconds < 1_000:
        return f"{milliseconds} ms"
    for unit, size in (("s", 1_000), ("min", 60_000), ("h", 3_600_000)):
        if milliseconds < size * {"s": 120, "min": 120, "h": 48}[unit]:
            return f"{milliseconds // size} {unit}"
    return f"{delta.days} days"


def _at(time: Timestamp, zone: tzinfo) -> datetime:
    return time.ToDatetime(tzinfo=UTC).astimezone(zone)


def _time(at: datetime, text: str) -> Markup:
    # Digits and names of months; the name of a zone is the only text that is not from here.
    full = escape(f"{at.isoformat(timespec='seconds')} {at.tzname()}")
    utc = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Markup(f'<time datetime="{utc}" title="{full}">{text}</time>')  # noqa: S704


def render(environment: Environment, name: str, context: Mapping[str, Any]) -> str:
    """The text of a page."""
    return environment.get_template(name).render(context)
