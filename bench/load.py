"""A closed loop of calls: so many in flight, each followed by the next."""

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


async def drive(
    call: Callable[[int, T], Awaitable[None]], requests: Sequence[T], in_flight: int, limit_seconds: float
) -> Load:
    """Send the requests from `in_flight` callers, whose number is the first argument of `call`.

    After `limit_seconds` no further request is sent. What `call` raises ends the loop.
    """
    latencies: list[float] = []
    left = iter(requests)
    # The client's own collector must not stop the clock of the side whose turn happens to be its own.
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as callers:
            for number in range(in_flight):
                callers.create_task(_caller(call, number, left, latencies, started + limit_seconds))
        return Load(time.perf_counter() - started, latencies)
    except ExceptionGroup as failed:
        # One is enough to tell; the others are most likely the same.
        raise failed.exceptions[0] from None
    finally:
        gc.enable()


async def _caller(
    call: Callable[[int, T], Awaitable[None]],
    number: int,
    left: Iterator[T],
    latencies: list[float],
    deadline: float,
) -> None:
    for request in left:
        sent = time.perf_counter()
        if sent >= deadline:
            return
        await call(number, request)
        latencies.append(time.perf_counter() - sent)
