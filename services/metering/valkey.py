"""Whether Valkey answers. Nothing depends on it yet: finished work is metered without."""

from datetime import timedelta

import redis.asyncio
from prometheus_client import Gauge
from redis.exceptions import RedisError

from services.kit import log
from services.kit.worker import PeriodicWorker

_UP = Gauge("tallystick_valkey_up", "1 while Valkey answers, else 0.")
_log = log.get_logger()


class ValkeyWatch:
    """Asks Valkey whether it is there, and tells metrics and log. Reconnects by itself."""

    def __init__(self, url: str) -> None:
        self._client = redis.asyncio.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        self._up: bool | None = None

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """The worker that asks for as long as the process lives."""
        return PeriodicWorker("valkey_watch", interval, self.step)

    async def step(self) -> bool:
        """Ask once. Answers False: there is no more to do."""
        up, detail = True, ""
        try:
            await self._client.ping()
        except (RedisError, OSError) as error:
            up, detail = False, str(error)
        _UP.set(up)
        if up is not self._up:
            (_log.info if up else _log.warning)("valkey.up" if up else "valkey.down", detail=detail)
        self._up = up
        return False

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()
