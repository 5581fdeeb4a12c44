"""A worker of metering in a process of its own that kills itself, with SIGKILL, at the n-th step of its work.

The steps are found, not listed: before and after each commit, and each posting of charges to the ledger.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from services.kit.db import Database
from services.metering.app import open_app
from services.metering.config import MeteringConfig
from services.metering.domain.usage_record import IntendedCharge
from services.metering.rpc.ledger import Ledger, PostVerdict

NEVER: Final = 10**9
LONGEST_SECONDS: Final = 60.0

# Forked from a process that has imported all of this, and opened nothing: a crash costs a few milliseconds.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.faults.crashing_metering"])


class _Steps:
    """Counts steps, and ends the process at one of them."""

    def __init__(self, last: int) -> None:
        self._last = last
        self._taken = 0

    def take(self) -> None:
        self._taken += 1
        if self._taken == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


def work(config: MeteringConfig, worker: str, *, crash_at: int = NEVER) -> bool:
    """Let the worker of that name work in a new process until nothing is due. Answers whether it came to
    that, and was not killed before.
    """
    process = _processes.Process(target=_main, args=(config, worker, crash_at))
    process.start()
    process.join(LONGEST_SECONDS)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == 0


def _main(config: MeteringConfig, worker: str, crash_at: int) -> None:
    _instrument(_Steps(crash_at))
    asyncio.run(_work(config, worker))


async def _work(config: MeteringConfig, name: str) -> None:
    async with open_app(config) as app:
        workers: Sequence[Any] = app.workers
        (worker,) = (one for one in workers if getattr(one, "_name", "") == name)
        while await worker._step():
            pass


def _instrument(steps: _Steps) -> None:
    """Put a step before and after whatever has an effect."""
    begin, post = Database.begin, Ledger.post_charges

    @asynccontextmanager
    async def counted_begin(self: Database) -> AsyncIterator[Any]:
        async with begin(self) as connection:
            yield connection
            steps.take()
        steps.take()

    async def counted_post(self: Ledger, charges: Sequence[IntendedCharge]) -> list[PostVerdict]:
        steps.take()
        try:
            return await post(self, charges)
        finally:
            steps.take()

    for owner, name, counted in (
        (Database, "begin", counted_begin),
        (Ledger, "post_charges", counted_post),
    ):
        setattr(owner, name, counted)
