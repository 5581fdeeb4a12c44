"""Background work of a service: a step, again and again, for as long as the process lives."""

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, Protocol

from prometheus_client import Counter

from services.kit import log
from services.kit.tasks import is_being_cancelled

_STEPS = Counter("tallystick_worker_steps", "Steps of background workers.", ["worker", "outcome"])
_LONGEST_PAUSE: Final = 30.0
_log = log.get_logger()


class Worker(Protocol):
    """Something that runs beside the server."""

    def start(self) -> None:
        """Begin to run, in the running event loop."""

    async def stop(self, grace: timedelta) -> None:
        """Finish what is begun, within `grace`, and run no more."""


class PeriodicWorker:
    """Runs `step` every `interval`, and again at once while it answers True (there is more to do).

    A step that fails is logged, counted, and tried again after a pause that doubles with every failure in a
    row, with jitter so that replicas do not return in step. Nothing but `stop` ends the worker. Who knows
    that there is something to do may `wake` it from its interval.
    """

    def __init__(self, name: str, interval: timedelta, step: Callable[[], Awaitable[bool]]) -> None:
        self._name = name
        self._interval = interval.total_seconds()
        self._step = step
        self._stopping = asyncio.Event()
        # Also set by stop().
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is not None:
            raise RuntimeError(f"worker {self._name} was started before")
        # An empty context: the worker is nobody's request.
        self._task = asyncio.create_task(self._run(), name=self._name, context=contextvars.Context())

    def wake(self) -> None:
        """Run the next step now, or right after the one that runs."""
        self._woken.set()

    async def stop(self, grace: timedelta) -> None:
        self._stopping.set()
        self._woken.set()
        if self._task is None:
            return
        # wait() leaves the task alone when time is up; a step is only cancelled after that.
        _, late = await asyncio.wait([self._task], timeout=grace.total_seconds())
        for task in late:
            _log.warning("worker.cancelled", worker=self._name)
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            # Before the step looks: what comes while it runs makes for another one.
            self._woken.clear()
            try:
                more = await self._step()
            except (Exception, asyncio.CancelledError) as error:
                # A cancellation that is not ours comes from inside the step, and is one more way to fail.
                if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
                    raise
                failures += 1
                _STEPS.labels(self._name, "failed").inc()
                _log.error("worker.failed", worker=self._name, failures=failures, exc_info=error)
                await _wait(self._stopping, self._backoff(failures))
                continue
            failures = 0
            _STEPS.labels(self._name, "done").inc()
            # Even with more to do, others get their turn.
            await (asyncio.sleep(0) if more else _wait(self._woken, self._interval))

    def _backoff(self, failures: int) -> float:
        longest = min(max(self._interval, 0.1) * 2 ** min(failures, 16), _LONGEST_PAUSE)
        return random.uniform(longest / 2, longest)  # noqa: S311 - not a secret


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for so long, or until the event."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
