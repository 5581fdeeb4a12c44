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
from typing import Final

from tallystick._buffer import DEFAULT_CAPACITY, Buffer
from tallystick._convert import event_from_proto, event_to_proto
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
    TallystickError,
    Unauthenticated,
)
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tallystick.models import Refused, UsageEvent

logger = logging.getLogger("tallystick")

# The first byte of a body: whether the host gave the time of the event, or `record` did.
_TIME_GIVEN, _TIME_FILLED = b"\0", b"\1"


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
_EVENT_AT_FAULT: Final = (InvalidArgument, NotFound, AlreadyExists, FailedPrecondition)
# These say nothing of the events: whoever repairs the key finds them waiting.
_KEY_AT_FAULT: Final = (Unauthenticated, PermissionDenied)


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

    def add(self, event: UsageEvent) -> None:
        """Take an event; it is safe when this returns. Raises what `Buffer.append` raises."""
        if os.getpid() != self._process:
            # In a forked child nobody delivers, and the file belongs to the parent.
            raise RuntimeError("this client was made before a fork: make another one in each process")
        flag = _TIME_GIVEN
        if event.occur_time is None:
            # Now, because it may be delivered hours later.
            flag, event = _TIME_FILLED, replace(event, occur_time=datetime.now(UTC))
        self._buffer.append(flag + event_to_proto(event).SerializeToString())

    def newest(self) -> int:
        """The number of the latest event, for `count_until`."""
        return self._buffer.newest()

    def count_until(self, number: int) -> int:
        """How many of the events up to this number are not yet delivered."""
        return self._buffer.count_until(number)

    def waiting(self) -> list[UsageEvent]:
        """The events that are not yet delivered."""
        return [event_from_proto(_message(body)) for body in self._buffer.first(len(self._buffer)).values()]

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
            messages = {number: _message(body) for number, body in batch.items()}
            request = metering_service_pb2.MeterBatchRequest(events=messages.values())
            answer = yield Call("MeterBatch", request, self._policy.attempt_timeout, new_request_id())
            try:
                if isinstance(answer, TallystickError):
                    raise answer
                verdicts = verdicts_of(answer, len(messages))
            except TallystickError as error:
                wait = self._call_failed(messages, error)
            else:
                wait = yield from self._settle(batch, messages, verdicts)
            if wait:
                yield Wait(wait)

    def _settle(
        self, batch: dict[int, bytes], messages: dict[int, usage_pb2.UsageEvent], verdicts: list[Verdict]
    ) -> Operation[float]:
        """Remember what became of each event of a batch; answers how long to wait before the next one."""
        delivered = 0
        done: list[int] = []
        later: dict[int, TallystickError] = {}
        for (number, message), verdict in zip(messages.items(), verdicts, strict=True):
            if isinstance(verdict, IdempotencyKeyReused) and batch[number].startswith(_TIME_FILLED):
                try:
                    verdict = yield from first_report(message, verdict, self._policy, None)
                except TallystickError as error:
                    verdict = error
            # Pending is as good as charged: the servers have it.
            if not isinstance(verdict, TallystickError) or isinstance(verdict, ChargePending):
                delivered += 1
                done.append(number)
            elif verdict.retryable or isinstance(verdict, _KEY_AT_FAULT):
                later[number] = verdict
            else:
                self._refuse(message, verdict)
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

    def _call_failed(self, messages: dict[int, usage_pb2.UsageEvent], error: TallystickError) -> float:
        """Decide what a failed call says of its events; answers how long to wait before the next one."""
        wait = self._failed(error)
        if error.retryable or isinstance(error, _KEY_AT_FAULT):
            return wait
        if len(messages) > 1:
            # One of them offends, maybe: smaller batches find it, and let the others through.
            self._limit = len(messages) // 2
            return wait
        ((number, message),) = messages.items()
        if isinstance(error, _EVENT_AT_FAULT):
            self._refuse(message, error)
            self._buffer.remove([number])
        else:
            # A defect of the servers, which may be repaired; meanwhile the others go first.
            self._buffer.defer([number])
        return wait

    def _refuse(self, message: usage_pb2.UsageEvent, error: TallystickError) -> None:
        # Before it leaves the buffer: a crash in between refuses it twice, which loses nothing.
        self._refusals.add(Refused(event=event_from_proto(message), error=error))
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


def _message(body: bytes) -> usage_pb2.UsageEvent:
    return usage_pb2.UsageEvent.FromString(body[1:])
