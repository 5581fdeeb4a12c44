"""Reservations against an oracle: no overdraft, no leak, no charge twice, whatever dies on the way."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.ledger.store.audit import run_checks
from tests.faults.caches import FaultyValkey
from tests.faults.clients import Clients
from tests.faults.services import TIME_TO_LIVE, Services
from tests.properties.reservation_machine import ReservationMachine, Running
from tests.support.waiting import eventually


@pytest.fixture
def running(database_url: str, tmp_path: Path) -> Iterator[Running]:
    valkey = FaultyValkey(tmp_path)
    valkey.start()
    try:
        with Services(tmp_path, database_url, valkey.url) as services, asyncio.Runner() as runner:
            clients = runner.run(connected(services, database_url))
            yield Running(runner, services, valkey, clients)
            runner.run(clients.close())
    finally:
        valkey.stop()


async def connected(services: Services, database_url: str) -> Clients:
    clients = Clients(services, database_url)
    await clients.set_up()
    return clients


def test_whatever_fails_every_promise_is_kept_and_nothing_is_lost(running: Running) -> None:
    machine = type("Machine", (ReservationMachine,), {"running": running})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=14,
            deadline=None,
            # Not made smaller: what fails depends on time too, and each attempt takes a second.
            phases=[Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    running.runner.run(check_end(running))


async def check_end(running: Running) -> None:
    """What nobody ended is over by now, or soon: then all that was granted is spent or free."""
    clients, deadline = running.clients, time.monotonic() + TIME_TO_LIVE.total_seconds()

    async def nothing_is_kept() -> bool:
        balances = [await clients.balance(one.customer_id) for one in running.accounts]
        return all(not one.reserved and not one.held for one in balances) or time.monotonic() > deadline

    await eventually(nothing_is_kept)
    for account in running.accounts:
        balance = await clients.balance(account.customer_id)
        assert (balance.reserved, balance.held) == (0, 0), f"leaked: {balance} of {account}"
        assert balance.available - balance.receivable - balance.unpaid == account.worth
    check_charges(running)
    await audit(clients.ledger.database_url)
    await clients.reconcile(dry_run=False)
    assert await clients.reconcile(dry_run=True) == []


def check_charges(running: Running) -> None:
    """Each of what was answered is charged once, and nothing else."""
    with psycopg.connect(running.clients.ledger.database_url) as connection:
        rows = connection.execute("SELECT customer_id, workflow_id, component, gross FROM ledger.charge")
        posted = Counter(
            (customer, workflow, component == 2, gross) for customer, workflow, component, gross in rows
        )
    expected = Counter(
        (account.customer_id, key.removesuffix("/outcome"), key.endswith("/outcome"), gross)
        for account in running.accounts
        for key, gross in account.charges.items()
    )
    assert posted == expected


async def audit(database_url: str) -> None:
    database = Database(database_url, role="ledger_reader", schema="ledger", pool_size=1)
    try:
        async with database.begin() as connection:
            await scope(connection, PLATFORM)
            assert [finding async for finding in run_checks(connection) if finding.count] == []
    finally:
        await database.close()
