"""Prices that depend on what was used before: who reports at once is charged as if one after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import TypeVar

import grpc
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import namedtuple_row

from services.kit.db import Database
from services.metering.domain.rating import Rated, rate, rate_outcome, select
from services.metering.domain.usage_event import Outcome
from services.metering.domain.usage_record import KnownUsage
from services.metering.rpc.convert import decided_execution_of, execution_of
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.terms import AgreedTerms
from services.metering.store.usage_events import to_known_usage
from tallystick.common.v1 import access_pb2
from tallystick.metering.v1 import metering_service_pb2, price_book_pb2, usage_pb2
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.metering_server import Caller, MeteringServer, fee, price, running_metering
from tests.support.postgres_gate import Moment, PostgresGate, postgres_gate

MAXIMUM = 20_000
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
numbers = count(1)
T = TypeVar("T")


def unit(amount: str) -> price_book_pb2.UnitPrice:
    return price_book_pb2.UnitPrice(amount=amount)


TIERED = price(
    fee("0.0001"),
    price_book_pb2.PriceComponent(
        name="input",
        meter_rate=price_book_pb2.MeterRate(
            meter="input_tokens",
            tier_mode=price_book_pb2.TIER_MODE_GRADUATED,
            tier_scope=price_book_pb2.TIER_SCOPE_BILLING_PERIOD,
            tiers=[
                price_book_pb2.Tier(up_to=500, price=unit("0.00001")),
                price_book_pb2.Tier(up_to=2_000, price=unit("0.000004"), fee=unit("0.00005")),
                price_book_pb2.Tier(price=unit("0.000001")),
            ],
        ),
    ),
    price_book_pb2.PriceComponent(
        name="solved",
        condition="result.solved == true",
        outcome_bonus=price_book_pb2.OutcomeBonus(price=unit("0.0007")),
    ),
    name="tiered",
    action_types=["tiered"],
)
TIERED.period_maximum.amount = "0.02"
DISCOUNTED = price(fee("0.001"), name="discounted", action_types=["discounted"])
DISCOUNTED.discounts.add(
    name="loyal",
    volume=price_book_pb2.VolumeDiscount(
        steps=[
            price_book_pb2.VolumeDiscountStep(from_amount=unit("0.0055"), basis_points=1_000),
            price_book_pb2.VolumeDiscountStep(from_amount=unit("0.0102"), basis_points=2_500),
        ]
    ),
)
PLAIN = price(fee("0.002"), name="plain", action_types=["plain"])


def tiered_micros(units: int) -> int:
    """What so many units cost in a period, unit by unit."""
    return sum(10 if number <= 500 else 4 if number <= 2_000 else 1 for number in range(1, units + 1)) + (
        50 if units > 500 else 0
    )


def discounted_micros(executions: int) -> int:
    gross = 1_000 * executions
    off = max(0, min(gross, 10_200) - 5_500) * 1_000 + max(0, gross - 10_200) * 2_500
    return gross - off // 10_000


@dataclass
class Replicas:
    """Two meterings over one database, as a host reaches them; one of them through a gate."""

    runner: asyncio.Runner
    ledger: LedgerServer
    servers: list[MeteringServer]
    hosts: list[Caller]
    gate: PostgresGate

    @property
    def database_url(self) -> str:
        return self.servers[0].database_url


@asynccontextmanager
async def opened(database_url: str, runner: asyncio.Runner) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(running_ledger(database_url))
        await ledger.create_organization("org_a")
        key = (await ledger.create_caller(access_pb2.ROLE_HOST, "host")).key
        gate = await stack.enter_async_context(postgres_gate(database_url, "COMMIT"))
        servers = [
            await stack.enter_async_context(running_metering(url, ledger)) for url in (database_url, gate.url)
        ]
        await servers[0].publish(TIERED, DISCOUNTED, PLAIN, organization_id="org_a")
        yield Replicas(runner, ledger, servers, [server.caller(key) for server in servers], gate)


@pytest.fixture
def replicas(database_url: str) -> Iterator[Replicas]:
    with asyncio.Runner() as runner:
        context = opened(database_url, runner)
        found = runner.run(context.__aenter__())
        try:
            yield found
        finally:
            runner.run(context.__aexit__(None, None, None))


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Call until it is answered, as a host does."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.02)


@dataclass
class Story:
    """Two customers, and hosts that report their work at once, again and again."""

    replicas: Replicas
    chance: random.Random
    customers: list[str] = field(default_factory=list)
    events: list[usage_pb2.UsageEvent] = field(default_factory=list)
    answers: dict[tuple[str, str], metering_service_pb2.MeteredEvent] = field(default_factory=dict)

    async def begin(self) -> None:
        number = next(numbers)
        self.customers = [f"cus_{number}-{name}" for name in "ab"]
        for customer_id in self.customers:
            await self.replicas.ledger.create_customer(customer_id)

    def event(self, run: str) -> usage_pb2.UsageEvent:
        action = self.chance.choice(["tiered", "tiered", "tiered", "discounted", "plain"])
        outcome = self.chance.choice([usage_pb2.OUTCOME_SUCCESS, usage_pb2.OUTCOME_PENDING])
        event = usage_pb2.UsageEvent(
            customer_id=self.chance.choice(self.customers),
            workflow_id=run,
            agent_id="agt_a",
            action_type=action,
            usage=usage_pb2.Usage(input_tokens=self.chance.choice([0, 1, 7, 100, 333, 500])),
            outcome=outcome if action == "tiered" else usage_pb2.OUTCOME_SUCCESS,
        )
        event.result["solved"] = self.chance.random() < 0.5
        return event

    async def host(self, name: str) -> None:
        """A host's batches: some events come again, and some were reported by others."""
        chance = self.chance
        for turn in range(3):
            new = [self.event(f"{name}-{turn}-{number}") for number in range(chance.randint(1, 7))]
            again = chance.sample(self.events, min(len(self.events), chance.randint(0, 3)))
            self.events += new
            batch = [*new, *again]
            chance.shuffle(batch)
            if chance.random() < 0.3:
                # It is recorded and nobody hears of it, or of something else that is committed meanwhile.
                self.replicas.gate.cut_next(Moment.AFTER)
            host = chance.choice(self.replicas.hosts)
            pending = await self.report(host, batch)
            await asyncio.gather(*(self.resolve(outcome_id) for outcome_id in pending))

    async def report(self, host: Caller, batch: Sequence[usage_pb2.UsageEvent]) -> list[str]:
        """Report a batch until it is answered; the outcomes that are then pending."""
        request = metering_service_pb2.MeterBatchRequest(events=batch)
        response = await insist(lambda: host.metering.MeterBatch(request))
        pending = []
        for event, verdict in zip(batch, response.verdicts, strict=True):
            assert verdict.HasField("metered"), verdict.error
            metered = verdict.metered
            first = self.answers.setdefault((event.customer_id, event.workflow_id), metered)
            # Whatever came first stands.
            assert metered.price_charged == first.price_charged
            assert list(metered.lines) == list(first.lines)
            assert metered.opening_counters == first.opening_counters
            assert metered.closing_counters == first.closing_counters
            if metered.HasField("deferred_outcome"):
                pending.append(metered.outcome_id)
        return pending

    async def resolve(self, outcome_id: str) -> None:
        outcome = usage_pb2.OUTCOME_SUCCESS
        request = metering_service_pb2.ResolveOutcomeRequest(outcome_id=outcome_id, outcome=outcome)
        if int(outcome_id[-1], 36) % 2:
            request.result["solved"] = True
        host = self.chance.choice(self.replicas.hosts)
        await insist(lambda: host.metering.ResolveOutcome(request))

    async def records(self) -> list[KnownUsage]:
        async with await psycopg.AsyncConnection.connect(self.replicas.database_url) as connection:
            cursor = connection.cursor(row_factory=namedtuple_row)
            await cursor.execute(
                "SELECT * FROM metering.recorded_usage WHERE customer_id = ANY (%s)", (self.customers,)
            )
            return [to_known_usage(row) for row in await cursor.fetchall()]


