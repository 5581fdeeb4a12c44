"""A Valkey whose memory is lost in every way there is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

import redis

from sandbox.process import SandboxError
from sandbox.servers import ValkeyServer

_DUMP: Final = "dump.rdb"
_KEPT: Final = "kept.rdb"


class FaultyValkey:
    """An embedded Valkey, its files in `directory`, that can be emptied, killed, paused, and set back."""

    def __init__(self, directory: Path) -> None:
        self._server = ValkeyServer(directory)

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def running(self) -> bool:
        return self._server.running

    def start(self) -> None:
        """Start, empty."""
        (self._server.directory / _DUMP).unlink(missing_ok=True)
        self._server.start()

    def stop(self) -> None:
        """End it and delete its files."""
        self._server.kill()
        self._server.remove()

    def kill(self) -> None:
        """SIGKILL."""
        self._server.kill()

    def flush(self) -> None:
        """FLUSHALL."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def keep_copy(self) -> None:
        """Write down what it knows now, for restore_copy()."""
        with redis.Redis.from_url(self.url) as client:
            client.save()
        (self._server.directory / _DUMP).rename(self._server.directory / _KEPT)

    @property
    def has_copy(self) -> bool:
        return (self._server.directory / _KEPT).exists()

    def restore_copy(self) -> None:
        """Kill it, and start it with what it knew when the copy was made: all since is forgotten."""
        self._server.kill()
        (self._server.directory / _DUMP).write_bytes((self._server.directory / _KEPT).read_bytes())
        self._server.start()

    def pause(self) -> int:
        """Let it stand still, with its connections open; answers whom to resume()."""
        with redis.Redis.from_url(self.url) as client:
            pid = int(client.info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        return pid

    def resume(self, pid: int) -> None:
        """Let it go on, unless it was killed since."""
        if not self._server.running:
            raise SandboxError("Valkey was killed while it stood still")
        os.kill(pid, signal.SIGCONT)
