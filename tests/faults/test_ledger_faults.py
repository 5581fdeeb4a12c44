"""The ledger while its database fails it: what was acknowledged is there, once, and the books stay sound.

tests/faults/test_faults.py lets everything fail at random; here each failure is at its worst moment. Those
that need luck draw it from a seed that is printed and may be given: LEDGER_FAULTS_SEED.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import psycopg
import pytest

from sandbox.servers import Stores
from services.ledger.migrations import migrate
from services.metering.migrations import migrate as migrate_metering
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.faults.services import Services
from tests.support.ledger_credits import intent, usd
from tests.support.ledger_everything import settled
from tests.support.ledger_machine import audit
from tests.support.ledger_server import LedgerServer, calling_ledger, running_ledger
from tests.support.postgres_gate import Moment, PostgresGate, postgres_gate
from tests.support.rpc_errors import refusal
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.waiting import eventually

T = TypeVar("T")

CUSTOMERS: Final = ("cus_a", "cus_b", "cus_c")
ORGANIZATIONS: Final = ("org_x", "org_y")
GRANTED: Final = 100_000
# What says that nothing is known, and that asking again is right.
_AGAIN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
# No fault of these tests lasts longer.
_ATTEMPTS: Final = 400


async def answered(call: Callable[[], Awaitable[T]]) -> T:
    """Call until an answer comes, as a client of money does."""
    for attempt in range(_ATTEMPTS):
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _AGAIN:
                raise
            await asyncio.sleep(min(0.5, 0.02 * 2**attempt))
    raise AssertionError("no answer, however often it was asked for")


@dataclass(frozen=True)
class Books:
    """A ledger over stores of its own, with customers that have credits."""

    server: LedgerServer
    stores: Stores

    def charges(self, count: int, name: str = "run") -> list[ledger.PostChargeRequest]:
        """Requests that differ in everything, all of which credits can pay."""
        return [
            ledger.PostChargeRequest(
                intent=intent(
                    f"{name}-{number}",
                    number % 40 + 1,
                    customer=CUSTOMERS[number % len(CUSTOMERS)],
                    organization=ORGANIZATIONS[number % len(ORGANIZATIONS)],
                )
            )
            for number in range(count)
        ]

    async def post(self, request: ledger.PostChargeRequest) -> ledger.PostedCharge:
        """Post until an answer comes."""
        answer = await answered(lambda: self.server.service.ledger.PostCharge(request, timeout=20))
        return answer.posted

    async def post_all(
        self, requests: Sequence[ledger.PostChargeRequest], in_flight: int = 16
    ) -> list[ledger.PostedCharge]:
        gate = asyncio.Semaphore(in_flight)

        async def one(request: ledger.PostChargeRequest) -> ledger.PostedCharge:
            async with gate:
                return await self.post(request)

        return list(await asyncio.gather(*(one(request) for request in requests)))

    async def post_batches(self, requests: Sequence[ledger.PostChargeRequest], size: int) -> None:
        """All at once, each batch until an answer comes."""

        async def one(batch: ledger.PostChargesRequest) -> None:
            answer = await answered(lambda: self.server.service.ledger.PostCharges(batch, timeout=20))
            assert not [verdict for verdict in answer.verdicts if verdict.HasField("error")]

        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        await asyncio.gather(
            *(
                one(ledger.PostChargesRequest(intents=[request.intent for request in batch]))
                for batch in batches
            )
        )

    async def hold(self, requests: Sequence[ledger.PostChargeRequest]) -> None:
        """Every one of these is in the books, once, and nothing else; and they are sound."""
        with psycopg.connect(self.stores.database_url) as database:
            found = database.execute("SELECT customer_id, workflow_id, gross FROM ledger.charge").fetchall()
        wanted = [
            (one.intent.customer_id, one.intent.workflow_id, one.intent.gross.amount_micros)
            for one in requests
        ]
        assert sorted(found) == sorted(wanted)
        for customer_id in CUSTOMERS:
            answer = await self.server.operator.ledger.GetCustomerBalance(
                ledger.GetCustomerBalanceRequest(customer_id=customer_id)
            )
            spent = sum(gross for customer, _, gross in wanted if customer == customer_id)
            assert answer.balance.available.amount_micros == GRANTED - spent
        await audit(self.stores.database_url)


@asynccontextmanager
async def books(stores: Stores, url: str | None = None, **settings: Any) -> AsyncIterator[Books]:
    """A ledger that reaches its database by `url`."""
    migrate(stores.database_url)
    quick = timedelta(milliseconds=20)
    async with running_ledger(
        url or stores.database_url, fold_interval=quick, sequence_interval=quick, **settings
    ) as server:
        await _fill(server)
        yield Books(server, stores)


async def _fill(server: LedgerServer) -> None:
    for organization_id in ORGANIZATIONS:
        await server.create_organization(organization_id)
    for customer_id in CUSTOMERS:
        await server.create_customer(customer_id)
        await server.operator.ledger.GrantCredits(
            ledger.GrantCreditsRequest(
                customer_id=customer_id,
                amount=usd(GRANTED),
                source=ledger.CREDIT_SOURCE_PURCHASE,
                idempotency_key="first",
            )
        )


@pytest.fixture
def luck() -> random.Random:
    seed = int(os.environ.get("LEDGER_FAULTS_SEED") or random.SystemRandom().randrange(2**32))
    # Shown of a test that fails.
    sys.stdout.write(f"LEDGER_FAULTS_SEED={seed}\n")
    return random.Random(seed)


@asynccontextmanager
async def meanwhile(disturb: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Something that goes on, again and again, for the length of the block."""

    async def again() -> None:
        while True:
            await disturb()

    task = asyncio.create_task(again())
    try:
        yield
        # It may have ended by an error of its own: then the block proved nothing.
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_answer_that_is_lost_after_the_commit_is_found_again(own_stores: Stores) -> None:
    async with (
        postgres_gate(own_stores.database_url, "ledger.post_charges(") as gate,
        books(own_stores, gate.url) as our,
    ):
        requests = our.charges(3)
        # Lost once, twice in a row, and lost and then cut off before it came there.
        for request, moments in zip(
            requests,
            ([Moment.AFTER], [Moment.AFTER, Moment.AFTER], [Moment.AFTER, Moment.BEFORE]),
            strict=True,
        ):
            gate.cut_next(*moments)
            posted = await our.post(request)
            # The ledger itself asked again, and found what it had done.
            assert posted.duplicate
            assert not posted.evidence_differs
        assert gate.cut_count == 5
        await our.hold(requests)


