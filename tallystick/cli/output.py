"""What commands print: tables for people, JSON for programs, both from one answer.

An amount is exact in both: in tables with all six decimals, in JSON as a decimal in a string.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, TextIO, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tallystick.money import Money

_WIDTH: Final = 1_000
_STYLES: Final = {"✓": "green", "✗": "bold red", "–": "dim"}
# Of rows that begin so: what is added, removed or changed.
_ROW_STYLES: Final = {"+": "green", "-": "red", "~": "yellow"}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts. Columns whose name begins with ">" are aligned to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: Sequence[str] | None = None
    empty: str = "none"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, one a line."""

    title: str
    rows: Sequence[tuple[str, str]]


# A text stands for itself.
Part: TypeAlias = Table | Facts | str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found: as data, and as a person reads it."""

    data: object
    parts: Sequence[Part]
    exit_status: int = 0


def show(answer: Answer, *, as_json: bool, out: TextIO) -> None:
    """Print an answer."""
    if as_json:
        out.write(json.dumps(plain(answer.data), indent=2, ensure_ascii=False) + "\n")
        return
    # Wide enough for every line: what is cut or folded cannot be copied. A terminal wraps by itself.
    console = Console(file=out, width=_WIDTH, highlight=False)
    with console.capture() as captured:
        for number, part in enumerate(answer.parts):
            if number:
                console.print()
            console.print(_rendered(part), soft_wrap=isinstance(part, str), crop=False)
    # Columns are filled up with blanks that nobody wants to copy either.
    out.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses as objects, money and decimals as exact texts, times in UTC."""
    if isinstance(value, Money):
        return {"currency": value.currency, "amount": str(value.decimal)}
    if isinstance(value, Decimal):
        return decimal(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def printable(line: str) -> str:
    """A text on one line, with escapes for what would steer a terminal instead of being seen on it.

    Some of what is shown comes from files and from other people.
    """
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


def decimal(number: Decimal) -> str:
    """A number in full: 0.00000012, not 1.2E-7."""
    return f"{number:f}"


def amount(money: Money) -> str:
    """An amount in full, for a column that names its currency: "1,234.567890"."""
    return f"{money.decimal:,.6f}"


def money(money: Money) -> str:
    """An amount in full, with its currency: "1,234.567890 USD"."""
    return f"{amount(money)} {money.currency}"


def count(number: int) -> str:
    """1,234,567."""
    return f"{number:,}"


def percent(basis_points: int | None) -> str:
    """Basis points as "66.66 %"; "–" if there are none."""
    return "–" if basis_points is None else f"{basis_points // 100}.{basis_points % 100:02} %"


def moment(time: datetime | None) -> str:
    """A time to the second, in UTC; "–" if there is none."""
    return "–" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def period(start: datetime | None, end: datetime | None) -> str:
    """From a time to another one, in UTC."""
    return f"{moment(start)} to {moment(end)}"


def local(time: datetime, time_zone: str) -> datetime:
    """A time as a reader in this time zone has it; in UTC where the machine does not know the zone."""
    try:
        return time.astimezone(ZoneInfo(time_zone))
    except (ZoneInfoNotFoundError, ValueError):
        return time.astimezone(UTC)


def _rendered(part: Part) -> RichTable | Text:
    if isinstance(part, str):
        return Text("\n".join(printable(line) for line in part.split("\n")))
    if isinstance(part, Facts):
        facts = RichTable(
            title=Text(part.title), title_justify="left", box=None, show_header=False, pad_edge=False
        )
        facts.add_column()
        facts.add_column()
        for name, value in part.rows:
            facts.add_row(Text(name), Text(printable(value)))
        return facts
    table = RichTable(
        title=Text(part.title),
        title_justify="left",
        box=box.HORIZONTALS,
        pad_edge=False,
        show_edge=False,
        show_footer=part.total is not None,
    )
    totals = part.total or [""] * len(part.columns)
    for column, total in zip(part.columns, totals, strict=True):
        right = column.startswith(">")
        table.add_column(
            Text(column.removeprefix(">")), Text(total), justify="right" if right else "left", no_wrap=True
        )
    for row in part.rows:
        whole = _ROW_STYLES.get(row[0], "")
        table.add_row(*(Text(printable(cell), style=whole or _STYLES.get(cell, "")) for cell in row))
    if not part.rows:
        return Text(f"{part.title}: {part.empty}")
    return table
