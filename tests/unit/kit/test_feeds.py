"""Reading feeds: where a read starts and ends, and what is read ahead."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from services.kit.errors import InvalidArgument
from services.kit.feeds import FeedSlice, check_log, in_turns, read_feed


@dataclass
class Request:
    after_position: int = 0
    log_id: str = ""
    batch_size: int = 0
    follow: bool = False


@dataclass
class Log:
    """A log of so many positions, and the reads that it answered."""

    head: int
    log_id: str = "log_a"
    reads: list[tuple[str, int, int]] = field(default_factory=list)

    async def read(self, log_id: str, after: int, size: int) -> FeedSlice[list[int]]:
        self.reads.append((log_id, after, size))
        check_log(log_id, self.log_id)
        last = max(after, min(after + size, self.head))
        return FeedSlice(self.log_id, list(range(after + 1, last + 1)), last, self.head)

    def open(self, request: Request) -> AsyncIterator[FeedSlice[list[int]]]:
        return read_feed(request, self.read)


async def test_a_read_ends_at_the_head_of_the_log() -> None:
    log = Log(head=5)
    slices = [found.records async for found in log.open(Request(batch_size=2))]
    assert slices == [[1, 2], [3, 4], [5]]
    # No more reads than it takes, and all but the first of the log that the first one found.
    assert log.reads == [("", 0, 2), ("log_a", 2, 2), ("log_a", 4, 2)]
    assert [found async for found in Log(head=0).open(Request())] == []
    assert [found async for found in log.open(Request(after_position=5, log_id="log_a"))] == []


async def test_a_log_that_ends_before_the_position_is_not_the_one_that_was_read() -> None:
    with pytest.raises(InvalidArgument, match="ends at position 5"):
        await anext(Log(head=5).open(Request(after_position=6, log_id="log_a")))


async def test_one_slice_is_read_ahead_and_no_more() -> None:
    log = Log(head=100)
    feed = log.open(Request(batch_size=1))
    assert (await anext(feed)).records == [1]
    for _ in range(5):
        await asyncio.sleep(0)
    assert [after for _, after, _ in log.reads] == [0, 1]


async def test_a_follower_gets_what_comes_and_does_not_go_on_in_another_log() -> None:
    log = Log(head=1)
    feed = log.open(Request(follow=True))
    assert (await anext(feed)).records == [1]
    log.head = 3
    assert (await anext(feed)).records == [2, 3]
    log.log_id = "log_b"
    with pytest.raises(InvalidArgument):
        await anext(feed)


@pytest.mark.parametrize(
    "request_",
    [Request(after_position=-1), Request(after_position=1), Request(batch_size=-1), Request(log_id="log_b")],
)
async def test_what_makes_no_sense_is_refused(request_: Request) -> None:
    with pytest.raises(InvalidArgument):
        await anext(Log(head=1).open(request_))


@pytest.mark.parametrize(("asked", "given"), [(0, 500), (7, 7), (5_000, 1_000)])
async def test_slices_are_bounded(asked: int, given: int) -> None:
    log = Log(head=1)
    async for _ in log.open(Request(batch_size=asked)):
        pass
    assert log.reads == [("", 0, given)]


async def test_turns_lose_nothing() -> None:
    rows = list(range(203))
    turns = [turn async for turn in in_turns(rows)]
    assert len(turns) > 1
    assert [row for turn in turns for row in turn] == rows
