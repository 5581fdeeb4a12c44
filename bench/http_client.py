"""A connection that is kept, and sends one request after another: a client that costs little."""

from __future__ import annotations

import asyncio
import time
from typing import Final

_HEADER_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
# Servers end connections that are idle, uvicorn after 5 seconds.
_IDLE_SECONDS: Final = 1.0


class HttpError(Exception):
    """The server answered what this client does not know."""


class Connection:
    """HTTP/1.1 to host:port over one TCP connection, made at first use, and anew after a while without. One
    call at a time.
    """

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def send(self, request: bytes) -> int:
        """Send a request; the status of its answer. Raises HttpError, or what the connection raises."""
        if time.monotonic() - self._used > _IDLE_SECONDS:
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, int(self._port))
        reader, writer = self._streams
        writer.write(request)
        status, length = answer_of(await reader.readuntil(_HEADER_END))
        await reader.readexactly(length)
        self._used = time.monotonic()
        return status

    def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def post(address: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A whole request."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {address}",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + _HEADER_END + body


def get(address: str, path: str, headers: dict[str, str]) -> bytes:
    """A whole request without a body."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {address}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + _HEADER_END


def answer_of(head: bytes) -> tuple[int, int]:
    """Status and length of the body, from the head of an answer. Raises HttpError."""
    first, *lines = head.split(b"\r\n")
    lengths = [line for line in lines if line.lower().startswith(_LENGTH)]
    try:
        return int(first.split(b" ", 2)[1]), int(lengths[0][len(_LENGTH) :])
    except (IndexError, ValueError):
        raise HttpError(f"an answer began with {head[:200]!r}") from None