async def test_a_connection_that_is_cut_before_the_statement_charges_once(own_stores: Stores) -> None:
    async with (
        postgres_gate(own_stores.database_url, "ledger.post_charges(") as gate,
        books(own_stores, gate.url) as our,
    ):
        requests = our.charges(1)
        gate.cut_next(Moment.BEFORE, Moment.BEFORE)
        posted = await our.post(requests[0])
        assert (posted.duplicate, gate.cut_count) == (False, 2)
        await our.hold(requests)


@pytest.mark.parametrize("moment", list(Moment))
async def test_the_ledger_is_killed_around_its_commit(
    own_stores: Stores, tmp_path: Path, moment: Moment
) -> None:
    migrate(own_stores.database_url)
    migrate_metering(own_stores.database_url)
    async with postgres_gate(own_stores.database_url, "ledger.post_charges(") as gate:
        services = Services(tmp_path, gate.url, own_stores.redis_url)
        await asyncio.to_thread(services.__enter__)
        try:
            async with calling_ledger(services.ledger, own_stores.database_url, services.keys) as server:
                await _fill(server)
                our = Books(server, own_stores)
                requests = our.charges(2)
                gate.hold_next(moment)
                asked = asyncio.create_task(
                    refusal(server.service.ledger.PostCharge(requests[0], timeout=20))
                )
                await gate.held.wait()
                await asyncio.to_thread(services.kill, "ledger")
                assert (await asked).code is grpc.StatusCode.UNAVAILABLE
                await asyncio.to_thread(services.start, "ledger")
                # What was committed is known, and what was not is posted now; and life goes on.
                assert (await our.post(requests[0])).duplicate is (moment is Moment.AFTER)
                assert not (await our.post(requests[1])).duplicate
                await our.hold(requests)
        finally:
            await asyncio.to_thread(services.__exit__)


async def test_connections_that_are_cut_at_random_lose_and_double_nothing(
    own_stores: Stores, luck: random.Random
) -> None:
    async with (
        postgres_gate(own_stores.database_url, "ledger.post_charges(") as gate,
        books(own_stores, gate.url) as our,
    ):
        requests: list[ledger.PostChargeRequest] = []

        async def cut() -> None:
            gate.cut_next(luck.choice(list(Moment)))
            before = gate.cut_count
            await eventually(lambda: _has_changed(gate, before))
            await asyncio.sleep(luck.uniform(0, 0.2))

        async with meanwhile(cut):
            # As many as it takes: a quick machine posts all of a few hundred between two cuts.
            while gate.cut_count < 3:
                more = our.charges(150, f"run-{len(requests)}")
                await our.post_all(more)
                requests += more
        await our.hold(requests)


