"""What the keeper of leases looks at: what the ledger says of every lease, and Redis where it was used."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from services.metering.lease_keeper import LeaseKeeper
from services.metering.rpc.leases import KnownLease, Leases, lease_key
from services.metering.rpc.ledger import Ledger
from services.metering.store.pools import PoolKey, Pools, PoolView
from services.metering.valkey import Valkey
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import credit_pb2, credit_service_pb2

BUSY, QUIET = lease_key("cus_busy", "USD"), lease_key("cus_quiet", "USD")
EXPIRES = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class FakeLedger:
    """Renews what it is asked to, and says so of what is not known yet."""

    version: int = 1
    asked: list[dict[str, int]] = field(default_factory=list)

    async def renew_leases(
        self, renewals: Sequence[credit_service_pb2.LeaseRenewal]
    ) -> list[credit_service_pb2.GrantedLease | None]:
        self.asked.append({one.customer_id: one.known_version for one in renewals})
        return [
            None if one.known_version == self.version else self._granted(one.customer_id) for one in renewals
        ]

    def _granted(self, customer_id: str) -> credit_service_pb2.GrantedLease:
        lease = credit_pb2.CreditLease(
            customer_id=customer_id,
            epoch=1,
            version=self.version,
            remaining=money_pb2.Money(currency_code="USD", amount_micros=1),
        )
        lease.expire_time.FromDatetime(EXPIRES)
        return credit_service_pb2.GrantedLease(lease=lease)


@dataclass
class FakePools:
    """Has every lease as it was, and remembers who looked, and what it was told."""

    looks: list[list[str]] = field(default_factory=list)
    told: list[tuple[str, int]] = field(default_factory=list)

    async def peek(self, keys: Sequence[PoolKey]) -> list[PoolView]:
        self.looks.append([key.tag for key in keys])
        return [cast(PoolView, View()) for _ in keys]

    async def merge(self, states: Sequence[tuple[PoolKey, Any]]) -> None:
        self.told += [(key.tag, state.version) for key, state in states]


@dataclass
class View:
    """A lease in Redis, with one reservation."""

    server_matches: bool = True
    epoch: int = 1
    sequence: int = 1
    expired: int = 0
    reserved: int = 1
    returning: int = 0


class FakeValkey:
    """Is there."""

    is_up = True


@dataclass
class Kept:
    """A keeper of two leases, and the time it goes by."""

    ledger: FakeLedger = field(default_factory=FakeLedger)
    pools: FakePools = field(default_factory=FakePools)
    now: float = 0.0

    def __post_init__(self) -> None:
        pools = cast(Pools, self.pools)
        self.leases = Leases(
            ledger=cast(Ledger, self.ledger),
            pools=pools,
            grace=timedelta(seconds=60),
            monotonic=lambda: self.now,
        )
        self.keeper = LeaseKeeper(
            leases=self.leases,
            pools=pools,
            valkey=cast(Valkey, FakeValkey()),
            idle=timedelta(seconds=60),
            monotonic=lambda: self.now,
        )

    async def look(self, *used: PoolKey) -> list[str]:
        """Two seconds later, in which these are used; whom the keeper looks at in Redis then."""
        for key in used:
            self.leases.use(key)
        self.now += 2
        await self.keeper.step()
        return sorted(self.pools.looks[-1])


async def kept() -> Kept:
    one = Kept()
    for key in (BUSY, QUIET):
        await one.leases.adopt(key, 1)
    return one


async def test_redis_is_looked_at_where_a_lease_was_used_and_else_every_fifth_time() -> None:
    one = await kept()
    assert await one.look(BUSY) == ["cus_busy", "cus_quiet"]
    assert [await one.look(BUSY) for _ in range(3)] == [["cus_busy"]] * 3
    assert await one.look(BUSY) == ["cus_busy", "cus_quiet"]
    assert await one.look() == []
    # Who is idle is looked at until its last reservation is over, and it can be given back.
    one.now += 60
    assert await one.look(BUSY) == ["cus_busy", "cus_quiet"]
    assert await one.look() == ["cus_quiet"]


async def test_the_ledger_is_asked_for_news_of_every_lease_at_every_look() -> None:
    one = await kept()
    one.ledger.asked.clear()
    one.pools.told.clear()
    await one.look(BUSY)
    assert one.ledger.asked == [{"cus_busy": 1, "cus_quiet": 1}]
    assert one.pools.told == []
    # Somebody has captured of both, and died before it told Redis.
    one.ledger.version = 2
    await one.look(BUSY)
    assert sorted(one.pools.told) == [("cus_busy", 2), ("cus_quiet", 2)]
    await one.look(BUSY)
    assert one.ledger.asked[-1] == {"cus_busy": 2, "cus_quiet": 2}
    assert len(one.pools.told) == 2


async def test_whoever_allocates_asks_the_ledger_first_if_the_keeper_could_not() -> None:
    one = await kept()
    await one.look(BUSY)
    one.ledger.asked.clear()
    one.now += 29
    known = one.leases.use(BUSY)
    assert known is not None
    assert await one.leases.refresh(known) == known
    assert one.ledger.asked == []
    one.now += 1
    known = await one.leases.refresh(known)
    assert one.ledger.asked == [{"cus_busy": 0}]
    assert known.asked_at == one.now
    # News or none, a look is a look.
    one.now += 29
    await one.look()
    known = one.leases.use(BUSY)
    assert known is not None
    assert known.asked_at == one.now


async def test_what_is_no_news_is_neither_recalled_nor_frozen() -> None:
    one = await kept()
    known = one.leases.use(BUSY)
    assert known is not None
    one.leases._known[BUSY] = replace(known, recall=True, frozen=True)
    (told,) = await one.leases.prolong([one.leases._known[BUSY]])
    assert isinstance(told, KnownLease)
    assert (told.recall, told.frozen) == (False, False)
