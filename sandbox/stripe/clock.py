"""The stand-in's time: real time or frozen, moved forward on demand, with what falls due on the way."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from itertools import count

DAY = 86_400
HOUR = 3_600


class Clock:
    """Whole seconds since 1970, UTC. Never goes back."""

    def __init__(self, start: int | None = None, *, frozen: bool = False) -> None:
        """`start` is the first time told, now if None; a frozen clock moves only when it is moved."""
        self._frozen_at = (int(time.time()) if start is None else start) if frozen else None
        # A running clock told `_told` when the real one told `_since`.
        self._since = time.time()
        self._told = int(self._since) if start is None else start
        self.speed = 1
        # While something due runs, it sees the time at which it fell due.
        self._pinned: int | None = None
        self._due: list[tuple[int, int, Callable[[], object]]] = []
        self._order = count()
        # Told of what a due action raises; without it, who moved the clock is.
        self.failed: Callable[[Exception], object] | None = None

    @property
    def frozen(self) -> bool:
        return self._frozen_at is not None

    def now(self) -> int:
        if self._pinned is not None:
            return self._pinned
        if self._frozen_at is not None:
            return self._frozen_at
        return self._told + int((time.time() - self._since) * self.speed)

    def outside(self) -> int:
        """The time that a receiver of webhooks knows: the real one, unless this clock is frozen.

        It refuses what seems to be signed long ago or ahead, which a leap of this clock must not cause.
        """
        return self.now() if self.frozen else int(time.time())

    def at(self, when: int, action: Callable[[], object]) -> None:
        """Run `action` once the time is `when`; equal times in the order of asking."""
        heapq.heappush(self._due, (when, next(self._order), action))

    def advance(self, seconds: int) -> None:
        """Move forward and run what falls due, each at its own time.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError("the clock only goes forward")
        if self._frozen_at is not None:
            self._frozen_at += seconds
        else:
            self._told += seconds
        self.run_due()

    def run_at(self, speed: int) -> None:
        """Let so many seconds pass in a real one, from now on.

        Raises:
            ValueError: `speed` is below 1, or the clock is frozen.
        """
        if speed < 1 or self.frozen:
            raise ValueError("a frozen clock stands still" if self.frozen else "time passes at 1 or faster")
        self._told, self._since, self.speed = self.now(), time.time(), speed

    def set(self, when: int) -> None:
        """Move forward to `when`.

        Raises:
            ValueError: `when` has passed.
        """
        self.advance(when - self.now())

    def run_due(self) -> None:
        """Run what has fallen due. What it schedules in turn runs too, if due."""
        until = self.now()
        while self._due and self._due[0][0] <= until:
            when, _, action = heapq.heappop(self._due)
            self._pinned = when
            try:
                action()
            except Exception as error:
                if self.failed is None:
                    raise
                self.failed(error)
            finally:
                self._pinned = None
