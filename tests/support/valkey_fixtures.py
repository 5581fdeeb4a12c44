"""Fixtures to run a test on a single Valkey and on a cluster.

A test module that wants them names this one in `pytest_plugins`, so that all share one cluster.
"""

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from redis.asyncio import Redis

from services.metering.store.pool_functions import Client
from tests.support.valkey_cluster import ValkeyCluster, running_cluster


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[ValkeyCluster]:
    """The cluster of this worker. Its tests share it: whoever stops a server starts a cluster of its own."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(session_cluster: ValkeyCluster) -> ValkeyCluster:
    """This worker's cluster, emptied."""
    session_cluster.flush()
    return session_cluster


@pytest.fixture(params=["server", "cluster"])
def connect(request: pytest.FixtureRequest) -> Callable[[], Client]:
    """Makes clients of a single, empty server, and of an empty cluster: the test runs on both."""
    if request.param == "cluster":
        cluster: ValkeyCluster = request.getfixturevalue("cluster")
        return cluster.client
    url: str = request.getfixturevalue("redis_url")
    return lambda: Redis.from_url(url)


@pytest.fixture
async def redis_client(connect: Callable[[], Client]) -> AsyncIterator[Client]:
    """A client of a single, empty server, and of an empty cluster: the test runs on both."""
    client = connect()
    yield client
    await client.aclose()
