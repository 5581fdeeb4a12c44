"""A child process with a log: the one way the sandbox starts, watches and ends what it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

LOG_TAIL_LINES = 20
# How often a waiting start asks again; the wait ends at once when the child dies.
POLL_SECONDS = 0.05
# More than a service's own grace for calls in flight (20 seconds).
LEFT_OVER_TIMEOUT_SECONDS = 30.0


class SandboxError(Exception):
    """Something the sandbox runs did not start, died, or is in use. The message is for a person."""


@dataclass(frozen=True)
class OsUser:
    """Whom a child runs as."""

    name: str
    uid: int
    gid: int


class ChildProcess:
    """A program run as our own child, its output appended to `log_path`.

    The same object starts the program again after it was stopped or killed. With a `pid_file`, start() first
    ends what a killed runner left behind: the caller holds the folder, so no other runner can mean it.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: OsUser | None = None,
        pid_file: Path | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._argv = list(argv)
        self._env = None if env is None else dict(env)
        self._cwd = cwd
        self._user = user
        self._pid_file = pid_file
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while the child runs, else None."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else None

    @property
    def running(self) -> bool:
        return self.pid is not None

    def start(self) -> None:
        if self.running:
            raise SandboxError(f"{self.name} is already running")
        self._end_left_over()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                # A session of its own: Ctrl-C reaches only the runner, which stops things in the right order.
                start_new_session=True,
                user=self._user.uid if self._user else None,
                group=self._user.gid if self._user else None,
                extra_groups=[] if self._user else None,
            )
        if self._pid_file is not None:
            self._pid_file.write_text(str(self._popen.pid))

    def wait(self, seconds: float) -> int | None:
        """Wait at most `seconds` for the child to end; its exit status, or None while it still runs."""
        if self._popen is None:
            raise SandboxError(f"{self.name} was never started")
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, signum: int = signal.SIGTERM, *, timeout: float = 30.0) -> None:
        """Ask the child to end and wait; SIGKILL when it has not ended after `timeout` seconds."""
        if self._popen is None or not self.running:
            return
        self._popen.send_signal(signum)
        if self.wait(timeout) is None:
            self.kill()

    def kill(self) -> None:
        """End the child at once, as a crash would."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of the log, for an error message."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 64 * 1024))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def failure(self, what: str) -> SandboxError:
        """An error that says what happened and shows the end of the log."""
        tail = self.log_tail() or "(empty)"
        return SandboxError(f"{self.name} {what}; the end of {self.log_path}:\n{tail}")

    def wait_until(self, ready: Callable[[], bool], *, timeout: float) -> None:
        """Ask `ready`, itself bounded in time, until it answers True.

        Raises:
            SandboxError: the child died first, or `timeout` seconds passed.
        """
        deadline = Deadline(timeout)
        while not ready():
            status = self.wait(POLL_SECONDS)
            if status is not None:
                raise self.failure(f"ended with status {status} while starting")
            if deadline.passed:
                raise self.failure(f"was not ready after {timeout:g} seconds")

    def _end_left_over(self) -> None:
        if self._pid_file is None or not self._pid_file.exists():
            return
        pid = int(self._pid_file.read_text())
        deadline = Deadline(LEFT_OVER_TIMEOUT_SECONDS)
        # The number may long belong to somebody else: only the very same command line is ours to end.
        while _command_line(pid) == " ".join(self._argv):
            os.kill(pid, signal.SIGKILL if deadline.passed else signal.SIGTERM)
            time.sleep(POLL_SECONDS)


class Deadline:
    """A point in time, on the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._at


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: OsUser | None = None,
) -> str:
    """Run a program to its end and return its output. SandboxError with that output when it fails."""
    done = subprocess.run(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=None if env is None else dict(env),
        cwd=cwd,
        check=False,
        timeout=120,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
    )
    if done.returncode != 0:
        raise SandboxError(f"{' '.join(argv)} ended with status {done.returncode}:\n{done.stdout.strip()}")
    return done.stdout


def _command_line(pid: int) -> str:
    """Program and arguments of a process, empty when there is none."""
    try:
        if Path("/proc/self").exists():
            return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").replace("\0", " ")
        # Elsewhere than on Linux. There, a minimal system may have no ps.
        return run(["ps", "-o", "args=", "-p", str(pid)]).strip()
    except (OSError, SandboxError):
        return ""


@contextmanager
def signals_end_the_program() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise SystemExit, as Ctrl-C raises KeyboardInterrupt.

    So the `with` blocks inside still stop what they started.
    """

    def leave(signum: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    previous = {signum: signal.signal(signum, leave) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
