"""A metering with its ledger, as its own tests have it, and clients that call it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tallystick import AsyncClient, Client, RetryPolicy
from tests.integration.metering.conftest import host_key, ledger, world
from tests.integration.metering.world import World
from tests.integration.sdk.either import Either, Open, Options

__all__ = ["host_key", "ledger", "world"]


@pytest.fixture
def options(world: World, host_key: str) -> Options:
    """How a client reaches them. Waits are short; the time for a call is far above what it needs."""
    return {
        "api_key": host_key,
        "metering": world.server.address,
        "retry": RetryPolicy(timeout=30, first_backoff=0.01, max_backoff=0.1),
    }


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "async"])
def opened(request: pytest.FixtureRequest, options: Options) -> Open:
    """Opens a client with these options, but for what is changed."""

    @asynccontextmanager
    async def open_client(**changes: Any) -> AsyncIterator[Either]:
        client = request.param(**options | changes)
        if isinstance(client, AsyncClient):
            async with client:
                yield Either(client)
        else:
            try:
                yield Either(client)
            finally:
                await asyncio.to_thread(client.close)

    return open_client