async def _has_changed(gate: PostgresGate, before: int) -> bool:
    return gate.cut_count > before


@pytest.mark.parametrize("killed", ["immediate", "kill"])
async def test_postgresql_dies_under_load_and_comes_back(
    own_stores: Stores, luck: random.Random, killed: str
) -> None:
    postgres = own_stores.postgres
    assert postgres is not None
    async with books(own_stores) as our:
        requests = our.charges(600)
        posting = asyncio.create_task(our.post_all(requests, in_flight=32))
        for _ in range(2):
            await asyncio.sleep(luck.uniform(0.02, 0.2))
            if killed == "kill":
                await asyncio.to_thread(postgres.kill)
            else:
                await asyncio.to_thread(postgres.stop, "immediate")
            await asyncio.to_thread(postgres.start)
        await posting
        await our.hold(requests)


async def test_who_waits_for_a_lock_too_long_is_told_so_and_nothing_is_posted(own_stores: Stores) -> None:
    async with books(own_stores) as our:
        requests = our.charges(2)
        with psycopg.connect(own_stores.database_url) as other:
            other.execute(
                "SELECT FROM ledger.account WHERE owner_id = 'cus_a' AND kind = 'customer_credits' FOR UPDATE"
            )
            refused = await refusal(our.server.service.ledger.PostCharge(requests[0], timeout=20))
            assert refused.code is grpc.StatusCode.ABORTED
            # Of another customer nobody waits for anything.
            assert not (await our.server.service.ledger.PostCharge(requests[1], timeout=20)).posted.duplicate
        await our.hold(requests[1:])
        await our.post(requests[0])
        await our.hold(requests)


# How PostgreSQL undoes a transaction that it chose as a victim: of three that post charges, two.
_STORM: Final = """
CREATE SEQUENCE ledger.storm;
GRANT USAGE ON SEQUENCE ledger.storm TO ledger_owner;
CREATE FUNCTION ledger.storm() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF nextval('ledger.storm') % 3 <> 0 THEN
        RAISE EXCEPTION 'a storm' USING ERRCODE = '{state}';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER storm AFTER INSERT ON ledger.charge FOR EACH STATEMENT EXECUTE FUNCTION ledger.storm();
"""


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_a_storm_of_conflicts_is_weathered(own_stores: Stores, state: str) -> None:
    async with books(own_stores) as our:
        with psycopg.connect(own_stores.database_url, autocommit=True) as database:
            database.execute(_STORM.format(state=state))
        requests = our.charges(200)
        posted = await our.post_all(requests)
        # What was undone was undone whole: nobody finds a trace of it.
        assert not any(one.duplicate for one in posted)
        await our.hold(requests)


async def test_true_deadlocks_are_resolved(own_stores: Stores, luck: random.Random) -> None:
    async with books(own_stores) as our:
        requests = our.charges(60)

        async def lock_backwards() -> None:
            """What no code of ours does: take locks of two customers in the other order."""
            async with await psycopg.AsyncConnection.connect(own_stores.database_url) as other:
                # Of the two that wait for each other PostgreSQL chooses one: us, or the charges.
                with suppress(psycopg.errors.DeadlockDetected):
                    for customer_id in ("cus_b", "cus_a"):
                        await other.execute(
                            "SELECT FROM ledger.account WHERE owner_id = %s FOR UPDATE", (customer_id,)
                        )
                        await asyncio.sleep(luck.uniform(0.01, 0.05))
                await other.rollback()

        async with meanwhile(lock_backwards):
            await our.post_batches(requests, 6)
        await our.hold(requests)
        await eventually(lambda: _had_deadlocks(own_stores))


async def _had_deadlocks(stores: Stores) -> bool:
    async with await psycopg.AsyncConnection.connect(stores.database_url) as database:
        found = await database.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        row = await found.fetchone()
        return row is not None and row[0] > 0


async def test_too_few_connections_delay_and_refuse_but_lose_nothing(own_stores: Stores) -> None:
    async with books(own_stores, pool_size=1) as our:
        requests = our.charges(150)
        async with await psycopg.AsyncConnection.connect(own_stores.database_url) as other:
            # The one connection of the hot path waits here, and all the others for it.
            await other.execute("SELECT FROM ledger.account WHERE kind = 'customer_credits' FOR UPDATE")
            posting = asyncio.create_task(our.post_all(requests, in_flight=150))
            await asyncio.sleep(7)
            assert not posting.done()
            await other.rollback()
            await posting
        await our.hold(requests)


