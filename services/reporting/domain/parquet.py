"""Exports as Parquet: written group by group, and taken away as they are written. Needs pyarrow."""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Final

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from services.kit.money import MICROS_PER_UNIT
from services.reporting.domain.export_columns import Column, ColumnType, ExportRow

# Readers skip and decode whole groups: large enough to be worth it, small enough to be held.
ROW_GROUP_ROWS: Final = 16_384

# 64 bits of micros.
_WHOLE: Final = pa.decimal128(19, 0)
_DECIMAL: Final = pa.decimal128(19, 6)


async def parts(
    batches: AsyncIterator[Sequence[ExportRow]], columns: Sequence[Column]
) -> AsyncGenerator[bytes]:
    """The file, in parts of a group of rows each."""
    file = _File(columns)
    async for rows in batches:
        # In a thread, so that others are served meanwhile.
        await asyncio.to_thread(file.add, rows)
        while file.is_full():
            yield await asyncio.to_thread(file.write_group)
    yield await asyncio.to_thread(file.finish)


class _File:
    """A file that holds no more than the rows that are not written, and a little for each group that is."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._schema = pa.schema(
            [pa.field(column.name, _type(column), nullable=not column.required) for column in columns]
        )
        self._sink = _Sink()
        self._writer = ParquetWriter(pa.PythonFile(self._sink, mode="w"), self._schema)
        self._batches: list[pa.RecordBatch] = []
        self._row_count = 0

    def add(self, rows: Sequence[ExportRow]) -> None:
        """Take more rows: as columns they are a fraction of what they are as objects."""
        arrays = [_array(column, rows) for column in self._columns]
        self._batches.append(pa.record_batch(arrays, schema=self._schema))
        self._row_count += len(rows)

    def is_full(self) -> bool:
        """Whether there are enough rows for a group."""
        return self._row_count >= ROW_GROUP_ROWS

    def write_group(self) -> bytes:
        """What the next group of rows adds to the file."""
        table = pa.Table.from_batches(self._batches, self._schema)
        rest = table.slice(ROW_GROUP_ROWS)
        self._batches, self._row_count = rest.to_batches(), rest.num_rows
        if table.num_rows:
            self._writer.write_table(table.slice(0, ROW_GROUP_ROWS), ROW_GROUP_ROWS)
        return self._sink.take()

    def finish(self) -> bytes:
        """The rest of the file."""
        last = self.write_group()
        self._writer.close()
        return last + self._sink.take()


class _Sink(io.RawIOBase):
    """Where the writer leaves its bytes until they are taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        # The writer uses its buffer again.
        part = bytes(data)
        self._parts.append(part)
        return len(part)

    def take(self) -> bytes:
        """What was written since this was last asked for."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def _type(column: Column) -> pa.DataType:
    match column.type:
        case ColumnType.TEXT:
            return pa.string()
        case ColumnType.INTEGER:
            return pa.int64()
        case ColumnType.MONEY | ColumnType.QUANTITY:
            return _DECIMAL
        case _:
            return pa.timestamp("us", tz="UTC")


def _array(column: Column, rows: Sequence[ExportRow]) -> pa.Array:
    values: list[Any] = [column.value(row) for row in rows]
    match column.type:
        case ColumnType.TEXT:
            return pa.array([value or None for value in values], pa.string())
        case ColumnType.MONEY:
            return _decimals(values)
        case ColumnType.QUANTITY:
            return _decimals([None if value is None else value * MICROS_PER_UNIT for value in values])
        case _:
            return pa.array(values, _type(column))


def _decimals(micros: list[int | None]) -> pa.Array:
    """Integers of millionths as decimals: the same digits with a point between them, and no arithmetic."""
    whole = pa.array(micros, pa.int64()).cast(_WHOLE)
    return pa.Array.from_buffers(_DECIMAL, len(whole), whole.buffers(), whole.null_count)
