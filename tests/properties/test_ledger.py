"""The ledger against an oracle: whatever is asked for, in whatever order, every answer and balance agrees."""

import asyncio
import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, run_state_machine_as_test

from services.kit.db import Database
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support import ledger_machine
from tests.support.correction_oracle import largest_remainder
from tests.support.ledger_credits import usd
from tests.support.ledger_machine import Running, audit, intent, numbers
from tests.support.ledger_oracle import Item
from tests.support.ledger_server import calling_ledger, running_ledger
from tests.support.ledger_write_off_machine import WriteOffMachine


@pytest.fixture
def running(database_url: str) -> Iterator[Running]:
    with asyncio.Runner() as runner:
        # Time passes when the machine says so, and debts wait for what collects them by itself.
        never = timedelta(hours=1)
        context = running_ledger(database_url, reap_interval=never, collect_interval=never)
        running = Running(runner, runner.run(context.__aenter__()))
        try:
            yield running
        finally:
            running.invariants.close()
            runner.run(context.__aexit__(None, None, None))


class AuditedMachine(WriteOffMachine):
    """Whose books are sound after every step, too."""

    @invariant()
    def the_books_are_sound(self) -> None:
        if hasattr(self, "oracle"):
            assert self.running.invariants.broken() == []


def test_every_answer_and_balance_is_the_oracles(running: Running) -> None:
    machine = type("Machine", (AuditedMachine,), {"running": running})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=25, stateful_step_count=15, deadline=None)
    )


def test_what_runs_after_every_step_finds_what_somebody_changed(running: Running) -> None:
    assert running.invariants.broken() == []
    with psycopg.connect(running.server.database_url, autocommit=True) as superuser:
        superuser.execute(
            "INSERT INTO ledger.balance_delta (owner_id, kind, currency_code, credits, debits)"
            " VALUES ('org_x', 'platform_fees', 'USD', 1, 0)"
        )
    assert "accounts_match_entries" in running.invariants.broken()


def _client(number: int, address: str, database_url: str, keys: dict[str, str]) -> None:
    """One client in a process of its own, which compares every answer that it gets."""
    # No name that another client has.
    ledger_machine.numbers = itertools.count(number * 1_000_000)
    with asyncio.Runner() as runner:
        context = calling_ledger(address, database_url, keys)
        running = Running(runner, runner.run(context.__aenter__()))
        try:
            run_state_machine_as_test(
                type("Client", (WriteOffMachine,), {"running": running}),
                settings=settings(max_examples=4, stateful_step_count=15, deadline=None, database=None),
            )
        finally:
            runner.run(context.__aexit__(None, None, None))


def test_concurrent_clients_get_each_the_oracles_answers(running: Running) -> None:
    """Each client is alone with its customers and organizations, and with nothing else: what the others do at
    the same time, in the same batches and tables, must show in no answer.
    """
    clients, server = 3, running.server
    keys = {"operator": server.operator.key, "service": server.service.key}

    async def work() -> None:
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(clients, mp_context=multiprocessing.get_context("spawn")) as pool:
            await asyncio.gather(
                *(
                    loop.run_in_executor(pool, _client, number, server.address, server.database_url, keys)
                    for number in range(1, clients + 1)
                )
            )

    running.runner.run(work())


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_concurrent_batches_post_each_charge_once_and_never_overdraw(
    running: Running, data: st.DataObject
) -> None:
    number = next(numbers)
    customers = [f"cus_{number}-{name}" for name in "abc"]
    organizations = [f"org_{number}-{name}" for name in "xy"]
    granted = data.draw(st.integers(1, 2000))
    items = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(customers),
                st.integers(0, 20).map("run-{}".format),
                st.integers(0, 200),
                st.sampled_from(
                    [
                        ((organizations[0], 1),),
                        ((organizations[1], 1),),
                        ((organizations[0], 1), (organizations[1], 2)),
                    ]
                ),
            ),
            min_size=10,
            max_size=60,
            unique_by=lambda item: (item[0], item[1]),
        )
    )
    # Every charge is sent three times over: in batches of different order, and alone.
    orders = [data.draw(st.permutations(items)) for _ in range(2)]
    server = running.server

    async def attack() -> None:
        for organization in organizations:
            await server.create_organization(organization)
        for customer in customers:
            await server.create_customer(customer)
            await server.operator.ledger.GrantCredits(
                ledger.GrantCreditsRequest(
                    customer_id=customer,
                    amount=usd(granted),
                    source=ledger.CREDIT_SOURCE_PURCHASE,
                    idempotency_key="first",
                )
            )
        batches = [
            server.service.ledger.PostCharges(
                ledger.PostChargesRequest(intents=[intent(Item(*item)) for item in order[start : start + 7]])
            )
            for order in orders
            for start in range(0, len(order), 7)
        ]
        singles = [
            server.service.ledger.PostCharge(ledger.PostChargeRequest(intent=intent(Item(*item))))
            for item in items
        ]
        of_batches, of_singles = await asyncio.gather(asyncio.gather(*batches), asyncio.gather(*singles))
        fresh = sum(not verdict.posted.duplicate for answer in of_batches for verdict in answer.verdicts)
        fresh += sum(not answer.posted.duplicate for answer in of_singles)
        assert fresh == len(items)
        for customer in customers:
            answer = await server.operator.ledger.GetCustomerBalance(
                ledger.GetCustomerBalanceRequest(customer_id=customer)
            )
            gross = sum(item[2] for item in items if item[0] == customer)
            assert answer.balance.available.amount_micros == max(0, granted - gross)
            assert answer.balance.unpaid.amount_micros == max(0, gross - granted)
        await audit(server.database_url)

    running.runner.run(attack())


@given(amount=st.integers(0, 10**14), weights=st.lists(st.integers(0, 10**14), min_size=1, max_size=48))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_databases_division_is_the_oracles(running: Running, amount: int, weights: list[int]) -> None:
    if sum(weights) == 0:
        amount = 0

    async def divide() -> list[int]:
        database = Database(running.server.database_url, role="ledger_owner", schema="ledger", pool_size=1)
        await database.open()
        try:
            async with database.hot() as connection:
                row = await (
                    await connection.execute("SELECT ledger.allocate(%s, %s)", (amount, weights))
                ).fetchone()
                assert row is not None
                shares: list[int] = row[0]
                return shares
        finally:
            await database.close()

    shares = running.runner.run(divide())
    assert shares == largest_remainder(amount, weights)
    assert sum(shares) == amount
