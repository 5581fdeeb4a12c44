"""One world for all tests of a module."""

import asyncio
from collections.abc import Iterator

import pytest
import redis

from sandbox.servers import Stores
from tests.conftest import FreshDatabase
from tests.integration.security.population import running_world
from tests.integration.security.world import Running


@pytest.fixture(scope="module")
def running(fresh_database: FreshDatabase, session_stores: Stores) -> Iterator[Running]:
    with redis.Redis.from_url(session_stores.redis_url) as client:
        client.flushdb()
    with fresh_database() as database_url, asyncio.Runner() as runner:
        context = running_world(database_url, session_stores.redis_url)
        world = runner.run(context.__aenter__())
        try:
            yield Running(runner, world)
        finally:
            runner.run(context.__aexit__(None, None, None))