async def test_folder_and_sequencer_die_between_their_steps(own_stores: Stores, luck: random.Random) -> None:
    async with books(own_stores) as our:
        requests = our.charges(400)
        ended = 0

        async def end_workers() -> None:
            nonlocal ended
            async with await psycopg.AsyncConnection.connect(
                own_stores.database_url, autocommit=True
            ) as other:
                found = await other.execute(
                    "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE state = 'active' AND query ~ 'ledger\\.(fold|sequence)'"
                    " AND pid <> pg_backend_pid()"
                )
                row = await found.fetchone()
                ended += row[0] if row else 0
            await asyncio.sleep(luck.uniform(0, 0.005))

        # They are in the middle of their work for long enough to be hit there.
        with psycopg.connect(own_stores.database_url, autocommit=True) as database:
            database.execute(_SLOW)
        async with meanwhile(end_workers):
            await our.post_all(requests)
            await eventually(lambda: _at_least(3, lambda: ended))
        await our.hold(requests)
        await settled(our.server)
        await our.hold(requests)


_SLOW: Final = """
CREATE FUNCTION ledger.dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END
$$;
CREATE TRIGGER dawdle AFTER DELETE ON ledger.balance_delta
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.dawdle();
CREATE TRIGGER dawdle AFTER DELETE ON ledger.unsequenced
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.dawdle();
"""


async def _at_least(wanted: int, count: Callable[[], int]) -> bool:
    return count() >= wanted


async def test_of_two_sequencers_and_folders_none_does_anothers_work(own_stores: Stores) -> None:
    async with (
        books(own_stores) as our,
        running_ledger(
            own_stores.database_url,
            fold_interval=timedelta(milliseconds=3),
            sequence_interval=timedelta(milliseconds=3),
        ),
    ):
        requests = our.charges(500)
        await our.post_all(requests, in_flight=32)
        await settled(our.server)
        with psycopg.connect(own_stores.database_url) as database:
            row = database.execute(
                "SELECT count(*), min(position), max(position), count(DISTINCT transaction_id)"
                " FROM ledger.journal_position"
            ).fetchone()
        posted = len(requests) + len(CUSTOMERS)
        assert row == (posted, 1, posted, posted)
        await our.hold(requests)


async def test_one_poison_item_of_a_full_batch_hurts_nobody_else(own_stores: Stores) -> None:
    async with books(own_stores) as our:
        requests = our.charges(1000)
        intents = [request.intent for request in requests]
        unknown = intent("poison", 1, customer="cus_nobody")
        # What no account could take.
        vast = intent("vast", 2**63 - 1, customer="cus_a")
        for poison, at in ((unknown, 0), (vast, 499), (unknown, 998)):
            batch = [*intents[:at], poison, *intents[at:999]]
            answer = await our.server.service.ledger.PostCharges(
                ledger.PostChargesRequest(intents=batch), timeout=60
            )
            refused = [number for number, verdict in enumerate(answer.verdicts) if verdict.HasField("error")]
            assert refused == [at]
        await our.post(requests[999])
        await our.hold(requests)


async def test_a_full_disk_refuses_and_loses_nothing(own_stores: Stores) -> None:
    with small_disk() as disk:
        async with books(own_stores) as our:
            _move_charges(own_stores, disk)
            requests = our.charges(40)
            await our.post_all(requests[:10])
            disk.fill()
            # Free pages of its tables take some more; then there is no room.
            more = our.charges(4_000, "more")
            posted: list[ledger.PostChargeRequest] = []
            refused: grpc.StatusCode | None = None
            for request in more:
                try:
                    await our.server.service.ledger.PostCharge(request, timeout=20)
                except grpc.aio.AioRpcError as error:
                    refused = error.code()
                    break
                posted.append(request)
            assert refused is grpc.StatusCode.UNAVAILABLE
            await our.hold([*requests[:10], *posted])
            disk.empty()
            await our.post_all([*requests, more[len(posted)]])
            await our.hold([*requests, *posted, more[len(posted)]])


def _move_charges(stores: Stores, disk: SmallDisk) -> None:
    with psycopg.connect(stores.database_url, autocommit=True) as database:
        assert stores.postgres is not None
        disk.give_to(stores.postgres.os_user)
        database.execute(f"CREATE TABLESPACE small LOCATION '{disk.directory}'")
        for table in ("charge", "entry", "transaction", "idempotency"):
            database.execute(f"ALTER TABLE ledger.{table} SET TABLESPACE small")
