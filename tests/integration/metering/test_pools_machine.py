"""Pools against an oracle: whatever is asked, in whatever order, every answer and every pool agrees."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.metering.store.pool_functions import Client
from services.metering.store.pools import (
    CounterState,
    CounterUse,
    End,
    Extend,
    LeaseState,
    LeaseUse,
    PoolKey,
    Pools,
    PoolView,
    Reserve,
    State,
    Use,
)
from tests.support.pool_model import PoolModel
from tests.support.pool_requests import DAY, LATER, LEASE_END, MONTH, USD

pytest_plugins = ["tests.support.valkey_fixtures"]

T = TypeVar("T")

KEYS = (USD, DAY, MONTH)
AMOUNTS = st.integers(0, 60)
NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
EPOCHS = st.integers(1, 3)
# Over, but so short ago that Redis still remembers it; soon over is what the tests of time are for.
TIMES = st.sampled_from([timedelta(minutes=-1), None, None, None, timedelta(0)])
LEASES = st.builds(
    LeaseState,
    epoch=EPOCHS,
    version=st.integers(1, 6),
    remaining=st.integers(0, 150),
    expire_time=st.sampled_from([LATER, LEASE_END]),
)
USES = st.tuples(
    st.one_of(st.none(), st.builds(LeaseUse, st.just(USD), EPOCHS)),
    st.one_of(st.none(), st.builds(CounterUse, st.just(DAY), st.integers(0, 120))),
    st.one_of(st.none(), st.builds(CounterUse, st.just(MONTH), st.integers(0, 200))),
).filter(any)
STATES = st.tuples(
    st.one_of(st.none(), LEASES),
    st.one_of(st.none(), st.builds(CounterState, st.integers(0, 100))),
    st.one_of(st.none(), st.builds(CounterState, st.integers(0, 100))),
)


@dataclass
class Running:
    """Pools that serve synchronous tests."""

    runner: asyncio.Runner
    client: Client
    pools: Pools

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)


@pytest.fixture
def running(connect: Callable[[], Client]) -> Iterator[Running]:
    with asyncio.Runner() as runner:

        async def start() -> tuple[Client, Pools]:
            client = connect()
            return client, Pools(client, grace=timedelta(0))

        client, pools = runner.run(start())
        yield Running(runner, client, pools)
        runner.run(client.aclose())


class PoolMachine(RuleBasedStateMachine):
    """Asks Redis and the oracle the same, and compares."""

    running: Running

    def __init__(self) -> None:
        super().__init__()
        self.model = PoolModel()
        self.sequences: dict[PoolKey, int] = {}
        self.returns = 0

    @initialize(state=LEASES, limit=st.booleans())
    def start(self, state: LeaseState, limit: bool) -> None:
        self._flush()
        self.install(replace(state, remaining=100))
        if limit:
            self.seed(DAY, 0, [])
            self.seed(MONTH, 10, [])

    @rule(
        name=NAMES,
        amount=AMOUNTS,
        time=TIMES,
        content=st.sampled_from(["x", "x", "x", "y"]),
        token=st.sampled_from(["t1", "t2"]),
        uses=USES,
        freeze=st.booleans(),
        repeat=st.booleans(),
    )
    def reserve(
        self,
        name: str,
        amount: int,
        time: timedelta | None,
        content: str,
        token: str,
        uses: tuple[Use | None, ...],
        freeze: bool,
        repeat: bool,
    ) -> None:
        request = Reserve(
            reservation_id=name,
            amount=amount,
            expire_time=self._time(time),
            content_hash=content,
            token=token,
            uses=[use for use in uses if use],
            freeze=freeze,
        )
        for _ in range(1 + repeat):
            (answer,) = self.running.run(self.running.pools.ask([request]))
            self._same(answer, self.model.reserve(request, datetime.now(UTC)))

    @rule(name=NAMES, amount=AMOUNTS, time=TIMES, token=st.sampled_from(["t3", "t4"]), uses=USES)
    def extend(
        self, name: str, amount: int, time: timedelta | None, token: str, uses: tuple[Use | None, ...]
    ) -> None:
        request = Extend(
            reservation_id=name,
            amount=amount,
            expire_time=self._time(time),
            token=token,
            uses=[use for use in uses if use],
        )
        (answer,) = self.running.run(self.running.pools.ask([request]))
        self._same(answer, self.model.extend(request, datetime.now(UTC)))

    @rule(
        name=NAMES,
        state=st.sampled_from(["settled", "released"]),
        states=STATES,
        pools=st.lists(st.sampled_from([0, 1, 2]), min_size=1, unique=True),
    )
    def end(self, name: str, state: str, states: tuple[State | None, ...], pools: list[int]) -> None:
        request = End(
            reservation_id=name,
            state=state,
            token=f"by {state}",
            expire_time=LATER,
            pools=[(KEYS[i], states[i]) for i in pools],
        )
        (answer,) = self.running.run(self.running.pools.ask([request]))
        self._same(answer, self.model.end(request, datetime.now(UTC)))

    @rule(state=LEASES)
    def install(self, state: LeaseState) -> None:
        answer = self.running.run(self.running.pools.install(USD, state))
        assert answer.installed == self.model.install(USD, state)

    @rule(
        key=st.sampled_from([DAY, MONTH]),
        spent=st.integers(0, 100),
        open_reservations=st.lists(st.tuples(NAMES, AMOUNTS, TIMES), max_size=3),
    )
    def seed(
        self, key: PoolKey, spent: int, open_reservations: list[tuple[str, int, timedelta | None]]
    ) -> None:
        reservations = [(name, amount, self._time(time)) for name, amount, time in open_reservations]
        self.running.run(self.running.pools.seed(key, spent, reservations))
        self.model.seed(key, spent, reservations, datetime.now(UTC))

    @rule(states=STATES)
    def merge(self, states: tuple[State | None, ...]) -> None:
        told = [(key, state) for key, state in zip(KEYS, states, strict=True) if state is not None]
        for _ in range(2):
            self.running.run(self.running.pools.merge(told))
        for key, state in told:
            self.model.merge(key, state, datetime.now(UTC))

    @rule(epoch=EPOCHS, amount=AMOUNTS)
    def withdraw(self, epoch: int, amount: int) -> None:
        self.returns += 1
        asked = (USD, epoch, f"ret_{self.returns}", amount)
        answer = self.running.run(self.running.pools.withdraw(*asked))
        assert answer == self.model.withdraw(*asked, datetime.now(UTC))

    @rule(state=LEASES, back=st.integers(0, 2))
    def returned(self, state: LeaseState, back: int) -> None:
        told = (USD, f"ret_{self.returns - back}", state)
        answer = self.running.run(self.running.pools.returned(*told))
        assert answer == self.model.returned(*told, datetime.now(UTC))

    @rule()
    def sweep(self) -> None:
        self.running.run(self.running.pools.sweep(KEYS))
        for pool in self.model.pools.values():
            pool.sweep(datetime.now(UTC))

    @rule(often=st.integers(0, 9))
    def lose_everything(self, often: int) -> None:
        # Seldom: what follows would mostly find nothing.
        if often == 0:
            self._flush()

    @invariant()
    def pools_agree(self) -> None:
        for key, view in zip(KEYS, self.running.run(self.running.pools.peek(KEYS)), strict=True):
            pool = self.model.pools.get(key)
            if view is None or pool is None:
                assert view is None
                assert pool is None
                continue
            listed = self.running.run(self.running.pools.list_reservations(key))
            assert listed == self.model.listed(key)
            # What is not swept yet is counted apart, and together that is all there is.
            assert view.reserved + view.expired == sum(one.amount for one in listed) == pool.reserved
            pool = replace(pool)
            pool.sweep(datetime.now(UTC))
            lease = pool.lease
            assert view == PoolView(
                is_lease=lease is not None,
                server_matches=True,
                epoch=lease.epoch if lease else 0,
                version=lease.version if lease else 0,
                remaining=lease.remaining if lease else 0,
                expire_time=lease.expire_time if lease else datetime(1970, 1, 1, tzinfo=UTC),
                returning=pool.returning[1] if pool.returning else 0,
                return_id=pool.returning[0] if pool.returning else "",
                spent=pool.spent,
                reserved=pool.reserved,
                free=pool.free(),
                open_count=len(pool.open),
                expired=view.expired,
                sequence=view.sequence,
            )
            assert view.sequence >= self.sequences.get(key, 0)
            self.sequences[key] = view.sequence

    def _flush(self) -> None:
        self.running.run(self._flush_all())
        self.model.flush()
        self.sequences.clear()

    async def _flush_all(self) -> None:
        await self.running.client.flushall()

    def _time(self, time: timedelta | None) -> datetime:
        """Just over, LATER, or as long as the longest lease."""
        if time is None:
            return LATER
        return datetime.now(UTC) + time if time else LEASE_END

    def _same(self, answer: Any, expected: Any) -> None:
        assert replace(answer, sequence=None) == expected


def test_pools_agree_with_the_oracle(running: Running) -> None:
    machine = type("BoundMachine", (PoolMachine,), {"running": running})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None)
    )
