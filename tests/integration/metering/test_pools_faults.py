"""What pools answer when Redis loses them, restores them from a copy, refuses or is away."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.exceptions import MovedError
from redis.retry import Retry

from sandbox.valkey import ValkeyServer
from services.metering.store import pool_functions
from services.metering.store.pool_functions import Client
from services.metering.store.pools import (
    EndAnswer,
    Ended,
    LeaseUse,
    Missing,
    PoolKey,
    Pools,
    PoolsUnavailable,
    Refused,
    Reserved,
    Stale,
    Superseded,
)
from tests.support.pool_requests import (
    DAY,
    LATER,
    USD,
    day,
    ending,
    extension,
    in_usd,
    lease,
    only,
    request,
    spent,
)
from tests.support.valkey_cluster import ValkeyCluster, running_cluster
from tests.support.waiting import eventually

pytest_plugins = ["tests.support.valkey_fixtures"]

GRACE = timedelta(minutes=1)


@pytest.fixture
def pools(redis_client: Client) -> Pools:
    return Pools(redis_client, grace=GRACE)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server of this test's own, which it may kill and reconfigure."""
    server = ValkeyServer(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        server.remove()


@pytest.fixture
async def own_client(valkey: ValkeyServer) -> AsyncIterator[Redis]:
    """A client of that server which does not try again by itself."""
    client = Redis.from_url(valkey.url, retry=Retry(NoBackoff(), 0))
    yield client
    await client.aclose()


@pytest.fixture
def own_pools(own_client: Redis) -> Pools:
    return Pools(own_client, grace=GRACE)


@pytest.fixture
def own_cluster() -> Iterator[ValkeyCluster]:
    with running_cluster() as cluster:
        yield cluster


async def on_each_server(client: Client, command: str) -> list[Any]:
    """What each server answers to a command that no key routes."""
    if isinstance(client, Redis):
        single: Any = client
        return [await single.execute_command(command)]
    await client.initialize()
    return [await client.execute_command(command, target_nodes=node) for node in client.get_primaries()]


async def test_functions_are_loaded_where_they_are_missing(pools: Pools, redis_client: Client) -> None:
    await pools.install(USD, lease(100))
    keys = [PoolKey(f"cus_{i}", "USD") for i in range(20)]
    await on_each_server(redis_client, "FUNCTION FLUSH")
    await on_each_server(redis_client, "SCRIPT FLUSH")
    answers = await pools.ask([request("a", 1), *(request("a", 1, LeaseUse(key, 1)) for key in keys)])
    assert isinstance(answers[0], Reserved)
    await pools.load()
    await pools.load()
    for libraries in await on_each_server(redis_client, "FUNCTION LIST"):
        assert len(libraries) == 1


async def test_two_versions_live_side_by_side(redis_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Pools(redis_client, grace=GRACE)
    await old.install(USD, lease(100))
    code, library = pool_functions._CODE, pool_functions.LIBRARY
    monkeypatch.setattr(pool_functions, "LIBRARY", "tallystick_next")
    monkeypatch.setattr(pool_functions, "_CODE", code.replace(library, "tallystick_next"))
    assert only(await Pools(redis_client, grace=GRACE).ask([request("a", 1)]), Reserved).free == 99
    monkeypatch.undo()
    assert only(await old.ask([request("b", 1)]), Reserved).free == 98


async def test_flushed_pools_are_missing_and_the_next_epoch_begins_anew(
    pools: Pools, redis_client: Client
) -> None:
    await pools.install(USD, lease(100))
    await pools.seed(DAY, 5, [])
    uses = (in_usd(), day(100))
    await pools.ask([request("a", 60, *uses)])
    await on_each_server(redis_client, "FLUSHALL")
    assert await pools.peek([USD, DAY]) == [None, None]
    assert only(await pools.ask([request("b", 1, *uses)]), Missing).use == 0
    assert only(await pools.ask([extension("a", 61, *uses)]), Missing).use == 0
    assert not only(await pools.ask([ending("a", (USD, lease(90, version=2)))]), EndAnswer).known
    await pools.merge([(USD, lease(90, version=3))])
    assert await pools.peek([USD]) == [None]

    assert (await pools.install(USD, lease(30, epoch=2))).installed
    only(await pools.ask([request("b", 1, *uses)]), Superseded)
    new_uses = (in_usd(2), day(100))
    assert only(await pools.ask([request("b", 1, *new_uses)]), Missing).use == 1
    await pools.seed(DAY, 10, [("a", 60, LATER)])
    assert only(await pools.ask([request("b", 30, *new_uses)]), Reserved).free == 0
    assert only(await pools.ask([request("c", 0, *new_uses)]), Reserved).free == 0
    assert only(await pools.ask([request("d", 1, *new_uses)]), Refused).use == 0


async def test_an_old_copy_is_stale_until_its_next_epoch(
    valkey: ValkeyServer, own_client: Redis, own_pools: Pools
) -> None:
    await own_pools.install(USD, lease(100))
    await own_pools.seed(DAY, 5, [("seeded", 7, LATER)])
    uses = (in_usd(), day(100))
    await own_pools.ask([request("ended", 10, *uses), request("open", 10, *uses)])
    await own_pools.ask([ending("ended", (USD, lease(95, version=2)), (DAY, spent(10)))])
    before = await own_pools.peek([USD])
    await own_client.save()
    # What happens from here on is not in the copy.
    await own_pools.ask([request("lost", 80, *uses)])
    await own_pools.ask([ending("open")])
    valkey.kill()
    valkey.start()
    await own_client.connection_pool.disconnect()

    (view,) = await own_pools.peek([USD])
    assert view is not None
    assert before[0] is not None
    assert (view.server_matches, view.reserved, view.sequence) == (False, 10, before[0].sequence)
    stale = only(await own_pools.ask([request("b", 1, *uses)]), Stale)
    assert (stale.use, stale.sequence) == (0, before[0].sequence)
    assert only(await own_pools.ask([request("b", 1, day(100))]), Stale).use == 0
    only(await own_pools.ask([extension("open", 20, *uses)]), Stale)
    assert await own_pools.withdraw(USD, 1, "ret_1", 1) is None
    # How one ended is a fact; that one was open may be over.
    assert only(await own_pools.ask([request("ended", 10, *uses)]), Ended).token == "how"
    only(await own_pools.ask([request("open", 10, *uses)]), Stale)
    # Nobody brings this epoch back.
    assert not (await own_pools.install(USD, lease(95, version=2))).installed
    await own_pools.merge([(USD, lease(95, version=3))])
    only(await own_pools.ask([request("b", 1, *uses)]), Stale)

    installed, sequence = await own_pools.install(USD, lease(15, epoch=2))
    assert installed
    assert sequence > before[0].sequence
    assert only(await own_pools.ask([request("b", 1, in_usd(2), day(100))]), Stale).use == 1
    await own_pools.seed(DAY, 8, [("lost", 80, LATER)])
    (counter,) = await own_pools.peek([DAY])
    assert counter is not None
    # The higher spent of both, and only the reservations that were named now.
    assert (counter.server_matches, counter.spent, counter.reserved) == (True, 10, 80)
    only(await own_pools.ask([request("open", 10, in_usd(2), day(100))]), Reserved)
    (view,) = await own_pools.peek([USD])
    assert view is not None
    assert (view.free, view.open_count) == (5, 1)


async def test_an_empty_restart_loses_the_pools(valkey: ValkeyServer, own_pools: Pools) -> None:
    await own_pools.install(USD, lease(100))
    await own_pools.ask([request("a", 10)])
    valkey.kill()
    with pytest.raises(PoolsUnavailable):
        await own_pools.ask([request("a", 10)])
    with pytest.raises(PoolsUnavailable):
        await own_pools.peek([USD])
    with pytest.raises(PoolsUnavailable):
        await own_pools.load()
    with pytest.raises(PoolsUnavailable):
        _ = [found async for found in own_pools.scan_leases()]
    valkey.start()
    only(await own_pools.ask([request("a", 10)]), Missing)


async def test_a_replica_is_not_available(own_client: Redis, own_pools: Pools) -> None:
    await own_pools.install(USD, lease(100))
    await own_client.replicaof("127.0.0.1", "1")
    with pytest.raises(PoolsUnavailable):
        await own_pools.ask([request("a", 10)])
    with pytest.raises(PoolsUnavailable):
        await own_pools.ask([ending("a")])
    await own_client.replicaof("NO", "ONE")
    only(await own_pools.ask([request("a", 10)]), Reserved)


async def test_a_full_server_is_not_available_and_changes_nothing(
    own_client: Redis, own_pools: Pools
) -> None:
    await own_pools.install(USD, lease(100))
    await own_client.config_set("maxmemory", 1)
    with pytest.raises(PoolsUnavailable):
        await own_pools.ask([request("a", 10)])
    (view,) = await own_pools.peek([USD])
    assert view is not None
    assert view.reserved == 0
    await own_client.config_set("maxmemory", 0)
    only(await own_pools.ask([request("a", 10)]), Reserved)


async def test_a_server_of_the_cluster_that_is_away_fails_only_its_customers(
    own_cluster: ValkeyCluster,
) -> None:
    client = own_cluster.client()
    pools = Pools(client, grace=GRACE)
    keys = [PoolKey(f"cus_{i}", "USD") for i in range(30)]
    for key in keys:
        await pools.install(key, lease(100))
    away = own_cluster.servers[0]
    gone = {key for key in keys if own_cluster.server_of(f"{{{key.tag}}}") is away}
    assert 0 < len(gone) < len(keys)
    away.process.kill()
    answers = await pools.ask([request("a", 1, LeaseUse(key, 1)) for key in keys])
    assert [type(answer) for answer in answers] == [
        PoolsUnavailable if key in gone else Reserved for key in keys
    ]
    with pytest.raises(PoolsUnavailable):
        await pools.ask([request("a", 1, LeaseUse(key, 1)) for key in gone])
    away.start()

    async def is_back() -> bool:
        again = await pools.ask([request("a", 1, LeaseUse(key, 1)) for key in keys])
        return [type(answer) for answer in again] == [Missing if key in gone else Reserved for key in keys]

    await eventually(is_back)
    await client.aclose()


async def test_a_slot_that_moved_is_found(own_cluster: ValkeyCluster) -> None:
    client = own_cluster.client()
    pools = Pools(client, grace=GRACE)
    # Learns where the slots are.
    only(await pools.ask([request("a", 1)]), Missing)
    source = own_cluster.server_of(f"{{{USD.tag}}}")
    target = next(server for server in own_cluster.servers if server is not source)
    with target.client() as one:
        slot = one.execute_command("CLUSTER KEYSLOT", USD.tag)
        name = one.execute_command("CLUSTER MYID").decode()
    for server in (target, source):
        with server.client() as one:
            one.execute_command("CLUSTER SETSLOT", slot, "NODE", name)
    assert (await pools.install(USD, lease(100))).installed
    only(await pools.ask([request("a", 1)]), Reserved)
    with source.client() as one, pytest.raises(MovedError):
        one.exists(f"tallystick:{{{USD.tag}}}:pool:USD")
    await client.aclose()


async def test_times_of_the_past_do_not_break_a_lease(pools: Pools) -> None:
    # A lease that ended more than an hour ago leaves nothing behind.
    past = datetime.now(UTC) - timedelta(hours=2)
    assert (await pools.install(USD, lease(100, expire_time=past))).installed
    assert await pools.peek([USD]) == [None]
