"""A child process with a log: the one way the sandbox starts, watches and ends what it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
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

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it: somebody's doing, where any other end is its own."""
        return self._popen is not None and self._popen.poll() == -signal.SIGKILL

    def start(self) -> None:
        if self.running:
            raise SandboxError(f"{self.name} is already running")
        self.end_left_over()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        # A signal between the fork and the assignment would leave a child that nobody knows.
        with self.log_path.open("ab") as log, signals_wait():
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
            self._pid_file.write_text(f"{self._popen.pid}\n{' '.join(self._argv)}")

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
        # An impatient second Ctrl-C must not leave the child behind; the wait is bounded.
        with signals_wait():
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

    def check(self) -> None:
        """SandboxError with the end of the log when the child is not running."""
        if not self.running:
            raise self.failure("is not running")

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

    def end_left_over(self) -> None:
        """End what a killed runner left behind, as start() does; without a `pid_file` there is none."""
        if self._pid_file is None or not self._pid_file.exists():
            return
        number, _, command = self._pid_file.read_text().partition("\n")
        pid = int(number)
        deadline = Deadline(LEFT_OVER_TIMEOUT_SECONDS)
        # The number may long belong to somebody else: only what was started then is ours to end.
        while command and _command_line(pid) == command:
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

    So the `with` blocks inside still stop what they started. Only the first signal does so: what follows is
    ignored to the end of the block, since it would cut short the stop that the first one began.
    """
    leaving = False

    def leave(signum: int, frame: FrameType | None) -> None:
        nonlocal leaving
        if leaving:
            return
        leaving = True
        if signum == signal.SIGINT:
            signal.default_int_handler(signum, frame)
        sys.exit(128 + signum)

    signums = [signal.SIGTERM, signal.SIGHUP]
    # A shell starts what it puts in the background with Ctrl-C ignored, which is to stay so.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signums.append(signal.SIGINT)
    with _handlers(dict.fromkeys(signums, leave)):
        yield


@contextmanager
def asyncio_takes_interrupts() -> Iterator[None]:
    """Around asyncio.run: lets Ctrl-C cancel its tasks, for which the handler must be Python's own."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    with _handlers({} if ignored else {signal.SIGINT: signal.default_int_handler}):
        yield


@contextmanager
def signals_wait() -> Iterator[None]:
    """Within the block, SIGINT, SIGTERM and SIGHUP do nothing; the first that came takes effect after it."""
    # Signals are handled in the main thread: no other one is interrupted, nor may it set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    try:
        # Handlers and not SIG_IGN, which children started meanwhile would inherit.
        with _handlers(
            dict.fromkeys(
                (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), lambda signum, _: came.append(signum)
            )
        ):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def _handlers(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    previous = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
