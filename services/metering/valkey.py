"""Valkey or Redis: the connection, and whether it answers.

Reservations are quicker with it and as safe without: whoever finds it away says so here, so that nobody else
waits for it, and it is asked again every second until it is back.
"""

from datetime import timedelta
from typing import Final

import redis.asyncio
import redis.asyncio.cluster
from prometheus_client import Gauge
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.kit import log
from services.kit.worker import PeriodicWorker

Client = redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster

# Longer than any answer takes; a reservation that waits this long was quicker in PostgreSQL.
_TIMEOUT_SECONDS: Final = 1.0
_MAX_CONNECTIONS: Final = 16
_UP = Gauge("tallystick_valkey_up", "1 while Valkey answers, else 0.")
_log = log.get_logger()


def open_client(url: str, *, cluster: bool) -> Client:
    """A client that connects at its first use."""
    # Not tried again below us: whoever calls does something else instead.
    no_retry = Retry(NoBackoff(), 0)
    if cluster:
        return redis.asyncio.cluster.RedisCluster.from_url(
            url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            max_connections=_MAX_CONNECTIONS,
        )
    return redis.asyncio.Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_SECONDS,
        socket_connect_timeout=_TIMEOUT_SECONDS,
        max_connections=_MAX_CONNECTIONS,
        retry=no_retry,
    )


class Valkey:
    """The connection, and whether it answers."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._up: bool | None = None

    @property
    def is_up(self) -> bool:
        """Whether it answered when it was last asked; True before the first time."""
        return self._up is not False

    def failed(self, error: Exception) -> None:
        """Somebody has found it away."""
        self._note(False, str(error))

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """The worker that asks for as long as the process lives."""
        return PeriodicWorker("valkey_watch", interval, self.step)

    async def step(self) -> bool:
        """Ask once. Answers False: there is no more to do."""
        try:
            await self.client.ping()
        except (RedisError, OSError) as error:
            self._note(False, str(error))
        else:
            self._note(True, "")
        return False

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    def _note(self, up: bool, detail: str) -> None:
        _UP.set(up)
        if up is not self._up:
            (_log.info if up else _log.warning)("valkey.up" if up else "valkey.down", detail=detail)
        self._up = up
