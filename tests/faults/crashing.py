"""A payouts worker in a process of its own that kills itself, with SIGKILL, at the n-th step of its work.

The steps are found, not listed: before and after each commit, each call to the ledger and each call to
Stripe, while the worker works on an organization.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from services.kit.db import Database
from services.payouts.app import open_app
from services.payouts.config import PayoutsConfig
from services.payouts.executor import Executor
from services.payouts.processor.api import StripeApi
from services.payouts.rpc import ledger

NEVER: Final = 10**9
LONGEST_SECONDS: Final = 60.0

_at_work: ContextVar[bool] = ContextVar("at_work", default=False)
# Forked from a process that has imported all of this, and opened nothing: a crash costs a few milliseconds.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.faults.crashing"])


class _Clock:
    def __init__(self, ahead: timedelta) -> None:
        self._ahead = ahead

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead


class _Steps:
    """Counts steps, and ends the process at one of them."""

    def __init__(self, last: int) -> None:
        self._last = last
        self._taken = 0

    def take(self) -> None:
        if not _at_work.get():
            return
        self._taken += 1
        if self._taken == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


def work(config: PayoutsConfig, *, crash_at: int = NEVER, ahead: timedelta = timedelta(0)) -> bool:
    """Let a new process work until nothing is due. Answers whether it came to that, and was not killed
    before.
    """
    process = _processes.Process(target=_main, args=(config, crash_at, ahead))
    process.start()
    process.join(LONGEST_SECONDS)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == 0


def _main(config: PayoutsConfig, crash_at: int, ahead: timedelta) -> None:
    _instrument(_Steps(crash_at))
    asyncio.run(_work(config, _Clock(ahead)))


async def _work(config: PayoutsConfig, clock: _Clock) -> None:
    async with open_app(config, clock=clock) as app:
        executor: Any = app.executor
        while await executor.step() or executor.worked:
            executor.worked = False


def _instrument(steps: _Steps) -> None:
    """Put a step before and after whatever has an effect."""
    begin, call, answer, work_on = Database.begin, StripeApi.call, ledger._answer, Executor._work_on

    @asynccontextmanager
    async def counted_begin(self: Database) -> AsyncIterator[Any]:
        async with begin(self) as connection:
            yield connection
            steps.take()
        steps.take()

    async def counted_call(self: StripeApi, *arguments: Any, **more: Any) -> Any:
        steps.take()
        try:
            return await call(self, *arguments, **more)
        finally:
            steps.take()

    async def counted_answer(awaited: Any) -> Any:
        steps.take()
        try:
            return await answer(awaited)
        finally:
            steps.take()

    async def at_work(self: Any, organization_id: str) -> None:
        token = _at_work.set(True)
        try:
            await work_on(self, organization_id)
            self.worked = True
        finally:
            _at_work.reset(token)

    for owner, name, counted in (
        (Executor, "worked", False),
        (Executor, "_work_on", at_work),
        (Database, "begin", counted_begin),
        (StripeApi, "call", counted_call),
        (ledger, "_answer", counted_answer),
    ):
        setattr(owner, name, counted)
