"""Waiting for what comes by itself, with a bound."""

import asyncio
from collections.abc import Awaitable, Callable

# On a machine that does many other things too; what comes takes a fraction of it.
LONGEST_SECONDS = 90.0


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return as soon as `holds`; raises TimeoutError if it does not come true."""
    async with asyncio.timeout(LONGEST_SECONDS):
        while not await holds():  # noqa: ASYNC110 - another process is what changes
            await asyncio.sleep(0.02)
