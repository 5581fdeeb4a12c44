"""What goes wrong, one thing after the other, while hosts work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from sandbox.servers import PostgresServer
from tests.faults.caches import FaultyValkey
from tests.faults.services import ServiceName, Services

# Longer than any timeout of those who wait for Valkey, shorter than a reservation.
_LONGEST_PAUSE_SECONDS: Final = 2.5
_LONGEST_CALM_SECONDS: Final = 2.0


class Injector:
    """Does a random fault at a time, and counts them. Whatever it took away is back when inject() returns."""

    def __init__(
        self, services: Services, valkey: FaultyValkey, postgres: PostgresServer, choices: random.Random
    ) -> None:
        self._services = services
        self._valkey = valkey
        self._postgres = postgres
        self._random = choices
        # What began when, by the clock that findings are noted by.
        self.history: list[tuple[datetime, str]] = []
        self._faults: Mapping[str, Callable[[], None]] = {
            "kill -9 metering": lambda: self._kill("metering"),
            "kill -9 ledger": lambda: self._kill("ledger"),
            "kill -9 both": lambda: self._kill("ledger", "metering"),
            "kill -9 Valkey": self._kill_valkey,
            "FLUSHALL": self._valkey.flush,
            "stale restore": self._restore,
            "pause Valkey": self._pause_valkey,
            "pause metering": lambda: self._pause("metering"),
            "pause ledger": lambda: self._pause("ledger"),
            "restart PostgreSQL": self._restart_postgres,
        }
        # As often as they are dangerous for their length.
        self._weights = [4, 3, 1, 3, 3, 3, 2, 2, 1, 1]

    def inject(self) -> None:
        """Wait a little, and let one thing go wrong. Blocks."""
        time.sleep(self._random.uniform(0, _LONGEST_CALM_SECONDS))
        (name,) = self._random.choices(list(self._faults), self._weights)
        self.history.append((datetime.now(UTC), name))
        self._faults[name]()
        self._services.check()

    def _kill(self, *names: ServiceName) -> None:
        for name in names:
            self._services.kill(name)
        for name in names:
            self._services.start(name)

    def _kill_valkey(self) -> None:
        self._valkey.kill()
        time.sleep(self._random.uniform(0, 1))
        self._valkey.start()

    def _restore(self) -> None:
        # Mostly of what was so an instant ago: what is older, anybody finds out.
        if not self._valkey.has_copy or self._random.random() < 0.8:
            self._valkey.keep_copy()
            time.sleep(self._random.uniform(0.1, 0.6))
        self._valkey.restore_copy()

    def _pause_valkey(self) -> None:
        pid = self._valkey.pause()
        self._stand_still()
        self._valkey.resume(pid)

    def _pause(self, name: ServiceName) -> None:
        self._services.pause(name)
        self._stand_still()
        self._services.resume(name)

    def _restart_postgres(self) -> None:
        self._postgres.stop(self._random.choice(["fast", "immediate"]))
        self._postgres.start()

    def _stand_still(self) -> None:
        time.sleep(self._random.uniform(0.2, _LONGEST_PAUSE_SECONDS))
