"""An agent host: reports finished work to metering in batches, and sees every event through."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from sandbox.replay import BadLine, ReplayError, Shift, Work
from services.kit.errors import TallystickError
from services.kit.status import from_item_error, from_rpc_error
from tallystick.metering.v1.metering_service_pb2 import MeterBatchRequest, MeterVerdict
from tallystick.metering.v1.usage_pb2 import UsageEvent

if TYPE_CHECKING:
    from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceAsyncStub

BATCH_SIZE = 500
# Metering gathers what is in flight; more than a few batches of this size only wait in its queue.
MAX_IN_FLIGHT = 4
# With the waits below about a minute in all: a service that is restarted is back by then.
MAX_ATTEMPTS = 15
TIMEOUT_SECONDS = 60.0

_FIRST_WAIT = timedelta(milliseconds=100)
_LONGEST_WAIT = timedelta(seconds=5)

# What a host may simply send again: an event is charged once, however often it arrives.
_RETRIED = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
}

Answered = Callable[[Work, MeterVerdict], object]


class Replies:
    """What metering answered, over all replays of the same recordings."""

    def __init__(self) -> None:
        # What each charge was said to cost, in micros.
        self.prices: dict[str, int] = {}
        self.charges_of: Counter[str] = Counter()
        self.duplicates = 0
        self.refusals = 0
        self.refused: dict[tuple[Path, int], BadLine] = {}
        # Whether each charge was new once, and cost the same every time.
        self.consistent = True

    def hear(self, work: Work, verdict: MeterVerdict) -> BadLine | None:
        """Take in one verdict; answers the line if it is refused for the first time."""
        if verdict.HasField("error"):
            return self._hear_refusal(work, from_item_error(verdict.error))
        metered = verdict.metered
        price = metered.price_charged.amount_micros
        if metered.charge_id not in self.prices:
            # New, even when it says duplicate: then the answer to our first attempt was lost on the way.
            self.prices[metered.charge_id] = price
            self.charges_of[work.party.organization_id] += 1
        else:
            self.duplicates += metered.duplicate
            self.consistent &= metered.duplicate and price == self.prices[metered.charge_id]
        return None

    def _hear_refusal(self, work: Work, error: TallystickError) -> BadLine | None:
        self.refusals += 1
        line = work.path, work.number
        if line in self.refused:
            return None
        self.refused[line] = work.refused(f"refused, {error.code.name}: {error.message}")
        return self.refused[line]


class AgentHost:
    """Reports finished work, a few batches in flight, and passes on each piece's final verdict."""

    def __init__(self, metering: MeteringServiceAsyncStub) -> None:
        self._metering = metering

    async def replay(self, work: Iterable[Work], shift: Shift, answered: Answered) -> None:
        """Report all of `work`, its times moved by `shift`; `answered` hears every verdict.

        Raises:
            ReplayError: a batch was not answered in MAX_ATTEMPTS.
            grpc.aio.AioRpcError: a batch was refused for a reason that trying again does not mend.
        """
        repeats: list[Work] = []
        slots = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def report(batch: list[Work]) -> None:
            try:
                await self._report(batch, shift, answered)
            finally:
                slots.release()

        try:
            async with asyncio.TaskGroup() as group:
                for batch in _batches(_first_of_each(work, repeats)):
                    # Taken before the next batch is read: what waits is bounded, however long the recording.
                    await slots.acquire()
                    group.create_task(report(batch))
        except ExceptionGroup as failed:
            # One is enough to tell; the others are most likely the same.
            raise failed.exceptions[0] from None
        # A second line of the same run must find the first one charged, or chance would say which of two that
        # differ counts. So these go last, one batch after the other.
        for batch in _batches(repeats):
            await self._report(batch, shift, answered)

    async def _report(self, batch: list[Work], shift: Shift, answered: Answered) -> None:
        waiting = [(work, work.event(shift)) for work in batch]
        for attempt in range(MAX_ATTEMPTS):
            asked, cause = timedelta(), ""
            try:
                verdicts = await self._verdicts([event for _, event in waiting])
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RETRIED:
                    raise
                cause = f"{error.code().name}: {error.details()}"
                asked = from_rpc_error(error).retry_after or asked
            else:
                asked_of = waiting
                waiting = []
                for (work, event), verdict in zip(asked_of, verdicts, strict=True):
                    if verdict.error.HasField("retry_delay"):
                        cause = verdict.error.message
                        asked = max(asked, from_item_error(verdict.error).retry_after or asked)
                        waiting.append((work, event))
                    else:
                        answered(work, verdict)
                if not waiting:
                    return
            await asyncio.sleep(_wait(attempt, asked).total_seconds())
        first = waiting[0][0]
        raise ReplayError(
            f"{first.path}:{first.number} and others: no answer in {MAX_ATTEMPTS} attempts: {cause}"
        )

    async def _verdicts(self, events: list[UsageEvent]) -> list[MeterVerdict]:
        response = await self._metering.MeterBatch(MeterBatchRequest(events=events), timeout=TIMEOUT_SECONDS)
        return list(response.verdicts)


def _first_of_each(work: Iterable[Work], repeats: list[Work]) -> Iterator[Work]:
    """The first piece of work of each workflow; the others go to `repeats`."""
    seen: set[str] = set()
    for piece in work:
        if piece.workflow_id in seen:
            repeats.append(piece)
        else:
            seen.add(piece.workflow_id)
            yield piece


def _batches(work: Iterable[Work]) -> Iterator[list[Work]]:
    pieces = iter(work)
    while batch := list(islice(pieces, BATCH_SIZE)):
        yield batch


def _wait(attempt: int, asked: timedelta) -> timedelta:
    """As long as the server asked, at least the usual backoff, and not in step with other callers."""
    backoff = min(_FIRST_WAIT * 2.0**attempt, _LONGEST_WAIT)
    return max(asked, backoff) * random.uniform(1.0, 1.25)  # noqa: S311 - spreads load, keeps no secret
