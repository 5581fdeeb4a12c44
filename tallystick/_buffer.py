"""The events that are recorded and not yet delivered: bounded, in memory, and on disk if asked for."""

from __future__ import annotations

import struct
import threading
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from tallystick._lock import FileLock
from tallystick._log import MAX_PAYLOAD_BYTES, Log
from tallystick.errors import BufferFull

DEFAULT_CAPACITY: Final = 10_000
# Far above what an event with every field at its limit takes, and 500 of them still fit into one call.
MAX_EVENT_BYTES: Final = 16 * 1024

_RECORDED, _DONE = b"E", b"D"
_NUMBER: Final = struct.Struct("<Q")
_MAX_NUMBERS_PER_FRAME: Final = (MAX_PAYLOAD_BYTES - 1) // _NUMBER.size
# The file is rewritten when most of it is done with, but not for every few events.
_MIN_COMPACTION_BYTES: Final = 256 * 1024


class Buffer:
    """Bodies of events by number, oldest first. Safe to use from several threads.

    On disk it is a log of frames: "E", number, body for what was recorded, and "D", numbers for what is
    done with. What is not done with is also in memory, since it is bounded.
    """

    def __init__(self, *, capacity: int, path: Path | None, fsync: bool) -> None:
        """Raises BufferInUse if another client has the file open."""
        if capacity < 1:
            raise ValueError("a buffer holds at least one event")
        self._capacity = capacity
        self._bodies: dict[int, bytes] = {}
        self._next = 0
        # Recording threads and the one that delivers meet here; held for a write to the log, never for a
        # call.
        self._lock = threading.Lock()
        self._file_lock: FileLock | None = None
        self._log: Log | None = None
        self._live_bytes = 0
        self._closed = False
        self.recorded = 0
        self.overflowed = 0
        if path is not None:
            self._file_lock = FileLock(path.with_name(f"{path.name}.lock"))
            try:
                self._log = Log(path, fsync=fsync)
            except BaseException:
                self._file_lock.release()
                raise
            self._replay(self._log.replayed())
        self.replayed = len(self._bodies)

    def __len__(self) -> int:
        return len(self._bodies)

    @property
    def on_disk(self) -> bool:
        return self._log is not None

    def append(self, body: bytes) -> None:
        """Take one event. Raises BufferFull, ValueError if it is too large, OSError if the disk fails."""
        if len(body) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of {len(body)} bytes is larger than any that can be charged")
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if len(self._bodies) >= self._capacity:
                self.overflowed += 1
                raise BufferFull(
                    f"{self._capacity} events wait to be delivered, and there is room for no more",
                    reason="BUFFER_FULL",
                )
            if self._log is not None:
                self._log.append([_RECORDED + _NUMBER.pack(self._next) + body])
            self._bodies[self._next] = body
            self._live_bytes += len(body)
            self._next += 1
            self.recorded += 1

    def first(self, limit: int) -> dict[int, bytes]:
        """The next ones to deliver, by number. They stay until they are removed."""
        with self._lock:
            return dict(islice(self._bodies.items(), limit))

    def defer(self, numbers: Collection[int]) -> None:
        """Put these behind the others, so that they hold up nobody."""
        with self._lock:
            for number in numbers:
                self._bodies[number] = self._bodies.pop(number)

    def remove(self, numbers: Collection[int]) -> None:
        """Forget these: somebody else remembers them now."""
        if not numbers:
            return
        with self._lock:
            if self._log is not None:
                self._log.append(_done_frames(numbers))
            for number in numbers:
                self._live_bytes -= len(self._bodies.pop(number))
            self._compact()

    def newest(self) -> int:
        """The number of the latest event."""
        return self._next - 1

    def count_until(self, number: int) -> int:
        """How many of the events up to this number are still here."""
        with self._lock:
            return sum(one <= number for one in self._bodies)

    def close(self) -> None:
        """Take no more, and let go of the file. What is on disk stays there."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._log is not None and self._file_lock is not None:
                self._log.close()
                self._file_lock.release()

    def _compact(self) -> None:
        """Rewrite the log when more than half of it is done with; so each byte is rewritten about once."""
        if self._log is not None and self._log.size > max(_MIN_COMPACTION_BYTES, 2 * self._live_bytes):
            self._log.rewrite(
                _RECORDED + _NUMBER.pack(number) + body for number, body in self._bodies.items()
            )

    def _replay(self, frames: list[bytes]) -> None:
        for frame in frames:
            kind, rest = frame[:1], frame[1:]
            if kind == _RECORDED:
                (number,) = _NUMBER.unpack_from(rest)
                self._bodies[number] = rest[_NUMBER.size :]
                self._next = max(self._next, number + 1)
            elif kind == _DONE:
                for (number,) in _NUMBER.iter_unpack(rest):
                    self._bodies.pop(number, None)
        self._live_bytes = sum(map(len, self._bodies.values()))


def _done_frames(numbers: Collection[int]) -> Iterator[bytes]:
    left = iter(numbers)
    while some := list(islice(left, _MAX_NUMBERS_PER_FRAME)):
        yield _DONE + b"".join(map(_NUMBER.pack, some))
