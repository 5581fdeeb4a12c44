"""A disk that can be filled."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

import pytest

_MEGABYTES: Final = 8
_CHUNK: Final = bytes(65_536)


class SmallDisk:
    """A file system of some megabytes. `directory` is on it."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "data"
        self.directory.mkdir()
        self._ballast = root / "ballast"

    def give_to(self, user: str | None) -> None:
        """Let this account of the system write to it; None is our own."""
        if user is not None:
            shutil.chown(self.directory, user)

    def fill(self) -> None:
        """Leave no room at all."""
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(_CHUNK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def empty(self) -> None:
        """Give back what fill() took."""
        self._ballast.unlink()


@contextmanager
def small_disk() -> Iterator[SmallDisk]:
    """A small disk; skips the test where none can be mounted."""
    root = Path(mkdtemp(prefix="small-disk-"))
    root.chmod(0o755)
    mounted = os.geteuid() == 0 and _run(
        "mount", "-t", "tmpfs", "-o", f"size={_MEGABYTES}m,mode=755", "tmpfs", str(root)
    )
    if not mounted:
        root.rmdir()
        pytest.skip("a small disk can be mounted by root only, and not in every container")
    try:
        yield SmallDisk(root)
    finally:
        # PostgreSQL is still on it: it goes away when the last one has left.
        _run("umount", "--lazy", str(root))
        with contextlib.suppress(OSError):
            root.rmdir()


def _run(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
