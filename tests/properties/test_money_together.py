"""Everything that moves a customer's money, mixed, by one caller and by many at once.

Lots with funders, which expire and are settled; debts, which are collected or written off; corrections,
purchases that come back, payouts and adjustments. The audit has no finding in between or at the end, and what
is settled of promotions is the same whatever came first.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta

import grpc
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick.ledger.v1 import credit_service_pb2 as credit
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1 import write_off_pb2
from tests.support.ledger_adjustments import credit_request
from tests.support.ledger_credits import intent, usd
from tests.support.ledger_everything import settled
from tests.support.ledger_funding import CHARGEBACK, REFUND, Funding
from tests.support.ledger_lots import Lots
from tests.support.ledger_machine import Running, audit, numbers
from tests.support.ledger_server import LedgerServer, running_ledger

# As only somebody with the whole machine can: everything there is is a day older.
A_DAY_LATER = """
SET session_replication_role = replica;
UPDATE ledger.charge
SET create_time = create_time - interval '1 day', occur_time = occur_time - interval '1 day';
UPDATE ledger.transaction
SET create_time = create_time - interval '1 day', occur_time = occur_time - interval '1 day';
UPDATE ledger.entry SET available_on = available_on - 1, earned_on = earned_on - 1
WHERE available_on IS NOT NULL;
UPDATE ledger.balance_delta SET available_on = available_on - 1, earned_on = earned_on - 1
WHERE available_on IS NOT NULL;
-- Out of the way of each other first.
UPDATE ledger.earnings_bucket SET available_on = available_on + 9999;
UPDATE ledger.earnings_bucket SET available_on = available_on - 10000, earned_on = earned_on - 1;
"""
# Every debit that lots of an organization have ever paid is looked at once more.
ALL_DUE = """
INSERT INTO ledger.promotion_due (customer_id, debit_id, funder_id, currency_code)
SELECT DISTINCT customer_id, debit_id, funder_id, currency_code FROM ledger.promotion_settlement
WHERE customer_id = ANY (%s)
ON CONFLICT DO NOTHING
"""
# What is left of charges of which all is corrected or written off.
REMAINDERS = """
SELECT t.charge_id, e.owner_id, e.kind, e.collected, e.available_on, sum(e.amount)
FROM ledger.corrected_charge x
JOIN ledger.transaction t ON t.charge_id = x.charge_id AND t.partition_id = x.customer_id
JOIN ledger.entry e ON e.transaction_id = t.transaction_id AND e.partition_id = t.partition_id
WHERE x.amount + x.written_off = x.gross AND x.customer_id = ANY (%s)
GROUP BY t.charge_id, e.owner_id, e.kind, e.collected, e.available_on
HAVING sum(e.amount) <> 0
"""
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
REFUSALS = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
)


@pytest.fixture
def running(database_url: str) -> Iterator[Running]:
    never = timedelta(hours=1)
    with asyncio.Runner() as runner:
        context = running_ledger(
            database_url,
            reap_interval=never,
            collect_interval=never,
            lot_interval=never,
            fold_interval=never,
            seal_interval=never,
        )
        server = runner.run(context.__aenter__())
        try:
            yield Running(runner, server)
        finally:
            runner.run(context.__aexit__(None, None, None))


@dataclass
class World:
    """Two customers, three organizations, and what happens to them next."""

    server: LedgerServer
    chance: random.Random
    customers: list[str] = field(default_factory=list)
    organizations: list[str] = field(default_factory=list)
    charges: list[tuple[str, int]] = field(default_factory=list)
    purchases: list[tuple[str, str, int]] = field(default_factory=list)
    reversals: list[tuple[str, str]] = field(default_factory=list)
    payouts: list[tuple[str, str]] = field(default_factory=list)
    ending: list[tuple[str, str]] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        self.lots = Lots(self.server)
        self.funding = Funding(self.server)

    async def begin(self) -> None:
        number = next(numbers)
        for name, terms in (
            ("x", (1500, 290, 0, 0)),
            ("y", (1000, 0, 2, 1)),
            ("z", (3333, 6667, 1, 3)),
        ):
            self.organizations.append(f"org_{number}-{name}")
            await self.server.create_organization(self.organizations[-1], *terms)
        for name in "ab":
            self.customers.append(f"cus_{number}-{name}")
            await self.server.create_customer(self.customers[-1])

    async def play(self, steps: Iterator[int], *, with_days: bool) -> None:
        """One thing after the other. What is refused is refused; the mix asks for more than there is."""
        happenings: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self.grant),
            (8, self.charge),
            (5, self.correct),
            (5, self.write_off_charge),
            (1, self.write_off_owner),
            (2, self.reverse),
            (1, self.reinstate),
            (3, self.expire),
            (4, self.settle),
            (2, self.limit),
            (2, self.pay),
            (1, self.end_payout),
            (1, self.adjust),
            (1, self.lease),
            (int(with_days), self.a_day),
        ]
        weights = [weight for weight, _ in happenings]
        for step in steps:
            self.step = step
            (_, happen) = self.chance.choices(happenings, weights)[0]
            try:
                await happen()
            except grpc.aio.AioRpcError as error:
                if error.code() not in REFUSALS:
                    raise

    async def rest(self) -> None:
        """All is settled; looking at it once more changes nothing, and of what is gone nothing is left."""
        for _ in range(2):
            for customer in self.customers:
                await self.lots.settle(customer)
        await audit(self.server.database_url)
        async with await psycopg.AsyncConnection.connect(self.server.database_url) as owner:
            before = await (await owner.execute("SELECT count(*) FROM ledger.transaction")).fetchone()
            await owner.execute(ALL_DUE, [self.customers])
            await owner.execute("SELECT ledger.settle_promotions(10000)")
            assert await (await owner.execute("SELECT count(*) FROM ledger.transaction")).fetchone() == before
            left = await (await owner.execute(REMAINDERS, [self.customers])).fetchall()
            assert left == []

    def amount(self, most: int = 2000) -> int:
        return self.chance.choice(
            [1, 2, 7, self.chance.randint(1, 60), self.chance.randint(1, most), self.chance.randint(1, most)]
        )

    async def grant(self) -> None:
        customer = self.chance.choice(self.customers)
        funder = self.chance.choice(["", "", "", "", "platform", *self.organizations, self.organizations[0]])
        expires = self.chance.choice([None, timedelta(hours=1)])
        amount, key = self.amount(), f"grant-{self.step}"
        if not funder:
            amount *= 3
        lot_id = await self.lots.give(
            amount,
            key,
            funder=funder,
            customer=customer,
            expires=expires,
            priority=self.chance.choice([0, 50, 50, 70]),
        )
        if not funder:
            self.purchases.append((customer, key, amount))
        if expires:
            self.ending.append((customer, lot_id))

    async def charge(self) -> None:
        intents = []
        for number in range(self.chance.choice([1, 1, 2, 4])):
            message = intent(
                f"run-{self.step}-{number}",
                self.chance.choice([0, self.amount(), self.amount(3000)]),
                customer=self.chance.choice(self.customers),
            )
            del message.payees[:]
            for payee in self.chance.sample(self.organizations, self.chance.choice([1, 1, 2, 3])):
                message.payees.add(
                    organization_id=payee,
                    agent_id=payee.replace("org_", "agt_"),
                    weight=self.chance.randint(1, 4),
                )
            intents.append(message)
        answer = await self.server.service.ledger.PostCharges(ledger.PostChargesRequest(intents=intents))
        for verdict in answer.verdicts:
            charge = verdict.posted.charge
            self.charges.append((charge.charge_id, charge.gross.amount_micros))

    def part(self, whole: int) -> int:
        return max(1, self.chance.choice([whole, whole // 2, whole // 3, self.amount()]))

    async def correct(self) -> None:
        if not self.charges:
            return
        charge_id, gross = self.chance.choice(self.charges[-8:])
        charge = await self.lots.get(charge_id=charge_id)
        left = gross - charge.corrected.amount_micros - charge.written_off.amount_micros
        amount = self.part(left)
        await self.lots.correct(f"rf-{self.step}", amount, charge_id=charge_id)

    async def write_off_charge(self) -> None:
        if not self.charges:
            return
        charge_id, gross = self.chance.choice(self.charges[-8:])
        kind = self.chance.choice(
            [write_off_pb2.WRITE_OFF_KIND_UNPAID, write_off_pb2.WRITE_OFF_KIND_RECEIVABLE]
        )
        amount = self.chance.choice([None, None, self.part(gross)])
        await self.lots.write_off(kind, amount, f"wo-{self.step}", charge_id=charge_id)

    async def write_off_owner(self) -> None:
        kind, owners = self.chance.choice(
            [
                (write_off_pb2.WRITE_OFF_KIND_CHARGEBACKS, self.customers),
                (write_off_pb2.WRITE_OFF_KIND_CLAWBACK, self.organizations),
            ]
        )
        owner = self.chance.choice(owners)
        amount = self.chance.choice([None, None, self.amount()])
        await self.lots.write_off(kind, amount, f"wo-{self.step}", owner=owner)

    async def reverse(self) -> None:
        if not self.purchases:
            return
        customer, key, amount = self.chance.choice(self.purchases)
        part = self.part(amount)
        kind = self.chance.choice([REFUND, CHARGEBACK])
        await self.funding.reverse(f"re-{self.step}", part, kind, purchase=key, customer=customer)
        self.reversals.append((customer, f"re-{self.step}"))

    async def reinstate(self) -> None:
        if not self.reversals:
            return
        customer, reversal_id = self.reversals.pop(self.chance.randrange(len(self.reversals)))
        amount = self.chance.choice([None, None, 1])
        await self.funding.reinstate(reversal_id, f"ri-{self.step}", amount, customer=customer)

    async def expire(self) -> None:
        if not self.ending:
            return
        customer, lot_id = self.chance.choice(self.ending)
        await self.lots.end_time(lot_id, customer=customer)

    async def settle(self) -> None:
        customer = self.chance.choice(self.customers)
        await self.lots.settle(customer)

    async def limit(self) -> None:
        customer = self.chance.choice(self.customers)
        amount = self.chance.choice([0, 100, 1000, 5000])
        await self.server.operator.directory.SetCreditLimit(
            directory.SetCreditLimitRequest(customer_id=customer, credit_limit=usd(amount))
        )

    async def pay(self) -> None:
        organization = self.chance.choice(self.organizations)
        balance = await self.lots.earned(organization)
        amount = max(1, balance.available.amount_micros)
        await self.lots.debit(f"po_{self.step}", amount, organization)
        self.payouts.append((organization, f"po_{self.step}"))

    async def end_payout(self) -> None:
        if not self.payouts:
            return
        organization, payout_id = self.payouts.pop()
        if self.chance.random() < 0.5:
            await self.server.service.earnings.CompletePayout(
                earnings.CompletePayoutRequest(organization_id=organization, payout_id=payout_id)
            )
            return
        await self.server.service.earnings.ReturnPayout(
            earnings.ReturnPayoutRequest(organization_id=organization, payout_id=payout_id)
        )

    async def adjust(self) -> None:
        customer = self.chance.choice(self.customers)
        amount = self.amount(300) * self.chance.choice([1, -1])
        await self.server.operator.ledger.AdjustBalances(
            credit_request(customer, amount, f"adj-{self.customers[0]}-{self.step}")
        )

    async def lease(self) -> None:
        customer = self.chance.choice(self.customers)
        seen = self.epochs.get(customer, 0)
        if seen and self.chance.random() < 0.6:
            await self.server.service.credits.ReturnLease(
                credit.ReturnLeaseRequest(
                    customer_id=customer,
                    currency_code="USD",
                    epoch=seen,
                    return_number=self.step + 1,
                    amount_micros=self.chance.choice([5, 100000]),
                )
            )
            return
        answer = await self.server.service.credits.OpenLease(
            credit.OpenLeaseRequest(
                customer_id=customer, currency_code="USD", seen_epoch=seen, wanted_micros=self.amount()
            )
        )
        self.epochs[customer] = answer.granted.lease.epoch

    async def a_day(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.server.database_url) as superuser:
            await superuser.execute(A_DAY_LATER)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.randoms(use_true_random=True))
def test_whatever_comes_first_the_audit_has_no_finding(running: Running, chance: random.Random) -> None:
    world = World(running.server, chance)

    async def play() -> None:
        await world.begin()
        for first in range(0, 60, 10):
            await world.play(iter(range(first, first + 10)), with_days=True)
            await audit(running.server.database_url)
        await world.rest()

    running.runner.run(play())


async def test_many_at_once_wait_for_nobody_in_a_circle(database_url: str) -> None:
    """While all steps of the background run as often as they can, and audits read what comes in between."""
    soon = timedelta(milliseconds=20)
    async with running_ledger(
        database_url, lot_interval=soon, reap_interval=soon, collect_interval=soon, fold_interval=soon
    ) as server:
        world = World(server, random.Random())
        await world.begin()
        steps = itertools.count()
        callers = [
            # Each at a step of its own, in the one world.
            asyncio.create_task(replace(world).play(itertools.islice(steps, 40), with_days=False))
            for _ in range(10)
        ]
        while not all(caller.done() for caller in callers):
            await audit(database_url)
        await asyncio.gather(*callers)
        await settled(server)
        await world.rest()
        async with await psycopg.AsyncConnection.connect(database_url) as superuser:
            assert await (await superuser.execute(DEADLOCKS)).fetchone() == (0,)
