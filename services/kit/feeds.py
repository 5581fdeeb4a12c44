"""Feeds: records in the order of gap-free positions, read in batches from wherever the reader left off.

Positions belong to a log, and mean nothing in another one.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from services.kit.errors import InvalidArgument

T = TypeVar("T")

_DEFAULT_BATCH: Final = 500
_MAX_BATCH: Final = 1000
# How long a follower waits before it looks again.
_POLL_SECONDS: Final = 0.1
# Rows that are made into messages before others get their turn: a millisecond or two.
_TURN: Final = 50


class FeedRequest(Protocol):
    """What the requests for feeds have in common."""

    after_position: int
    log_id: str
    batch_size: int
    follow: bool


@dataclass(frozen=True, slots=True)
class FeedSlice(Generic[T]):
    """What stands at the next positions of a log, up to `last_position`.

    `head_position` is the last position of the log.
    """

    log_id: str
    records: T
    last_position: int
    head_position: int


# Reads a slice: of this log (the current one if empty), behind this position, so many positions at most.
ReadSlice = Callable[[str, int, int], Coroutine[Any, Any, FeedSlice[T]]]


async def read_feed(request: FeedRequest, read: ReadSlice[T]) -> AsyncIterator[FeedSlice[T]]:
    """The slices that a request asks for: up to the head of the log, or, if it follows, for ever.

    `read` is one short transaction, so that a slow reader holds no snapshot open. It is asked for the log
    that was read so far, because a follower must not carry its position into another one.
    """
    size = _batch_size(request)
    if request.after_position < 0:
        raise InvalidArgument.of("after_position", "must not be negative")
    if request.after_position > 0 and not request.log_id:
        raise InvalidArgument.of("log_id", "is required with after_position")
    position = request.after_position
    reading = asyncio.create_task(read(request.log_id, position, size))
    try:
        while True:
            found = await reading
            if position > found.head_position:
                # Restored from a backup, which has the same name as what was lost behind it.
                raise InvalidArgument.of(
                    "log_id",
                    f"ends at position {found.head_position} and not behind {position}: read it from 0",
                )
            read_to, position = position, max(position, found.last_position)
            behind = position < found.head_position
            if behind:
                # One slice ahead: PostgreSQL finds it while this one is made into a message and sent.
                reading = asyncio.create_task(read(found.log_id, position, size))
            if position > read_to:
                yield found
            if behind:
                continue
            if not request.follow:
                return
            await asyncio.sleep(_POLL_SECONDS)
            reading = asyncio.create_task(read(found.log_id, position, size))
    finally:
        # Nobody takes what was read ahead for a reader that went away.
        reading.cancel()


async def in_turns(rows: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """All rows, a few at a time: others shall not wait for all of a slice to be made into a message."""
    for start in range(0, len(rows), _TURN):
        yield rows[start : start + _TURN]
        await asyncio.sleep(0)


def check_log(asked: str, current: str) -> None:
    """Positions of another log mean nothing here: reading on would skip or repeat. Raises InvalidArgument."""
    if asked and asked != current:
        raise InvalidArgument.of("log_id", f"is not the current log, {current}: read it from position 0")


def _batch_size(request: FeedRequest) -> int:
    if request.batch_size < 0:
        raise InvalidArgument.of("batch_size", "must not be negative")
    return min(request.batch_size or _DEFAULT_BATCH, _MAX_BATCH)
