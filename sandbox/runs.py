"""An agent host that asks before it runs: authorize, run, settle. What is refused does not happen."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import grpc

from sandbox.calls import TIMEOUT_SECONDS, first_of_each, in_flight, persist
from sandbox.host import Answered
from sandbox.replay import CAPPED_CUSTOMER, ONE_DOLLAR_CUSTOMER, ReplayError, Shift, Work
from sandbox.replies import Answer
from services.kit.status import from_rpc_error
from tallystick.metering.v1.metering_service_pb2 import (
    AuthorizeResponse,
    GetBalanceRequest,
    MeteredEvent,
    MeterRequest,
    ReleaseRequest,
    SettleRequest,
    SettleResponse,
)
from tallystick.metering.v1.outcome_pb2 import DEFERRED_OUTCOME_STATE_PENDING

if TYPE_CHECKING:
    from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceAsyncStub

# Metering gathers what is in flight, so that many runs at once cost little more than one.
MAX_IN_FLIGHT = 64
# Their runs go one after the other: which of them are refused must not depend on which came first.
ONE_BY_ONE = (ONE_DOLLAR_CUSTOMER, CAPPED_CUSTOMER)
# An outcome expires within a second or two of its time; far later than this, outcomes do not expire at all.
HELD_SECONDS = 60.0
_POLL_SECONDS = 0.1

# These say something about the run; every other status is about the service or the key.
_OF_THE_RUN = {
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
}


class RunHost:
    """Carries out recorded runs, many at once, and passes on how each was answered in the end."""

    def __init__(self, metering: MeteringServiceAsyncStub) -> None:
        self._metering = metering
        self._turns = {customer_id: asyncio.Lock() for customer_id in ONE_BY_ONE}

    async def replay(self, work: Iterable[Work], shift: Shift, answered: Answered) -> None:
        """Authorize and settle all of `work`, its times moved by `shift`; `answered` hears every answer.

        Raises:
            ReplayError: a call was not answered in MAX_ATTEMPTS.
            grpc.aio.AioRpcError: a call was refused for a reason that is not the run's.
        """
        repeats: list[Work] = []

        async def run(piece: Work) -> None:
            # The lock wakes who waits in the order of their coming, which is that of the recording.
            async with self._turns.get(piece.customer_id) or nullcontext():
                answered(piece, await self._run(piece, shift))

        await in_flight(MAX_IN_FLIGHT, first_of_each(work, repeats), run)
        for piece in repeats:
            await run(piece)

    async def _run(self, work: Work, shift: Shift) -> Answer:
        try:
            authorized = await self._authorize(work)
            # Here the agent would work.
            if authorized is None:
                return await self._meter(work, shift)
            return await self._settle(work, shift, authorized)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _OF_THE_RUN:
                raise
            return from_rpc_error(error)

    async def _authorize(self, work: Work) -> AuthorizeResponse | None:
        """The reservation; None if this attempt had one before which is over."""
        request = work.authorization()
        try:
            return await persist(work, lambda: self._metering.Authorize(request, timeout=TIMEOUT_SECONDS))
        except grpc.aio.AioRpcError as error:
            if from_rpc_error(error).reason == "RESERVATION_ENDED":
                return None
            raise

    async def _settle(self, work: Work, shift: Shift, authorized: AuthorizeResponse) -> SettleResponse:
        token = authorized.reservation.token
        request = SettleRequest(token=token, event=work.event(shift))
        try:
            settled = await persist(work, lambda: self._metering.Settle(request, timeout=TIMEOUT_SECONDS))
        except grpc.aio.AioRpcError as error:
            if error.code() in _OF_THE_RUN:
                # Metering does not take the event: then nothing need be kept for it.
                release = ReleaseRequest(token=token)
                await persist(work, lambda: self._metering.Release(release, timeout=TIMEOUT_SECONDS))
            raise
        if work.customer_id == ONE_DOLLAR_CUSTOMER and _is_pending(settled.metered):
            await self._until_nothing_is_held(work)
        return settled

    async def _meter(self, work: Work, shift: Shift) -> MeteredEvent:
        """Report a run that was authorized before: it was done then, so it is not refused now."""
        request = MeterRequest(event=work.event(shift))
        answer = await persist(work, lambda: self._metering.Meter(request, timeout=TIMEOUT_SECONDS))
        return answer.metered

    async def _until_nothing_is_held(self, work: Work) -> None:
        """Wait for what is held for an outcome to come back.

        Else how long that takes would say whether the next run of a customer who is short finds its credits.
        """
        request = GetBalanceRequest(customer_id=work.customer_id)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + HELD_SECONDS
        while loop.time() < deadline:
            answer = await persist(work, lambda: self._metering.GetBalance(request, timeout=TIMEOUT_SECONDS))
            if answer.balance.held.amount_micros == 0:
                return
            await asyncio.sleep(_POLL_SECONDS)
        raise ReplayError(f"{work.path}:{work.number}: what is held for its outcome does not come back")


def _is_pending(metered: MeteredEvent) -> bool:
    return metered.deferred_outcome.state == DEFERRED_OUTCOME_STATE_PENDING
