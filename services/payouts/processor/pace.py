"""How fast the payment processor is called."""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

_LONGEST_PAUSE: Final = 60.0


class Pace:
    """At most so many calls a second, and none for a while after the processor said that it was too many.

    Stripe takes 100 calls a second of a live account, 25 of a sandbox and of one endpoint, and its library
    does not retry a 429. The pause doubles with each 429 in a row and begins again with the first answer that
    is none.
    """

    def __init__(self, calls_per_second: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1 / calls_per_second
        self._monotonic = monotonic
        # When the next call may begin.
        self._next = monotonic()
        self._throttled = 0

    async def turn(self) -> None:
        """Wait for one's turn."""
        now = self._monotonic()
        begin = max(now, self._next)
        # Taken before the wait, so that who comes meanwhile gets a later one.
        self._next = begin + self._interval
        if begin > now:
            await asyncio.sleep(begin - now)

    def throttled(self) -> timedelta:
        """A call was answered 429: let nobody call for a while, which is answered."""
        self._throttled += 1
        longest = min(0.5 * 2**self._throttled, _LONGEST_PAUSE)
        pause = random.uniform(longest / 2, longest)  # noqa: S311 - not a secret
        self._next = max(self._next, self._monotonic() + pause)
        return timedelta(seconds=pause)

    def answered(self) -> None:
        """A call was answered otherwise."""
        self._throttled = 0
