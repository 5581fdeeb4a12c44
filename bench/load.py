"""Loops of calls: so many in flight, each followed by the next; or so many in a second."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Load:
    """What one loop of calls did: how long all of it and each call took, in seconds."""

    seconds: float
    latencies: Sequence[float]


@dataclass(frozen=True, slots=True)
class _Clock:
    started: float
    interval: float | None
    deadline: float

    async def turn(self, position: int) -> float:
        """Wait for a request's turn; the time that its answer is measured from."""
        now = time.perf_counter()
        if self.interval is None:
            return now
        due = self.started + position * self.interval
        if due > now:
            await asyncio.sleep(due - now)
        return due


async def drive(
    call: Callable[[int, T], Awaitable[None]],
    requests: Sequence[T],
    in_flight: int,
    limit_seconds: float,
    *,
    per_second: float | None = None,
) -> Load:
    """Send the requests from `in_flight` callers, whose number is the first argument of `call`.

    With `per_second`, each request is due at a time of its own, and takes from then on: one that finds every
    caller busy has waited for as long as it was late. After `limit_seconds` no further request is sent. What
    `call` raises ends the loop.
    """
    latencies: list[float] = []
    left = iter(enumerate(requests))
    interval = None if per_second is None else 1 / per_second
    # The client's own collector must not stop the clock of the side whose turn happens to be its own.
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        clock = _Clock(started, interval, started + limit_seconds)
        async with asyncio.TaskGroup() as callers:
            for number in range(in_flight):
                callers.create_task(_caller(call, number, left, latencies, clock))
        return Load(time.perf_counter() - started, latencies)
    except ExceptionGroup as failed:
        # One is enough to tell; the others are most likely the same.
        raise failed.exceptions[0] from None
    finally:
        gc.enable()


async def _caller(
    call: Callable[[int, T], Awaitable[None]],
    number: int,
    left: Iterator[tuple[int, T]],
    latencies: list[float],
    clock: _Clock,
) -> None:
    for position, request in left:
        begun = await clock.turn(position)
        if time.perf_counter() >= clock.deadline:
            return
        await call(number, request)
        latencies.append(time.perf_counter() - begun)
