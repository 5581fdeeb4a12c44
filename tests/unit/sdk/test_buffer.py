"""The buffer forgets nothing that it took, and takes nothing that it may not."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tallystick import BufferFull, BufferInUse
from tallystick._buffer import MAX_EVENT_BYTES, Buffer
from tallystick._log import Log


def on_disk(path: Path, capacity: int = 100, *, fsync: bool = False) -> Buffer:
    return Buffer(capacity=capacity, path=path, fsync=fsync)


def bodies(buffer: Buffer) -> list[bytes]:
    return list(buffer.first(10_000).values())


@pytest.fixture(params=["memory", "disk", "fsync"])
def buffer(request: pytest.FixtureRequest, tmp_path: Path) -> Buffer:
    path = None if request.param == "memory" else tmp_path / "usage"
    return Buffer(capacity=3, path=path, fsync=request.param == "fsync")


def test_first_in_first_out(buffer: Buffer) -> None:
    for body in (b"a", b"b", b"c"):
        buffer.append(body)
    assert list(buffer.first(2).values()) == [b"a", b"b"]
    buffer.remove(list(buffer.first(1)))
    assert bodies(buffer) == [b"b", b"c"]
    assert buffer.count_until(1) == 1


def test_a_full_buffer_says_so_and_drops_nothing(buffer: Buffer) -> None:
    for body in (b"a", b"b", b"c"):
        buffer.append(body)
    with pytest.raises(BufferFull):
        buffer.append(b"d")
    assert (buffer.overflowed, buffer.recorded, len(buffer)) == (1, 3, 3)
    buffer.remove(list(buffer.first(1)))
    buffer.append(b"d")
    assert bodies(buffer) == [b"b", b"c", b"d"]


def test_deferred_ones_come_last(buffer: Buffer) -> None:
    for body in (b"a", b"b", b"c"):
        buffer.append(body)
    buffer.defer(list(buffer.first(2)))
    assert bodies(buffer) == [b"c", b"a", b"b"]


def test_what_is_too_large_is_not_taken(buffer: Buffer) -> None:
    with pytest.raises(ValueError, match="larger"):
        buffer.append(bytes(MAX_EVENT_BYTES + 1))
    assert len(buffer) == 0


def test_a_closed_buffer_takes_nothing(buffer: Buffer) -> None:
    buffer.append(b"a")
    buffer.close()
    buffer.close()
    with pytest.raises(RuntimeError, match="closed"):
        buffer.append(b"b")
    assert bodies(buffer) == [b"a"]


def test_the_next_one_finds_what_was_left(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    first = on_disk(path)
    for body in (b"a", b"b", b"c"):
        first.append(body)
    first.remove([1])
    first.close()
    second = on_disk(path)
    assert second.replayed == 2
    assert bodies(second) == [b"a", b"c"]
    second.append(b"d")
    second.close()
    assert bodies(on_disk(path)) == [b"a", b"c", b"d"]


def test_one_client_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    first = on_disk(path)
    with pytest.raises(BufferInUse):
        on_disk(path)
    program = (
        "import sys, tallystick\n"
        "try: tallystick.Client('tsk_x', buffer_path=sys.argv[1])\n"
        "except tallystick.BufferInUse: print('in use')\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, path],
        env={**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert other.stdout == "in use\n", other.stderr
    first.close()
    on_disk(path).close()


@given(cut=st.integers(0, 400), garbage=st.binary(max_size=40))
def test_a_damaged_end_costs_only_what_it_hit(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("cut") / "usage"
    first = on_disk(path)
    ends = []
    for number in range(10):
        first.append(b"body %d" % number)
        ends.append(path.stat().st_size)
    first.close()
    data = path.read_bytes()
    header = ends[0] - (ends[1] - ends[0])
    # Keep some of it, then write rubbish: what a crash in the middle of a write leaves.
    kept = max(header, len(data) - cut)
    path.write_bytes(data[:kept] + garbage)
    again = on_disk(path)
    whole = sum(end <= kept for end in ends)
    # The rubbish may happen to be the bytes that were cut off.
    assert bodies(again)[:whole] == [b"body %d" % number for number in range(whole)]
    found = len(again)
    again.append(b"next")
    again.close()
    assert len(on_disk(path)) == found + 1
    aside = path.with_name("usage.damaged")
    lost = (data[:kept] + garbage)[ends[found - 1] if found else header :]
    assert (aside.read_bytes() if aside.exists() else b"") == lost


@pytest.mark.parametrize("length", range(len("tallystick buffer 1\n")))
def test_a_file_whose_maker_was_killed_at_once(tmp_path: Path, length: int) -> None:
    path = tmp_path / "usage"
    path.write_bytes(b"tallystick buffer 1\n"[:length])
    first = on_disk(path)
    first.append(b"a")
    first.close()
    assert bodies(on_disk(path)) == [b"a"]


def test_a_file_of_somebody_else_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letters"
    path.write_bytes(b"Dear Ada,\n")
    with pytest.raises(ValueError, match="not a buffer"):
        on_disk(path)
    assert path.read_bytes() == b"Dear Ada,\n"


def test_the_file_does_not_grow_with_what_is_delivered(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    buffer = on_disk(path)
    buffer.append(b"stays")
    largest = 0
    for _ in range(40):
        for _ in range(50):
            buffer.append(bytes(1_000))
        buffer.remove(list(buffer.first(51))[1:])
        largest = max(largest, path.stat().st_size)
    assert largest < 500_000  # of 2,000,000 that went through
    assert bodies(buffer) == [b"stays"]
    buffer.close()
    assert bodies(on_disk(path)) == [b"stays"]


def test_a_full_disk_refuses_an_event_and_hurts_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "usage"
    buffer = on_disk(path)
    buffer.append(b"a")
    write = os.write

    def half_then_full(descriptor: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: len(data) - 5])

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(OSError, match="No space"):
        buffer.append(b"b")
    monkeypatch.undo()
    buffer.append(b"c")
    buffer.close()
    assert bodies(on_disk(path)) == [b"a", b"c"]


def test_a_rewrite_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log", fsync=False)
    log.append([b"a"])

    def fail(self: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        log.rewrite([b"b"])
    monkeypatch.undo()
    log.append([b"c"])
    log.close()
    assert Log(tmp_path / "log", fsync=False).replayed() == [b"a", b"c"]


class Restarts(RuleBasedStateMachine):
    """Any order of taking, delivering, deferring and being killed: the disk knows what memory knew."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "usage"
        self.buffer = on_disk(self.path, capacity=20)
        self.model: dict[int, bytes] = {}

    @rule(size=st.integers(0, MAX_EVENT_BYTES))
    def append(self, size: int) -> None:
        body = bytes([size % 256]) * size
        if len(self.model) == 20:
            with pytest.raises(BufferFull):
                self.buffer.append(body)
            return
        self.buffer.append(body)
        self.model[self.buffer.newest()] = body

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True))
        self.buffer.remove(gone)
        for number in gone:
            del self.model[number]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def defer(self, data: st.DataObject) -> None:
        self.buffer.defer([data.draw(st.sampled_from(sorted(self.model)))])

    @rule()
    def restart(self) -> None:
        # Nothing is written when it closes, so that this is what kill -9 leaves.
        self.buffer.close()
        self.buffer = on_disk(self.path, capacity=20)
        assert self.buffer.replayed == len(self.model)

    @invariant()
    def agree(self) -> None:
        assert self.buffer.first(100) == self.model

    def teardown(self) -> None:
        self.buffer.close()
        self.folder.cleanup()


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(max_examples=30, stateful_step_count=30)