async def rated_again(database_url: str, known: Sequence[KnownUsage]) -> list[tuple[Rated, Rated | None]]:
    """What events, and decided outcomes that were rated then, come to by what is stored of them."""
    reader = Database(database_url, role="metering_reader", schema="metering")
    try:
        compiled = await PriceCatalog(reader).compiled({one.record.charge.price_version_id for one in known})
    finally:
        await reader.close()
    found: list[tuple[Rated, Rated | None]] = []
    for one in known:
        record, deferred = one.record, one.record.deferred
        execution = execution_of(record)
        prices = compiled[record.charge.price_version_id]
        selected = select(prices, execution.action_type, execution.agent_id)
        assert selected is not None
        terms = AgreedTerms.of(record.contract_terms).compiled
        opening = {} if record.counted is None else record.counted.opening
        bonus = None
        if deferred is not None and deferred.counted is not None:
            decided = decided_execution_of(record, deferred.outcome, deferred.result)
            bonus = rate_outcome(selected, decided, terms, deferred.counted.opening)
        found.append((rate(selected, execution, terms, opening), bonus))
    return found


def check_chain(steps: Iterable[tuple[int, int]], last: int) -> None:
    """Each step begins where exactly one other ended, from nothing on."""
    moved = sorted(step for step in steps if step[0] != step[1])
    assert [begin for begin, _ in moved] == [0, *(end for _, end in moved[:-1])][: len(moved)]
    assert all(end == begin for (_, end), (begin, _) in pairwise(moved))
    assert (moved[-1][1] if moved else 0) == last


