"""Runs: `with client.run(…) as run`. Authorized on entry, settled or released at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self, TypeVar

from tallystick._keepalive import KeepAliveThread
from tallystick._operations import Operation
from tallystick._requests import Amount
from tallystick._retry import RetryPolicy
from tallystick._run import BaseRun, Plan
from tallystick.models import UsageEvent

logger = logging.getLogger("tallystick")
T = TypeVar("T")


class _Drive(Protocol):
    def __call__(self, operation: Operation[T], /) -> T: ...


class _AsyncDrive(Protocol):
    def __call__(self, operation: Operation[T], /) -> Awaitable[T]: ...


class Run(BaseRun):
    """One run of an agent, made by `Client.run`, which explains it. Used in one `with` block, once."""

    def __init__(
        self,
        plan: Plan,
        policy: RetryPolicy,
        keep: Callable[[UsageEvent, str], None],
        drive: _Drive,
        keep_alive: KeepAliveThread,
    ) -> None:
        super().__init__(plan, policy, keep)
        self._drive = drive
        self._keeper = keep_alive
        self._kept: int | None = None

    def extend(
        self,
        *,
        max_cost: Amount | None = None,
        ttl: timedelta | None = None,
        timeout: float | None = None,
    ) -> None:
        """Raise the reservation to `max_cost` in all, or keep it for `ttl` from now on. Never lowers it.

        Raises what `authorize` raises, and ReservationEnded; the reservation then stays as it was. Does
        nothing where there is no reservation.
        """
        self._drive(self._extend(max_cost, ttl, timeout))

    def __enter__(self) -> Self:
        self._drive(self._begin())
        if self._is_to_be_kept_alive():
            self._kept = self._keeper.add(self._keep_alive())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._kept is not None:
            self._keeper.remove(self._kept)
        try:
            self._drive(self._end(exc_value))
        except Exception:
            if exc_value is None:
                raise
            # The host's own exception is the one that matters.
            logger.exception("the end of a run failed: %s", self._name)


class AsyncRun(BaseRun):
    """One run of an agent, made by `AsyncClient.run`. Used in one `async with` block, once."""

    def __init__(
        self,
        plan: Plan,
        policy: RetryPolicy,
        keep: Callable[[UsageEvent, str], None],
        drive: _AsyncDrive,
    ) -> None:
        super().__init__(plan, policy, keep)
        self._drive = drive
        self._keeper: asyncio.Task[None] | None = None

    async def extend(
        self,
        *,
        max_cost: Amount | None = None,
        ttl: timedelta | None = None,
        timeout: float | None = None,
    ) -> None:
        """As `Run.extend`: raise the reservation, or keep it for longer."""
        await self._drive(self._extend(max_cost, ttl, timeout))

    async def __aenter__(self) -> Self:
        await self._drive(self._begin())
        if self._is_to_be_kept_alive():
            self._keeper = asyncio.create_task(self._keep_in_background(), name="tallystick-keepalive")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        try:
            await self._drive(self._end(exc_value))
        except Exception:
            if exc_value is None:
                raise
            # As in Run.
            logger.exception("the end of a run failed: %s", self._name)

    async def _keep_in_background(self) -> None:
        try:
            await self._drive(self._keep_alive())
        except Exception:
            # It concerns nobody: the run is charged also when its reservation has ended.
            logger.exception("the reservation of %s is not kept alive", self._name)
