"""Who drives the outbox: a thread, or a task of an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

from tallystick._operations import Call, Wait
from tallystick._outbox import Outbox

logger = logging.getLogger("tallystick")

# After a defect or a full disk; there is nothing that says how long it lasts.
_PAUSE_SECONDS: Final = 1.0


class DeliveryThread:
    """Delivers in the background, from the first event on. Its thread never keeps the process alive."""

    def __init__(self, outbox: Outbox, call: Callable[[Call], object]) -> None:
        self._outbox = outbox
        self._call = call
        self._thread: threading.Thread | None = None
        # Guards the two flags, and announces whatever changes: an event to send, one delivered, the end.
        self._changed = threading.Condition()
        self._hurry = False
        self._stopping = False

    def notify(self) -> None:
        """There is something to deliver."""
        with self._changed:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._work, name="tallystick-delivery", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float | None) -> int:
        """Wait until what is recorded by now is delivered; answers how many events are not."""
        newest = self._outbox.newest()
        if timeout == 0 or not self._outbox.count_until(newest):
            return self._outbox.count_until(newest)
        self.notify()
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._stopping or not self._outbox.count_until(newest), timeout=timeout
            )
        return self._outbox.count_until(newest)

    def stop(self) -> None:
        """Begin no other call. Returns at once; `join` waits for the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or len(self._outbox))
                if self._stopping:
                    return
            try:
                self._deliver()
            except Exception:
                # A full disk, or a defect of ours. The events are still there; a dead thread would strand
                # them.
                logger.exception("delivering recorded events failed, will try again")
                self._pause(_PAUSE_SECONDS)

    def _deliver(self) -> None:
        operation = self._outbox.deliver()
        answer: object = None
        while not self._stopping:
            try:
                step = operation.send(answer)
            except StopIteration:
                return
            finally:
                with self._changed:
                    self._changed.notify_all()
            if isinstance(step, Wait):
                self._pause(step.seconds)
                answer = None
            else:
                answer = self._call(step)

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._hurry, timeout=seconds)
            # One flush hurries one wait: a server that is away is not asked in a tight loop.
            self._hurry = False


class DeliveryTask:
    """Delivers in a task of the event loop that it is first used in."""

    def __init__(self, outbox: Outbox, call: Callable[[Call], Awaitable[object]]) -> None:
        self._outbox = outbox
        self._call = call
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._more = asyncio.Event()

    def notify(self) -> None:
        """There is something to deliver. Raises RuntimeError outside of an event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(), name="tallystick-delivery")
        self._more.set()

    async def flush(self, timeout: float | None) -> int:
        """Wait until what is recorded by now is delivered; answers how many events are not."""
        newest = self._outbox.newest()
        if timeout == 0:
            return self._outbox.count_until(newest)
        end = None if timeout is None else time.monotonic() + timeout
        self._hurry.set()
        while left := self._outbox.count_until(newest):
            self.notify()
            self._changed.clear()
            try:
                await asyncio.wait_for(
                    self._changed.wait(), None if end is None else max(0.0, end - time.monotonic())
                )
            except TimeoutError:
                return left
        return 0

    async def stop(self) -> None:
        """End now; a call in flight is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            try:
                await self._deliver()
            except Exception:
                # As in the thread: the events are still there.
                logger.exception("delivering recorded events failed, will try again")
                self._more.set()
                await self._pause(_PAUSE_SECONDS)

    async def _deliver(self) -> None:
        operation = self._outbox.deliver()
        answer: object = None
        while True:
            try:
                step = operation.send(answer)
            except StopIteration:
                return
            finally:
                self._changed.set()
            if isinstance(step, Wait):
                await self._pause(step.seconds)
                answer = None
            else:
                answer = await self._call(step)

    async def _pause(self, seconds: float) -> None:
        # One flush hurries one wait, as in the thread.
        try:
            await asyncio.wait_for(self._hurry.wait(), seconds)
        except TimeoutError:
            return
        finally:
            self._hurry.clear()
