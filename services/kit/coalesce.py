"""Gathers calls in flight into batches, so that one statement serves many of them."""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from services.kit import log
from services.kit.errors import Code, ResourceExhausted, TallystickError, Unavailable
from services.kit.status import translate
from services.kit.tasks import is_being_cancelled

T = TypeVar("T")
R = TypeVar("R")
_log = log.get_logger()

_LONGEST_PAUSE_SECONDS: Final = 0.004


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T, R]):
    item: T
    answer: asyncio.Future[R]


class Coalescer(Generic[T, R]):
    """Runs `run` over batches of the items that callers submit one by one.

    The first item waits for nothing. While `concurrency` runs are under way, items gather, and the next run
    takes up to `max_batch` of them, in order of arrival. `run` answers one result, or one error, per item, in
    order; if it raises, every caller of that batch gets an error, and no other.

    With `patience`, a run of more than one item is followed by a pause of so many times its own length, at
    most 4 ms, in which more items gather. That is for runs that are over before anything has gathered, and
    cost more than what is in them: a caller who is alone never waits.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[Sequence[R | TallystickError]]],
        *,
        max_batch: int = 256,
        max_queue: int = 4096,
        concurrency: int = 1,
        patience: float = 0.0,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._concurrency = concurrency
        self._patience = patience
        self._queue: deque[_Waiting[T, R]] = deque()
        self._runners: set[asyncio.Task[None]] = set()

    async def submit(self, item: T) -> R:
        """The result for `item`. Raises the error that `run` gave for it, or ResourceExhausted when the queue
        is full.

        A caller that is cancelled before its item's run starts takes the item back; later, the run goes on
        without it.
        """
        if len(self._queue) >= self._max_queue:
            raise ResourceExhausted(f"more than {self._max_queue} calls are waiting")
        waiting: _Waiting[T, R] = _Waiting(item, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if len(self._runners) < self._concurrency:
            # An empty context: a batch is not the request, nor the principal, of whoever happened to come
            # first.
            runner = asyncio.create_task(self._drain(), context=contextvars.Context())
            self._runners.add(runner)
        return await waiting.answer

    async def _drain(self) -> None:
        try:
            while batch := self._take():
                started = time.monotonic()
                await self._serve(batch)
                if self._patience and len(batch) > 1 and len(self._queue) < self._max_batch:
                    # Also with nothing in the queue: those who were just answered are about to ask again.
                    took = time.monotonic() - started
                    await asyncio.sleep(min(self._patience * took, _LONGEST_PAUSE_SECONDS))
        finally:
            # Here and not when the task is done, which the loop says later: who comes in between would take
            # this runner for one that still looks at the queue, and wait for ever.
            runner = asyncio.current_task()
            if runner is not None:
                self._runners.discard(runner)

    def _take(self) -> list[_Waiting[T, R]]:
        batch: list[_Waiting[T, R]] = []
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
        return batch

    async def _serve(self, batch: list[_Waiting[T, R]]) -> None:
        results: Sequence[R | TallystickError]
        try:
            results = await self._run([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except asyncio.CancelledError:
            # The event loop is closing, or a connection was taken away under the statement.
            _fail(batch, Unavailable("the work was interrupted"))
            if is_being_cancelled():
                raise
            return
        except Exception as error:  # noqa: BLE001 - logged by _explain
            _fail(batch, _explain(error, len(batch)))
            return
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(result, TallystickError):
                # Its own copy: one verdict may be the answer to several callers.
                waiting.answer.set_exception(result.fresh())
            else:
                waiting.answer.set_result(result)


def _explain(error: Exception, size: int) -> TallystickError:
    """What a batch's callers are told; logged here, once, and not by each of them."""
    answer = translate(error)
    if answer.code is Code.INTERNAL:
        _log.error("batch.failed", size=size, exc_info=error)
    elif answer is not error:
        _log.warning("batch.dependency_failed", size=size, error=type(error).__name__, detail=str(error))
    return answer


def _fail(batch: Sequence[_Waiting[T, R]], error: TallystickError) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error.fresh())
