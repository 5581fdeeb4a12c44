"""Who keeps the reservations of long runs alive, where there is no event loop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tallystick._operations import Call, Operation, Wait

logger = logging.getLogger("tallystick")


class KeepAliveThread:
    """Drives operations that mostly wait: one thread for all runs of a client, started by the first one.

    It never keeps the process alive, and whatever fails in it concerns no run.
    """

    def __init__(self, call: Callable[[Call], object]) -> None:
        self._call = call
        # Guards what follows, and announces every change of it.
        self._changed = threading.Condition()
        self._operations: dict[int, Operation[None]] = {}
        self._due: dict[int, float] = {}
        self._next = 0
        self._thread: threading.Thread | None = None
        self._stopping = False

    def add(self, operation: Operation[None]) -> int:
        """Drive an operation in the background; answers the number to remove it by."""
        with self._changed:
            number = self._next
            self._next += 1
            self._operations[number] = operation
            self._due[number] = time.monotonic()
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._work, name="tallystick-keepalive", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return number

    def remove(self, number: int) -> None:
        """Drive it no further. Waits for nothing: the answer to a call in flight is ignored."""
        with self._changed:
            self._operations.pop(number, None)
            self._due.pop(number, None)

    def stop(self) -> None:
        """Begin no other call. Waits for nothing: a call in flight ends by itself, and changes nothing."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                number = self._wait_for_next()
                if number is None:
                    return
                # Not due again until it says when.
                operation = self._operations[number]
                del self._due[number]
            seconds = self._advance(operation)
            with self._changed:
                if seconds is None:
                    self._operations.pop(number, None)
                elif number in self._operations:
                    self._due[number] = time.monotonic() + seconds

    def _wait_for_next(self) -> int | None:
        """The number of an operation that is due; None at the end. Called with the lock held."""
        while not self._stopping:
            number = min(self._due, key=self._due.__getitem__, default=None)
            left = None if number is None else self._due[number] - time.monotonic()
            if left is not None and left <= 0:
                return number
            self._changed.wait(left)
        return None

    def _advance(self, operation: Operation[None]) -> float | None:
        """Drive it to its next wait, and answer how long that is; None if it has ended."""
        try:
            step = next(operation)
            while not isinstance(step, Wait):
                step = operation.send(self._call(step))
        except StopIteration:
            return None
        except Exception:
            # A defect of ours must end neither the run nor the thread that the others need.
            logger.exception("a reservation is not kept alive")
            return None
        return step.seconds
