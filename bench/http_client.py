"""A connection that is kept, and sends one POST after another: a client that costs little."""

from __future__ import annotations

import asyncio
from typing import Final, Self

_HEADER_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"


class HttpError(Exception):
    """The server answered what this client does not know."""


class Connection:
    """HTTP/1.1 over one TCP connection. One call at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: str) -> Self:
        """Connect to host:port."""
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def send(self, request: bytes) -> int:
        """Send a request; the status of its answer. Raises HttpError, or what the connection raises."""
        self._writer.write(request)
        head = await self._reader.readuntil(_HEADER_END)
        status, length = answer_of(head)
        await self._reader.readexactly(length)
        return status

    def close(self) -> None:
        """Let go of the connection."""
        self._writer.close()


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


def answer_of(head: bytes) -> tuple[int, int]:
    """Status and length of the body, from the head of an answer. Raises HttpError."""
    first, *lines = head.split(b"\r\n")
    lengths = [line for line in lines if line.lower().startswith(_LENGTH)]
    try:
        return int(first.split(b" ", 2)[1]), int(lengths[0][len(_LENGTH) :])
    except (IndexError, ValueError):
        raise HttpError(f"an answer began with {head[:200]!r}") from None
