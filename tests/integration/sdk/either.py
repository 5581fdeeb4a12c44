"""Either client, so that a test runs with both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from tallystick import AsyncClient, AsyncRun, Client, RetryPolicy, Run

Options: TypeAlias = dict[str, Any]
Open: TypeAlias = Callable[..., Any]
Work: TypeAlias = Callable[["Run | AsyncRun"], Awaitable[object]]
# Gives up soon, but not before it has heard that nobody is there.
IMPATIENT = RetryPolicy(timeout=1, first_backoff=0.01, max_backoff=0.05)


class Either:
    """Either client, driven alike: the synchronous one in threads, for its servers are in this loop."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.client, name)
        if isinstance(self.client, AsyncClient) and name != "record":
            return method  # type: ignore[no-any-return]

        async def call(*args: Any, **kwargs: Any) -> Any:
            if isinstance(self.client, AsyncClient):
                return method(*args, **kwargs)
            return await asyncio.to_thread(method, *args, **kwargs)

        return call

    async def run(self, work: Work, /, **options: Any) -> Run | AsyncRun:
        """Let an agent work, in this loop, within a run; the run afterwards."""
        if isinstance(self.client, AsyncClient):
            async with self.client.run(**options) as run:
                await work(run)
            return run
        loop = asyncio.get_running_loop()
        made = self.client.run(**options)

        def agent() -> None:
            with made as run:
                asyncio.run_coroutine_threadsafe(_awaiting(work(run)), loop).result()

        await asyncio.to_thread(agent)
        return made


async def _awaiting(work: Awaitable[object]) -> None:
    await work
