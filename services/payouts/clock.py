"""The clock of a sandbox, which people may move."""

from datetime import UTC, datetime, timedelta
from typing import Final

import httpx

from services.kit.clock import Clock, SystemClock
from services.kit.worker import PeriodicWorker

_INTERVAL: Final = timedelta(milliseconds=100)
# The other clock tells whole seconds: a smaller difference is no move, and to follow it would be to go back
# at times.
_SMALLEST_MOVE: Final = timedelta(seconds=2)


class FollowedClock:
    """This machine's clock, moved to where another one is.

    That one answers a POST to `url` with `{"now": seconds since 1970}`, as the stand-in for Stripe does: a
    person who lets a week pass there lets it pass here too.
    """

    def __init__(self, url: str, *, machine: Clock | None = None) -> None:
        self._url = url
        self._machine = machine or SystemClock()
        self._offset = timedelta(0)
        self._http = httpx.AsyncClient(timeout=5.0)

    def now(self) -> datetime:
        return self._machine.now() + self._offset

    async def follow(self) -> bool:
        """Look at the other clock once."""
        answer = await self._http.post(self._url, json={})
        answer.raise_for_status()
        there = datetime.fromtimestamp(int(answer.json()["now"]), UTC)
        if abs(there - self.now()) >= _SMALLEST_MOVE:
            self._offset = there - self._machine.now()
        return False

    def worker(self) -> PeriodicWorker:
        """Looks again and again."""
        return PeriodicWorker("clock", _INTERVAL, self.follow)

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()
