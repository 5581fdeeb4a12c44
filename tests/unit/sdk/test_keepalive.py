"""One thread keeps the reservations of all runs alive."""

from collections.abc import Iterator
from queue import SimpleQueue
from typing import cast

import pytest

from tallystick._keepalive import KeepAliveThread
from tallystick._operations import Call, Operation, Wait
from tallystick.metering.v1 import metering_service_pb2

SECONDS = 30


class Calls:
    """Answers every call with its token, and tells the test of it."""

    def __init__(self) -> None:
        self.tokens: SimpleQueue[str] = SimpleQueue()

    def __call__(self, call: Call) -> object:
        token = cast(metering_service_pb2.ExtendRequest, call.request).token
        self.tokens.put(token)
        return token

    def next(self) -> str:
        return self.tokens.get(timeout=SECONDS)


def extend(token: str) -> Call:
    return Call("Extend", metering_service_pb2.ExtendRequest(token=token), timeout=1, request_id="")


def forever(token: str, seconds: float = 0.001) -> Operation[None]:
    while True:
        yield Wait(seconds)
        assert (yield extend(token)) == token


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def thread(calls: Calls) -> Iterator[KeepAliveThread]:
    made = KeepAliveThread(calls)
    yield made
    made.stop()


def test_all_get_their_turn(thread: KeepAliveThread, calls: Calls) -> None:
    # Long waits hold up nobody.
    thread.add(forever("never", seconds=3_600))
    for name in ("a", "b", "c"):
        thread.add(forever(name))
    seen: set[str] = set()
    while seen != {"a", "b", "c"}:
        seen.add(calls.next())


def test_one_that_is_removed_goes_no_further(thread: KeepAliveThread, calls: Calls) -> None:
    first, _ = thread.add(forever("first")), thread.add(forever("second"))
    while calls.next() != "first":
        pass
    thread.remove(first)
    thread.remove(first)
    # One call of it may have been under way. Behind the mark there is none.
    for _ in range(3):
        while calls.next() != "second":
            pass
    assert "first" not in [calls.next() for _ in range(10)]


def test_one_that_fails_fails_alone(
    thread: KeepAliveThread, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Operation[None]:
        yield extend("broken")
        raise ZeroDivisionError

    def short() -> Operation[None]:
        yield extend("short")

    thread.add(broken())
    thread.add(short())
    thread.add(forever("other"))
    seen = [calls.next() for _ in range(10)]
    assert (seen.count("broken"), seen.count("short"), seen.count("other")) == (1, 1, 8)
    assert "ZeroDivisionError" in caplog.text


def test_nothing_is_begun_after_the_end(calls: Calls) -> None:
    thread = KeepAliveThread(calls)
    thread.stop()
    thread.add(forever("late"))
    assert thread._thread is None
    assert calls.tokens.empty()
