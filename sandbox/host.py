"""An agent host that reports finished work to metering in batches, and sees every event through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

import grpc

from sandbox.calls import TIMEOUT_SECONDS, Patience, first_of_each, in_flight
from sandbox.replay import Shift, Work
from sandbox.replies import Answer
from services.kit.status import from_item_error
from tallystick.metering.v1.metering_service_pb2 import MeterBatchRequest, MeterVerdict
from tallystick.metering.v1.usage_pb2 import UsageEvent

if TYPE_CHECKING:
    from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceAsyncStub

BATCH_SIZE = 500
# Metering gathers what is in flight; more than a few batches of this size only wait in its queue.
MAX_IN_FLIGHT = 4

Answered = Callable[[Work, Answer], object]


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

        async def report(batch: list[Work]) -> None:
            await self._report(batch, shift, answered)

        await in_flight(MAX_IN_FLIGHT, _batches(first_of_each(work, repeats)), report)
        for batch in _batches(repeats):
            await report(batch)

    async def _report(self, batch: list[Work], shift: Shift, answered: Answered) -> None:
        patience = Patience(batch[0])
        waiting = [(work, work.event(shift)) for work in batch]
        while waiting:
            try:
                verdicts = await self._verdicts([event for _, event in waiting])
            except grpc.aio.AioRpcError as error:
                await patience.wait_after(error)
                continue
            asked_of, waiting = waiting, []
            asked, cause = timedelta(), ""
            for (work, event), verdict in zip(asked_of, verdicts, strict=True):
                if verdict.error.HasField("retry_delay"):
                    cause = verdict.error.message
                    asked = max(asked, from_item_error(verdict.error).retry_after or asked)
                    waiting.append((work, event))
                else:
                    answered(work, _answer(verdict))
            if waiting:
                await patience.wait(cause, asked)

    async def _verdicts(self, events: list[UsageEvent]) -> list[MeterVerdict]:
        response = await self._metering.MeterBatch(MeterBatchRequest(events=events), timeout=TIMEOUT_SECONDS)
        return list(response.verdicts)


def _answer(verdict: MeterVerdict) -> Answer:
    return from_item_error(verdict.error) if verdict.HasField("error") else verdict.metered


def _batches(work: Iterable[Work]) -> Iterator[list[Work]]:
    pieces = iter(work)
    while batch := list(islice(pieces, BATCH_SIZE)):
        yield batch
