"""Children of the sandbox: a death is noticed, explained by the log, and waiting is bounded."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from pathlib import Path

import pytest

from sandbox.process import (
    ChildProcess,
    SandboxError,
    asyncio_takes_interrupts,
    run,
    signals_end_the_program,
    signals_wait,
)

READY_THEN_WAIT = "import pathlib, signal; pathlib.Path('ready').touch(); signal.pause()"


def child(folder: Path, program: str) -> ChildProcess:
    return ChildProcess("child", [sys.executable, "-c", program], log_path=folder / "log", cwd=folder)


def test_a_child_starts_again_after_stop_and_after_kill(tmp_path: Path) -> None:
    process = child(tmp_path, READY_THEN_WAIT)
    pids = set()
    for end in (process.stop, process.kill, process.stop):
        process.start()
        process.wait_until((tmp_path / "ready").exists, timeout=30)
        pids.add(process.pid)
        end()
        assert process.pid is None
        (tmp_path / "ready").unlink()
    assert len(pids - {None}) == 3


def test_a_child_that_dies_while_starting_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    process = child(tmp_path, "import sys; print('the port is taken'); sys.exit(3)")
    process.start()
    with pytest.raises(SandboxError, match=r"(?s)child ended with status 3.*the port is taken"):
        process.wait_until(lambda: False, timeout=30)


def test_a_child_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    process = child(tmp_path, READY_THEN_WAIT)
    process.start()
    with pytest.raises(SandboxError, match=r"was not ready after 0\.2 seconds"):
        process.wait_until(lambda: False, timeout=0.2)
    process.kill()


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = child(tmp_path, f"import signal; signal.signal(15, signal.SIG_IGN); {READY_THEN_WAIT}")
    process.start()
    process.wait_until((tmp_path / "ready").exists, timeout=30)
    process.stop(timeout=0.2)
    assert process.wait(0) == -signal.SIGKILL


def test_a_second_start_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    process = child(tmp_path, READY_THEN_WAIT)
    process.start()
    with pytest.raises(SandboxError, match="already running"):
        process.start()
    process.kill()


def test_what_a_killed_runner_left_behind_is_ended_first(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", READY_THEN_WAIT]
    left_over, next_one = (
        ChildProcess("child", argv, log_path=tmp_path / "log", cwd=tmp_path, pid_file=tmp_path / "pid")
        for _ in range(2)
    )
    left_over.start()
    left_over.wait_until((tmp_path / "ready").exists, timeout=30)
    next_one.start()
    assert left_over.wait(30) == -signal.SIGTERM
    assert next_one.running
    next_one.kill()


def test_what_was_left_behind_with_other_options_is_ended_too(tmp_path: Path) -> None:
    left_over, next_one = (
        ChildProcess(
            "child",
            [sys.executable, "-c", READY_THEN_WAIT, option],
            log_path=tmp_path / "log",
            cwd=tmp_path,
            pid_file=tmp_path / "pid",
        )
        for option in ("--seed=1", "--seed=2")
    )
    left_over.start()
    left_over.wait_until((tmp_path / "ready").exists, timeout=30)
    next_one.end_left_over()
    assert left_over.wait(30) == -signal.SIGTERM


def test_a_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    somebody_else = child(tmp_path, READY_THEN_WAIT)
    somebody_else.start()
    pid_file.write_text(f"{somebody_else.pid}\n{sys.executable} -c pass")
    process = ChildProcess("child", [sys.executable, "-c", ""], log_path=tmp_path / "log", pid_file=pid_file)
    process.start()
    assert process.wait(30) == 0
    assert somebody_else.running
    somebody_else.kill()


def test_the_log_tail_is_the_end_of_a_long_log(tmp_path: Path) -> None:
    process = child(tmp_path, "for line in range(100_000): print(line)")
    process.start()
    assert process.wait(30) == 0
    assert process.log_tail(2) == "99998\n99999"


def test_a_failed_command_shows_its_output() -> None:
    with pytest.raises(SandboxError, match=r"(?s)status 1.*no such role"):
        run([sys.executable, "-c", "import sys; sys.exit('no such role')"])


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_the_program(signum: int) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(SystemExit, match=str(128 + signum)), signals_end_the_program():
        signal.raise_signal(signum)
    assert signal.getsignal(signum) == before


# Interrupts its parent while it is being stopped, and only then ends.
INTERRUPTS_ITS_PARENT = """
import os, pathlib, signal, sys
def leave(*_):
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) * 3:
        os.kill(os.getppid(), signum)
    pathlib.Path("left").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
pathlib.Path("ready").touch()
while True:
    signal.pause()
"""


def test_signals_do_not_interrupt_a_stop_and_take_effect_after_it(tmp_path: Path) -> None:
    process = child(tmp_path, INTERRUPTS_ITS_PARENT)
    process.start()
    process.wait_until((tmp_path / "ready").exists, timeout=30)
    with pytest.raises((KeyboardInterrupt, SystemExit)), signals_end_the_program():
        process.stop()
    assert process.wait(0) == 0
    assert (tmp_path / "left").exists()


def test_after_the_first_signal_the_rest_are_ignored_to_the_end_of_the_block() -> None:
    before = signal.getsignal(signal.SIGINT)
    stopped = []

    def leave_and_be_interrupted() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.raise_signal(signum)
                stopped.append(signum)

    with pytest.raises(KeyboardInterrupt), signals_end_the_program():
        leave_and_be_interrupted()
    assert len(stopped) == 3
    assert signal.getsignal(signal.SIGINT) == before


def test_what_the_shell_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals_end_the_program():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_cancels_what_asyncio_runs() -> None:
    cancelled = []

    async def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(KeyboardInterrupt), signals_end_the_program(), asyncio_takes_interrupts():
        asyncio.run(interrupted())
    assert cancelled


def test_a_wait_for_signals_in_another_thread_changes_no_handler() -> None:
    seen = []

    def look() -> None:
        with signals_wait():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
