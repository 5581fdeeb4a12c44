"""Hosts work while everything fails. In the end each promise was kept and each micro is accounted for."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import psycopg

from sandbox.servers import PostgresServer
from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.ledger.migrations import migrate as migrate_ledger
from services.ledger.store.audit import run_checks
from services.metering.migrations import migrate as migrate_metering
from tallystick.metering.v1 import budget_pb2, budget_service_pb2
from tests.faults.caches import FaultyValkey
from tests.faults.clients import UNIT, Clients, granted
from tests.faults.hosts import KINDS, Finding, Host, Record
from tests.faults.injector import Injector
from tests.faults.services import GRACE, REAP, TIME_TO_LIVE, Services
from tests.support.reservation_oracle import Account
from tests.support.waiting import eventually

_CUSTOMERS: Final = 6
_HOSTS_PER_CUSTOMER: Final = 3
_LIMITS: Final = (0, 0, 100 * UNIT)
# Never reached: it is the counter that is watched.
_CAP: Final = 10**9 * UNIT
_SHOWN: Final = 20
_STORY_SECONDS: Final = 15.0
_CHARGES: Final = "SELECT customer_id, workflow_id, component = 2, gross FROM ledger.charge"


class Report(NamedTuple):
    """What was done, what went wrong on purpose, and what must be empty."""

    seed: int
    seconds: float
    faults: Sequence[tuple[datetime, str]]
    calls: Counter[str]
    findings: Sequence[Finding]

    def lines(self) -> list[str]:
        """For people."""
        kinds = Counter(finding.kind for finding in self.findings)
        faults = Counter(name for _, name in self.faults)
        return [
            f"seed {self.seed}, {self.seconds:.0f} s, {_CUSTOMERS * _HOSTS_PER_CUSTOMER} hosts",
            f"faults injected {faults.total()}: {_counted(faults)}",
            f"calls {self.calls.total()}: {_counted(self.calls)}",
            ", ".join(f"{kind} {kinds[kind]}" for kind in KINDS),
            *(line for finding in self.findings[:_SHOWN] for line in self._story(finding)),
        ]

    def _story(self, finding: Finding) -> list[str]:
        """A finding, and what had gone wrong in the seconds before it."""
        seconds_before = [((finding.time - time).total_seconds(), name) for time, name in self.faults]
        return [
            f"{finding.kind}: {finding.time.isoformat(timespec='milliseconds')} {finding.what}",
            *(
                f"  {seconds:.1f} s before: {name}"
                for seconds, name in seconds_before
                if 0 <= seconds <= _STORY_SECONDS
            ),
        ]


def run(seconds: float, seed: int) -> Report:
    """Start everything in a temporary folder, and let hosts and faults have it for so many seconds."""
    with tempfile.TemporaryDirectory(prefix="tallystick-faults-") as folder:
        directory = Path(folder)
        # Root's must let PostgreSQL's account through to its own folder.
        directory.chmod(0o711)
        postgres, valkey = PostgresServer(directory), FaultyValkey(directory)
        try:
            postgres.start()
            valkey.start()
            migrate_ledger(postgres.url)
            migrate_metering(postgres.url)
            with Services(directory, postgres.url, valkey.url) as services:
                return asyncio.run(_run(seconds, seed, services, valkey, postgres))
        finally:
            valkey.stop()
            postgres.stop("immediate")
            postgres.remove()


async def _run(
    seconds: float, seed: int, services: Services, valkey: FaultyValkey, postgres: PostgresServer
) -> Report:
    clients, record = Clients(services, postgres.url), Record()
    injector = Injector(services, valkey, postgres, random.Random(f"{seed}/faults"))
    began = time.monotonic()
    try:
        await clients.set_up()
        accounts = [await _account(clients, number) for number in range(_CUSTOMERS)]
        hosts = [
            Host(f"host-{number}-{part}", account, clients, record, random.Random(f"{seed}/{number}/{part}"))
            for number, account in enumerate(accounts)
            for part in range(_HOSTS_PER_CUSTOMER)
        ]
        over = asyncio.Event()
        work = asyncio.gather(*(host.work(over.is_set) for host in hosts))
        while time.monotonic() < began + seconds and not work.done():
            await asyncio.to_thread(injector.inject)
        over.set()
        await work
        await _judge(clients, accounts, record)
    finally:
        await clients.close()
    return Report(seed, time.monotonic() - began, injector.history, record.calls, record.findings)


async def _account(clients: Clients, number: int) -> Account:
    limit = _LIMITS[number % len(_LIMITS)]
    account = Account(f"cus_{number}", (GRACE + REAP).total_seconds(), limit, _CAP)
    await clients.create_customer(account.customer_id, limit)
    budget = budget_pb2.Budget(
        budget_id=f"bud_{number}",
        customer_id=account.customer_id,
        period=budget_pb2.BUDGET_PERIOD_TOTAL,
        hard=True,
    )
    budget.limit.currency_code, budget.limit.amount_micros = "USD", _CAP
    await granted(
        lambda: clients.operator.budgets.CreateBudget(budget_service_pb2.CreateBudgetRequest(budget=budget))
    )
    account.granted = 100 * UNIT
    await granted(lambda: clients.grant(account.customer_id, account.granted, "first"))
    return account


async def _judge(clients: Clients, accounts: Sequence[Account], record: Record) -> None:
    """Wait until everything that nobody ended is over, and compare what is left with what was answered."""
    deadline = time.monotonic() + TIME_TO_LIVE.total_seconds()

    async def is_over() -> bool:
        return time.monotonic() > deadline or await _nothing_is_kept(clients, accounts)

    await eventually(is_over)
    for account in accounts:
        balance = await clients.balance(account.customer_id)
        if balance.reserved or balance.held or balance.kept:
            record.found("leaked", f"{account.customer_id} still has {balance}")
        worth = balance.credits - balance.receivable - balance.unpaid
        if worth < account.worth:
            record.found("doubled", f"{account.customer_id} is worth {worth}, not {account.worth}")
        elif worth > account.worth:
            record.found("lost", f"{account.customer_id} is worth {worth}, not {account.worth}")
    _compare_charges(clients.ledger.database_url, accounts, record)
    for finding in await _audit(clients.ledger.database_url):
        record.found("overdraft", f"the books differ: {finding}")
    await clients.reconcile(dry_run=False)
    for drift in await clients.reconcile(dry_run=True):
        record.found("leaked", f"Redis differs after it was repaired: {drift}")
    await _compare_budgets(clients, accounts, record)


async def _nothing_is_kept(clients: Clients, accounts: Sequence[Account]) -> bool:
    balances = [await clients.balance(account.customer_id) for account in accounts]
    return not any(balance.reserved or balance.held or balance.kept for balance in balances)


def _compare_charges(database_url: str, accounts: Sequence[Account], record: Record) -> None:
    """Each of what was answered is charged once, and nothing else."""
    with psycopg.connect(database_url) as connection:
        posted = Counter(connection.execute(_CHARGES).fetchall())
    answered = Counter(
        (account.customer_id, key.removesuffix("/outcome"), key.endswith("/outcome"), gross)
        for account in accounts
        for key, gross in account.charges.items()
    )
    for charge in answered - posted:
        record.found("lost", f"was answered, and not charged: {charge}")
    for charge in posted - answered:
        record.found("doubled", f"was charged, and not answered: {charge}")


async def _compare_budgets(clients: Clients, accounts: Sequence[Account], record: Record) -> None:
    for account in accounts:
        budget_id = account.customer_id.replace("cus_", "bud_")
        request = budget_service_pb2.GetBudgetRequest(budget_id=budget_id)
        answer = await clients.operator.budgets.GetBudget(request)
        if answer.status.spent.amount_micros != account.spent:
            record.found("lost", f"{budget_id} has counted {answer.status.spent}, not {account.spent}")
        # What ended while Valkey was away is counted there until its time is over.
        now = time.time()
        under_way = sum(max(one.amount, one.counted) for one in account.promises if one.expire_time > now)
        if answer.status.reserved.amount_micros > under_way:
            record.found("leaked", f"{budget_id} still counts {answer.status.reserved}")


async def _audit(database_url: str) -> list[str]:
    database = Database(database_url, role="ledger_reader", schema="ledger", pool_size=1)
    try:
        async with database.begin() as connection:
            await scope(connection, PLATFORM)
            return [str(finding) async for finding in run_checks(connection) if finding.count]
    finally:
        await database.close()


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
