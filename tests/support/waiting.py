"""Waiting for what comes by itself, with a bound."""

import asyncio
from collections.abc import Awaitable, Callable

LONGEST_SECONDS = 30.0


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return as soon as `holds`; raises TimeoutError if it does not come true."""
    async with asyncio.timeout(LONGEST_SECONDS):
        while not await holds():  # noqa: ASYNC110 - another process is what changes
            await asyncio.sleep(0.02)
