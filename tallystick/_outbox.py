"""Recorded events on their way to the servers: what is sent next, and what became of it.

Knows neither threads nor event loops: `deliver` is an operation (see `_operations`), which a thread or a
task drives.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from google.protobuf.message import Message

from tallystick._buffer import DEFAULT_CAPACITY, Buffer
from tallystick._convert import event_from_proto, event_to_proto, settled_from_proto
from tallystick._operations import (
    BATCH_SIZE,
    Call,
    Operation,
    Verdict,
    Wait,
    first_report,
    new_request_id,
    verdicts_of,
)
from tallystick._refused import Refusals, refused_path
from tallystick._retry import RetryPolicy
from tallystick.errors import (
    AlreadyExists,
    ChargePending,
    FailedPrecondition,
    IdempotencyKeyReused,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ReservationTokenInvalid,
    TallystickError,
    Unauthenticated,
)
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tallystick.models import Refused, UsageEvent

logger = logging.getLogger("tallystick")

# Bits of the first byte of a body. The time of the event is not the host's but that of `add`; and what
# follows is not an event, but what settles a reservation with one.
_TIME_FILLED, _SETTLES = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferOptions:
    """How recorded events are kept until they are delivered: the `buffer_…` arguments of a client."""

    path: str | os.PathLike[str] | None = None
    capacity: int = DEFAULT_CAPACITY
    fsync: bool = False
    on_refused: Callable[[Refused], object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStats:
    """What became of the recorded events since this client was made.

    At any quiet moment recorded + replayed = delivered + refused + buffered.
    """

    recorded: int
    """Taken by `record`."""
    replayed: int
    """Found on disk, from an earlier process."""
    delivered: int
    """Charged, or stored by the servers to be charged soon."""
    refused: int
    """Can never be charged as they are: given to `on_refused`, kept in the file `.refused`."""
    buffered: int
    """Waiting to be delivered."""
    overflowed: int
    """Not taken, because the buffer was full: `record` raised BufferFull."""
    failures: int
    """Failed attempts to deliver."""
    last_error: TallystickError | None
    """Why the latest attempt failed; None when it succeeded."""


# What these say of a whole call they may say of one event in it, which then is looked for.
EVENT_AT_FAULT: Final = (InvalidArgument, NotFound, AlreadyExists, FailedPrecondition)
# These say nothing of the events: whoever repairs the key finds them waiting.
_KEY_AT_FAULT: Final = (Unauthenticated, PermissionDenied)


class _Item(NamedTuple):
    """What waits: an event, with the token of the reservation that it settles, if it has one."""

    event: usage_pb2.UsageEvent
    token: str
    time_filled: bool


class Outbox:
    """Takes events, and delivers them in batches, each until it is charged or refused for good."""

    def __init__(self, options: BufferOptions, policy: RetryPolicy) -> None:
        path = None if options.path is None else Path(options.path)
        self._buffer = Buffer(capacity=options.capacity, path=path, fsync=options.fsync)
        self._refusals = Refusals(None if path is None else refused_path(path), options.on_refused)
        self._policy = policy
        self._process = os.getpid()
        self._limit = BATCH_SIZE
        self._failures_in_a_row = 0
        self._delivered = self._refused = self._failures = 0
        self._last_error: TallystickError | None = None

    def __len__(self) -> int:
        return len(self._buffer)

    def add(self, event: UsageEvent, token: str = "") -> None:
        """Take an event, which settles the reservation of `token`, if there is one.

        It is safe when this returns. Raises what `Buffer.append` raises.
        """
        if os.getpid() != self._process:
            # In a forked child nobody delivers, and the file belongs to the parent.
            raise RuntimeError("this client was made before a fork: make another one in each process")
        flags = 0
        if event.occur_time is None:
            # Now, because it may be delivered hours later.
            flags, event = _TIME_FILLED, replace(event, occur_time=datetime.now(UTC))
        message: Message = event_to_proto(event)
        if token:
            flags |= _SETTLES
            message = metering_service_pb2.SettleRequest(token=token, event=event_to_proto(event))
        self._buffer.append(bytes([flags]) + message.SerializeToString())

    def newest(self) -> int:
        """The number of the latest event, for `count_until`."""
        return self._buffer.newest()

    def count_until(self, number: int) -> int:
        """How many of the events up to this number are not yet delivered."""
        return self._buffer.count_until(number)

    def waiting(self) -> list[UsageEvent]:
        """The events that are not yet delivered."""
        bodies = self._buffer.first(len(self._buffer)).values()
        return [event_from_proto(_read(body).event) for body in bodies]

    def stats(self) -> BufferStats:
        return BufferStats(
            recorded=self._buffer.recorded,
            replayed=self._buffer.replayed,
            delivered=self._delivered,
            refused=self._refused,
            buffered=len(self._buffer),
            overflowed=self._buffer.overflowed,
            failures=self._failures,
            last_error=self._last_error,
        )

    def close(self) -> list[UsageEvent]:
        """Take no more, let go of the file, and answer what is not delivered."""
        self._buffer.close()
        left = self.waiting()
        if left and self._buffer.on_disk:
            logger.warning("%d recorded events are not delivered; the next client delivers them", len(left))
        elif left:
            logger.error("%d recorded events are not delivered, and were only in memory", len(left))
        return left

    def deliver(self) -> Operation[None]:
        """Send what waits, batch after batch, until nothing does."""
        while batch := self._buffer.first(self._limit):
            items = {number: _read(body) for number, body in batch.items()}
            reports = {number: item for number, item in items.items() if not item.token}
            wait = (yield from self._report(reports)) if reports else 0.0
            for number, item in items.items():
                if item.token and not wait:
                    wait = yield from self._settle(number, item)
            if wait:
                yield Wait(wait)

    def _report(self, items: dict[int, _Item]) -> Operation[float]:
        """Meter a batch of events; answers how long to wait before the next call."""
        request = metering_service_pb2.MeterBatchRequest(events=[item.event for item in items.values()])
        answer = yield Call("MeterBatch", request, self._policy.attempt_timeout, new_request_id())
        try:
            if isinstance(answer, TallystickError):
                raise answer
            verdicts = verdicts_of(answer, len(items))
        except TallystickError as error:
            return self._call_failed(items, error)
        return (yield from self._conclude(items, verdicts))

    def _settle(self, number: int, item: _Item) -> Operation[float]:
        """Settle one reservation; answers how long to wait before the next call."""
        request = metering_service_pb2.SettleRequest(token=item.token, event=item.event)
        answer = yield Call("Settle", request, self._policy.attempt_timeout, new_request_id())
        if isinstance(answer, ReservationTokenInvalid):
            # Nothing can be settled with it; but the work is finished, and charged all the same.
            logger.warning("the usage of %s is charged without its reservation: %s", _name(item), answer)
            return (yield from self._report({number: item}))
        if not isinstance(answer, TallystickError):
            return (yield from self._conclude({number: item}, [settled_from_proto(answer).metered]))
        if isinstance(answer, (*EVENT_AT_FAULT, ChargePending)):
            return (yield from self._conclude({number: item}, [answer]))
        # Behind the others, because it may be the only one that fails.
        self._buffer.defer([number])
        return self._call_failed({number: item}, answer)

    def _conclude(self, items: dict[int, _Item], verdicts: list[Verdict]) -> Operation[float]:
        """Remember what became of each event; answers how long to wait before the next call."""
        delivered = 0
        done: list[int] = []
        later: dict[int, TallystickError] = {}
        for (number, item), verdict in zip(items.items(), verdicts, strict=True):
            if isinstance(verdict, IdempotencyKeyReused) and item.time_filled:
                try:
                    verdict = yield from first_report(item.event, verdict, self._policy, None)
                except TallystickError as error:
                    verdict = error
            # Pending is as good as charged: the servers have it.
            if not isinstance(verdict, TallystickError) or isinstance(verdict, ChargePending):
                delivered += 1
                done.append(number)
            elif verdict.retryable or isinstance(verdict, _KEY_AT_FAULT):
                later[number] = verdict
            else:
                self._refuse(item, verdict)
                done.append(number)
        self._buffer.remove(done)
        self._delivered += delivered
        self._limit = min(BATCH_SIZE, 2 * self._limit)
        if not later:
            self._succeeded()
            return 0.0
        self._buffer.defer(later)
        if done:
            self._failures_in_a_row = 0
        return self._failed(next(iter(later.values())))

    def _call_failed(self, items: dict[int, _Item], error: TallystickError) -> float:
        """Decide what a failed call says of its events; answers how long to wait before the next one."""
        wait = self._failed(error)
        if error.retryable or isinstance(error, _KEY_AT_FAULT):
            return wait
        if len(items) > 1:
            # One of them offends, maybe: smaller batches find it, and let the others through.
            self._limit = len(items) // 2
            return wait
        ((number, item),) = items.items()
        if isinstance(error, EVENT_AT_FAULT):
            self._refuse(item, error)
            self._buffer.remove([number])
        else:
            # A defect of the servers, which may be repaired; meanwhile the others go first.
            self._buffer.defer([number])
        return wait

    def _refuse(self, item: _Item, error: TallystickError) -> None:
        # Before it leaves the buffer: a crash in between refuses it twice, which loses nothing.
        self._refusals.add(Refused(event=event_from_proto(item.event), error=error))
        self._refused += 1

    def _succeeded(self) -> None:
        if self._failures_in_a_row:
            logger.info("recorded events are delivered again")
        self._failures_in_a_row = 0
        self._last_error = None

    def _failed(self, error: TallystickError) -> float:
        if not self._failures_in_a_row:
            # Once per outage.
            logger.warning("recorded events are not delivered, will try again: %s", error)
        self._failures += 1
        self._failures_in_a_row += 1
        self._last_error = error
        return self._policy.wait_after(error, self._failures_in_a_row)


def _read(body: bytes) -> _Item:
    flags, content = body[0], body[1:]
    if flags & _SETTLES:
        request = metering_service_pb2.SettleRequest.FromString(content)
        return _Item(request.event, request.token, bool(flags & _TIME_FILLED))
    return _Item(usage_pb2.UsageEvent.FromString(content), "", bool(flags & _TIME_FILLED))


def _name(item: _Item) -> str:
    return f"{item.event.customer_id}/{item.event.workflow_id}/{item.event.ordinal}"
