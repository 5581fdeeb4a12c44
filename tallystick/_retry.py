"""When to try again, and how long to wait: decided here, waited for by whoever calls."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tallystick.errors import TallystickError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How calls are retried. All times are in seconds.

    Only errors that are `retryable` are retried: the request may succeed unchanged, and an event that did
    take effect is not charged again. The n-th wait is random between 0 and min(max_backoff, first_backoff ×
    2ⁿ⁻¹), on top of what the server asked for. A call ends within `timeout`, waits included.
    """

    timeout: float = 30.0
    attempt_timeout: float = 10.0
    first_backoff: float = 0.1
    max_backoff: float = 5.0

    def __post_init__(self) -> None:
        if min(self.timeout, self.attempt_timeout) <= 0 or min(self.first_backoff, self.max_backoff) < 0:
            raise ValueError("timeouts are above zero, waits not below")

    def backoff(self, failures: int) -> float:
        """The random part of the wait after so many failures, from 1."""
        # Bounded before it is computed: 2.0 ** 1100 is an OverflowError.
        ceiling = min(self.max_backoff, self.first_backoff * 2.0 ** min(failures - 1, 60))
        return random.uniform(0, ceiling)  # noqa: S311 - spreads load, keeps no secret

    def wait_after(self, error: TallystickError, failures: int) -> float:
        """How long to wait before the next attempt: what the server asked for, and the random part."""
        asked = error.retry_after.total_seconds() if error.retry_after is not None else 0.0
        return asked + self.backoff(failures)


class Attempts:
    """The attempts at one call: counts failures, and keeps to its time."""

    def __init__(
        self, policy: RetryPolicy, timeout: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._end = clock() + (policy.timeout if timeout is None else timeout)
        self._failures = 0

    def timeout(self) -> float:
        """How long the next attempt may take. Never zero: gRPC would take that for an expired deadline."""
        return max(0.001, min(self._policy.attempt_timeout, self._end - self._clock()))

    def left(self) -> float:
        """The time that is left for everything. Never zero, as above."""
        return max(0.001, self._end - self._clock())

    def wait_after(self, error: TallystickError) -> float:
        """How long to wait before the next attempt. Raises the error if there is none to be made."""
        self._failures += 1
        wait = self._policy.wait_after(error, self._failures)
        if not error.retryable or self._clock() + wait >= self._end:
            raise error
        return wait
