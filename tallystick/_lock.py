"""One process at a time."""

import os
import sys
from pathlib import Path

from tallystick.errors import BufferInUse


class FileLock:
    """Holds a file for this process; the system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Raises BufferInUse if somebody holds it."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(self._descriptor)
        except OSError as error:
            os.close(self._descriptor)
            raise BufferInUse(f"{path} is held by another client", reason="BUFFER_IN_USE") from error

    def release(self) -> None:
        # The file stays: deleting it would let two processes hold two files of one name.
        os.close(self._descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # flock, not lockf: it refuses a second client of the same process too.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
