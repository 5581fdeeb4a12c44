"""A piece of the way to PostgreSQL, which a test cuts at the worst moment of one statement."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

_SOCKET: Final = ".s.PGSQL.5432"
# https://www.postgresql.org/docs/current/protocol-message-formats.html
_PARSE, _BIND, _QUERY, _READY = b"P", b"B", b"Q", b"Z"


class Moment(Enum):
    """When a statement's connection is cut, or held."""

    # PostgreSQL never hears of it.
    BEFORE = "before"
    # It is committed, and its answer is lost.
    AFTER = "after"


class PostgresGate:
    """Forwards connections to a PostgreSQL on a unix socket; knows one statement by a part of its text."""

    def __init__(self, url: str, directory: Path, statement: str) -> None:
        self._target = _socket_of(url)
        self._directory = directory
        self._statement = statement.encode()
        self._url = url
        self._tasks: set[asyncio.Task[None]] = set()
        self._cuts: list[Moment] = []
        self._holds: list[Moment] = []
        # Set when a statement is held; what is held goes nowhere any more.
        self.held = asyncio.Event()
        # How many connections were cut.
        self.cut_count = 0

    @property
    def url(self) -> str:
        """Like the URL of PostgreSQL, through the gate."""
        database = urlsplit(self._url).path
        user = urlsplit(self._url).username or ""
        return f"postgresql://{quote(user)}@{database}?host={quote(str(self._directory))}&port=5432"

    def cut_next(self, *moments: Moment) -> None:
        """Cut the connection of the next statement at the first of these, of the one after at the second…"""
        self._cuts.extend(moments)

    def hold_next(self, moment: Moment) -> None:
        """Let nothing pass any more on the connection of the next statement."""
        self.held.clear()
        self._holds.append(moment)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            from_server, upstream = await asyncio.open_unix_connection(self._target)
            way = _Way(self, self._statement)
            await _first(
                way.requests(reader, upstream),
                way.answers(from_server, writer),
            )
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side has gone
        finally:
            self._tasks.discard(task)
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def reached(self, moment: Moment) -> bool:
        """Whether to cut here. Does not return where the statement is held."""
        if self._holds[:1] == [moment]:
            self._holds.pop(0)
            self.held.set()
            await asyncio.Event().wait()
        if self._cuts[:1] == [moment]:
            self._cuts.pop(0)
            self.cut_count += 1
            return True
        return False


class _Way:
    """One connection: which prepared statement is the one, and whether it is under way."""

    def __init__(self, gate: PostgresGate, statement: bytes) -> None:
        self._gate = gate
        self._statement = statement
        self._names: set[bytes] = set()
        self._under_way = False

    async def requests(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        # The first message has no type.
        await _forward(sink, await _sized(source))
        while True:
            kind, body = await _message(source)
            if kind == _PARSE:
                name, _, rest = body[4:].partition(b"\0")
                if self._statement in rest.partition(b"\0")[0]:
                    self._names.add(name)
            elif (kind == _BIND and body[4:].split(b"\0", 2)[1] in self._names) or (
                kind == _QUERY and self._statement in body
            ):
                if await self._gate.reached(Moment.BEFORE):
                    return
                self._under_way = True
            await _forward(sink, kind + body)

    async def answers(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        pending = b""
        while True:
            kind, body = await _message(source)
            pending += kind + body
            if kind == _READY and self._under_way:
                self._under_way = False
                if await self._gate.reached(Moment.AFTER):
                    return
            # Of the statement's answer nothing, before it is known to be over.
            if not self._under_way:
                await _forward(sink, pending)
                pending = b""


async def _sized(source: asyncio.StreamReader) -> bytes:
    head = await source.readexactly(4)
    (size,) = struct.unpack("!i", head)
    return head + await source.readexactly(size - 4)


async def _message(source: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Type, and size with the rest."""
    kind = await source.readexactly(1)
    return kind, await _sized(source)


async def _forward(sink: asyncio.StreamWriter, data: bytes) -> None:
    sink.write(data)
    await sink.drain()


async def _first(*pumps: Coroutine[None, None, None]) -> None:
    """Until the first of them ends."""
    tasks = [asyncio.create_task(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _socket_of(url: str) -> str:
    parts = parse_qs(urlsplit(url).query)
    return f"{parts['host'][0]}/.s.PGSQL.{parts.get('port', ['5432'])[0]}"


@asynccontextmanager
async def postgres_gate(url: str, statement: str) -> AsyncIterator[PostgresGate]:
    """A gate to the PostgreSQL of `url`, which knows the statement that has `statement` in its text."""
    with TemporaryDirectory(prefix="gate-") as folder:
        gate = PostgresGate(url, Path(folder), statement)
        server = await asyncio.start_unix_server(gate.accept, f"{folder}/{_SOCKET}")
        try:
            yield gate
        finally:
            server.close()
            await gate.close()
