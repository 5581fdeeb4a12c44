"""One world for all tests of a module."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.conftest import FreshDatabase
from tests.integration.security.world import Running, running_world


@pytest.fixture(scope="module")
def running(fresh_database: FreshDatabase) -> Iterator[Running]:
    with fresh_database() as database_url, asyncio.Runner() as runner:
        context = running_world(database_url)
        world = runner.run(context.__aenter__())
        try:
            yield Running(runner, world)
        finally:
            runner.run(context.__aexit__(None, None, None))
