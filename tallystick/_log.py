"""An append-only file of checked frames: length, CRC-32, payload."""

import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

logger = logging.getLogger("tallystick")

_MAGIC: Final = b"tallystick buffer 1\n"
_HEADER: Final = struct.Struct("<II")
# A longer frame is a damaged one.
MAX_PAYLOAD_BYTES: Final = 64 * 1024


class Log:
    """What is appended is in the hands of the operating system when `append` returns.

    So the death of this process, by kill -9 too, loses nothing of it. With `fsync` it is on the disk
    itself, and survives the loss of power.
    """

    def __init__(self, path: Path, *, fsync: bool) -> None:
        """Open the file at `path`, or make it. Raises ValueError if something else is there."""
        self._path = path
        self._fsync = fsync
        self.size = 0
        self._descriptor = self._open(path)
        try:
            self._replayed = self._read()
        except BaseException:
            os.close(self._descriptor)
            raise

    def replayed(self) -> list[bytes]:
        """The payloads that were there when the file was opened; once."""
        payloads, self._replayed = self._replayed, []
        return payloads

    def append(self, payloads: Iterable[bytes]) -> None:
        """Append frames, all or none. Raises OSError, for example when the disk is full."""
        data = b"".join(_frames(payloads))
        try:
            _write(self._descriptor, data)
            if self._fsync:
                os.fsync(self._descriptor)
        except OSError:
            # Half a frame would hide those that come after it.
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(data)

    def rewrite(self, payloads: Iterable[bytes]) -> None:
        """Replace all frames by these. A crash leaves the old file or the new one."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        data = _MAGIC + b"".join(_frames(payloads))
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write(descriptor, data)
            # Before the old file is gone: a rename may reach the disk earlier than what the file holds.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # Closed first, because Windows does not replace open files. Should the replacing fail, the old one is
        # opened again.
        os.close(self._descriptor)
        try:
            fresh.replace(self._path)
            self.size = len(data)
        finally:
            self._descriptor = self._open(self._path)
        _sync_folder(self._path.parent)

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self, path: Path) -> int:
        # Nobody else's business: who used what, though never what it was about.
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)

    def _read(self) -> list[bytes]:
        data = self._path.read_bytes()
        if _MAGIC.startswith(data):  # new, or its maker was killed before the first frame
            os.ftruncate(self._descriptor, 0)
            _write(self._descriptor, _MAGIC)
            self.size = len(_MAGIC)
            _sync_folder(self._path.parent)
            return []
        if not data.startswith(_MAGIC):
            raise ValueError(f"{self._path} is not a buffer of this library")
        payloads, self.size = _parse(data)
        if self.size < len(data):
            self._set_aside(data[self.size :])
        return payloads

    def _set_aside(self, damaged: bytes) -> None:
        """Keep what cannot be read: usually half a frame, whose `record` never returned."""
        aside = self._path.with_name(f"{self._path.name}.damaged")
        with aside.open("ab") as file:
            file.write(damaged)
            file.flush()
            os.fsync(file.fileno())
        os.ftruncate(self._descriptor, self.size)
        logger.warning("%s: the last %d bytes are damaged, moved to %s", self._path, len(damaged), aside)


def _frames(payloads: Iterable[bytes]) -> Iterator[bytes]:
    for payload in payloads:
        yield _HEADER.pack(len(payload), zlib.crc32(payload))
        yield payload


def _parse(data: bytes) -> tuple[list[bytes], int]:
    """The frames up to the first damaged one, and where they end."""
    payloads = []
    end = len(_MAGIC)
    while end + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, end)
        payload = data[end + _HEADER.size : end + _HEADER.size + length]
        # No frame is empty: a run of zeros, which some file systems leave after a crash, is damage.
        if not 0 < length <= MAX_PAYLOAD_BYTES or len(payload) < length or zlib.crc32(payload) != checksum:
            break
        payloads.append(payload)
        end += _HEADER.size + length
    return payloads, end


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    """Make a new name in the folder survive the loss of power, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
