"""Exports as files, made piece by piece: however many rows there are, the memory is that of one batch.

CSV is RFC 4180. Parquet needs pyarrow, which is imported when the first such file is asked for: it is large,
and a server without it answers everything else.
"""

import asyncio
import csv
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from enum import StrEnum
from typing import Any, Final

from services.kit.errors import InvalidArgument
from services.kit.money import MICROS_PER_UNIT, MINOR_UNIT_DIGITS
from services.reporting.domain.export_columns import TALLYSTICK, Column, ColumnType, ExportRow
from services.reporting.domain.focus import FOCUS

# Well below what a message may hold.
PIECE_BYTES: Final = 256 * 1024

# A spreadsheet takes a cell that begins so for a formula.
_FORMULA: Final = frozenset("=+-@\t\r")


class Format(StrEnum):
    """The form of the file."""

    CSV = "csv"
    PARQUET = "parquet"


class ColumnSet(StrEnum):
    """Which columns it has."""

    TALLYSTICK = "tallystick"
    FOCUS = "focus"


_COLUMNS: Final = {ColumnSet.TALLYSTICK: TALLYSTICK, ColumnSet.FOCUS: FOCUS}


def pieces(
    batches: AsyncIterator[Sequence[ExportRow]], form: Format, column_set: ColumnSet
) -> AsyncGenerator[bytes]:
    """The file, in pieces of at most PIECE_BYTES. Without rows it has its columns and nothing else.

    Raises InvalidArgument at once, before anything is read, if this server cannot write the format.
    """
    columns = _COLUMNS[column_set]
    if form is Format.CSV:
        return _cut(_csv(batches, columns))
    try:
        from services.reporting.domain import parquet
    except ImportError:
        raise InvalidArgument.of("format", "this server was installed without pyarrow: take CSV") from None
    return _cut(parquet.parts(batches, columns))


async def _csv(
    batches: AsyncIterator[Sequence[ExportRow]], columns: Sequence[Column]
) -> AsyncGenerator[bytes]:
    yield _lines([[column.name for column in columns]])
    async for rows in batches:
        # In a thread, so that others are served meanwhile.
        yield await asyncio.to_thread(_encode, rows, columns)


def _encode(rows: Sequence[ExportRow], columns: Sequence[Column]) -> bytes:
    # By columns, which is faster than by cells. Some columns say the same.
    distinct = {(column.type, column.value): column for column in columns}
    texts = {key: _texts(column, rows) for key, column in distinct.items()}
    return _lines(zip(*(texts[column.type, column.value] for column in columns), strict=True))


def _lines(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _texts(column: Column, rows: Sequence[ExportRow]) -> list[str]:
    values: Iterable[Any] = map(column.value, rows)
    match column.type:
        case ColumnType.TEXT:
            return [(f"'{text}" if text[0] in _FORMULA else text) if text else "" for text in values]
        case ColumnType.MONEY:
            return [
                "" if micros is None else _decimal(micros, MINOR_UNIT_DIGITS[row.currency_code])
                for micros, row in zip(values, rows, strict=True)
            ]
        case ColumnType.TIME:
            return ["" if moment is None else moment.isoformat() for moment in values]
        case ColumnType.SECOND:
            return [moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z" for moment in values]
        case _:
            return ["" if number is None else str(number) for number in values]


def _decimal(micros: int, digits: int) -> str:
    """Units of the currency with its decimals, and more where there is a fraction."""
    units, fraction = divmod(abs(micros), MICROS_PER_UNIT)
    decimals = f"{fraction:06d}".rstrip("0").ljust(digits, "0")
    return f"{'-' if micros < 0 else ''}{units}{'.' if decimals else ''}{decimals}"


async def _cut(parts: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(parts):
        async for part in parts:
            for start in range(0, len(part), PIECE_BYTES):
                yield part[start : start + PIECE_BYTES]