def check_customer(records: Sequence[KnownUsage], counters: dict[str, int]) -> None:
    """What one customer was charged is what it would be in any order."""
    tiered = [one for one in records if execution_of(one.record).action_type == "tiered"]
    discounted = [one for one in records if execution_of(one.record).action_type == "discounted"]
    steps: dict[str, list[tuple[int, int]]] = {name: [] for name in counters}
    for one in records:
        counted = one.record.counted
        assert (counted is None) == (execution_of(one.record).action_type == "plain")
        if counted is None:
            continue
        for name, before in counted.opening.items():
            steps[name].append((before, counted.closing.get(name, before)))
        deferred = one.record.deferred
        if deferred is not None and deferred.counted is not None:
            for name, after in deferred.counted.closing.items():
                # The bonus is all that a decision moves.
                steps[name].append((after - deferred.bonus_micros, after))
    for name, moves in steps.items():
        check_chain(moves, counters[name])

    units = sum(execution_of(one.record).usage.input_tokens for one in tiered)
    solved = sum(is_solved(one) for one in tiered)
    whole = 100 * len(tiered) + tiered_micros(units) + 700 * solved
    assert sum(charged(one) for one in tiered) == min(whole, MAXIMUM)
    assert sum(charged(one) for one in discounted) == discounted_micros(len(discounted))


def charged(one: KnownUsage) -> int:
    deferred = one.record.deferred
    return one.record.charge.amount_micros + (0 if deferred is None else deferred.bonus_micros)


def is_solved(one: KnownUsage) -> bool:
    deferred = one.record.deferred
    execution = execution_of(one.record)
    if deferred is not None:
        assert deferred.outcome is Outcome.SUCCESS
        execution = decided_execution_of(one.record, deferred.outcome, deferred.result)
    return bool(execution.result["solved"])


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.randoms(use_true_random=True))
def test_work_that_is_reported_at_once_is_charged_as_if_it_came_one_after_the_other(
    replicas: Replicas, chance: random.Random
) -> None:
    (deadlocks,) = replicas.servers[0].query(DEADLOCKS)

    async def play() -> tuple[list[KnownUsage], list[tuple[Rated, Rated | None]]]:
        story = Story(replicas, chance)
        await story.begin()
        await asyncio.gather(*(story.host(name) for name in "vwxyz"))
        known = await story.records()
        assert len(known) == len({(one.customer_id, one.workflow_id) for one in story.events})
        return known, await rated_again(replicas.database_url, known)

    known, again = replicas.runner.run(play())

    assert replicas.servers[0].query(DEADLOCKS) == [deadlocks]
    for one, (rated, bonus) in zip(known, again, strict=True):
        record, deferred = one.record, one.record.deferred
        assert (rated.total_micros, rated.lines) == (record.charge.amount_micros, record.lines)
        if record.counted is not None:
            assert rated.closing == record.counted.closing
        if bonus is not None:
            assert deferred is not None
            assert deferred.bonus_micros == bonus.total_micros <= deferred.max_bonus_micros
    for customer_id in {one.record.charge.key.customer_id for one in known}:
        own = [one for one in known if one.record.charge.key.customer_id == customer_id]
        check_customer(own, counters_of(replicas.servers[0], customer_id))


def counters_of(server: MeteringServer, customer_id: str) -> dict[str, int]:
    with psycopg.connect(server.database_url) as connection:
        query = "SELECT name, value FROM metering.price_counter WHERE customer_id = %s"
        return dict(connection.execute(query, (customer_id,)).fetchall())
