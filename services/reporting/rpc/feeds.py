"""Reading a feed in batches of rows.

A feed is read to its end and then asked again, a few times a second, instead of being followed: that there is
nothing new is an answer too, and a stream that says nothing may as well be broken.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import Code
from services.kit.status import from_rpc_error
from services.reporting.domain.facts import Batch
from services.reporting.domain.projection import Feed, FeedGap, LostLog, Progress

B = TypeVar("B", bound=Batch)

# A message this large is decoded in a few milliseconds, for which nothing else runs.
MESSAGE_RECORDS: Final = 500
# Of a feed's first batch.
_FIRST_RECORDS: Final = 2_500


class FeedReader(ABC, Generic[B]):
    """Reads one feed."""

    feed: Feed

    async def batches(self, progress: Progress, size: int) -> AsyncGenerator[B, None]:
        """What is behind a position, in batches of about `size`, the first ones smaller: while they are
        applied, others can be read. The last one goes up to the end of the feed; it always comes, even if it
        is empty.

        Raises LostLog if the log that was read is gone, FeedGap if something was skipped or repeated, and
        TallystickError if the service is away or refuses.
        """
        batch = self._begin(progress.log_id, progress.position)
        enough = min(size, _FIRST_RECORDS)
        call = self._call(progress.log_id, progress.position, min(size, MESSAGE_RECORDS))
        try:
            async for response in call:
                if batch.log_id and response.log_id != batch.log_id:
                    raise LostLog(f"{self.feed}: {response.log_id} came instead of {batch.log_id}")
                batch.log_id = response.log_id
                batch.head = response.head_position
                self._add(batch, response)
                batch.write_out()
                if response.last_position != batch.last:
                    raise FeedGap(
                        f"{self.feed}: {response.last_position} was said to be read after {batch.last}"
                    )
                if batch.count >= enough:
                    yield batch
                    enough = min(size, 2 * enough)
                    batch = self._begin(batch.log_id, batch.last)
        except grpc.aio.AioRpcError as raised:
            error = from_rpc_error(raised)
            if error.code is Code.INVALID_ARGUMENT and any(
                violation.field == "log_id" for violation in error.field_violations
            ):
                raise LostLog(f"{self.feed}: {error.message}") from error
            raise error from raised
        finally:
            call.cancel()
        batch.at_end = True
        yield batch

    @abstractmethod
    def _begin(self, log_id: str, after: int) -> B:
        """An empty batch."""

    @abstractmethod
    def _call(self, log_id: str, after: int, size: int) -> Any:
        """The stream from a position to the end of the feed, in messages of so many records."""

    @abstractmethod
    def _add(self, batch: B, response: Any) -> None:
        """Take what a message says into the batch."""


def micros(time: Timestamp) -> int:
    """A time as micros since 1970: nobody keeps it any finer."""
    return time.seconds * 1_000_000 + time.nanos // 1000
