"""A piece of network between two services, which a test may cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Forwards TCP connections to `target` while it is open."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._swallowing = False

    @property
    def address(self) -> str:
        """Where to connect; the same however often it is cut."""
        return f"127.0.0.1:{self._port}"

    async def open(self) -> None:
        """Let connections through."""
        self._swallowing = False
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def swallow_answers(self) -> None:
        """Let through what is asked, and lose what is answered."""
        self._swallowing = True

    async def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        if self._pumps:
            await asyncio.wait(self._pumps)
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, upstream_writer}
        for source, sink, answers in (
            (reader, upstream_writer, False),
            (upstream_reader, writer, True),
        ):
            pump = asyncio.create_task(self._pump(source, sink, answers))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        try:
            while data := await source.read(65_536):
                if not (answers and self._swallowing):
                    sink.write(data)
                    await sink.drain()
        except OSError:
            pass  # cut: what the test wanted
        finally:
            sink.close()


@asynccontextmanager
async def gate_to(target: str) -> AsyncIterator[Gate]:
    """An open gate to host:port, cut at the end of the `async with`."""
    gate = Gate(target)
    await gate.open()
    try:
        yield gate
    finally:
        await gate.cut()
