"""The ledger against an oracle: whatever is asked for, in whatever order, every answer and balance agrees."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.ledger.store.audit import run_checks
from tallystick.common.v1 import error_reason_pb2, money_pb2
from tallystick.ledger.v1 import charge_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support.ledger_oracle import LedgerOracle, largest_remainder
from tests.support.ledger_server import LedgerServer, running_ledger

OCCURRED = Timestamp(seconds=int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()))
_numbers = itertools.count()


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


@dataclass
class Running:
    """A ledger that serves in the background of synchronous tests."""

    runner: asyncio.Runner
    server: LedgerServer


@pytest.fixture
def running(database_url: str) -> Iterator[Running]:
    with asyncio.Runner() as runner:
        context = running_ledger(database_url)
        server = runner.run(context.__aenter__())
        try:
            yield Running(runner, server)
        finally:
            runner.run(context.__aexit__(None, None, None))


def intent(
    customer: str, workflow: str, gross: int, payees: list[tuple[str, int]]
) -> charge_pb2.ChargeIntent:
    return charge_pb2.ChargeIntent(
        customer_id=customer,
        workflow_id=workflow,
        component=charge_pb2.CHARGE_COMPONENT_BASE,
        gross=usd(gross),
        payees=[
            charge_pb2.Payee(
                organization_id=organization, agent_id=organization.replace("org_", "agt_"), weight=weight
            )
            for organization, weight in payees
        ],
        occur_time=OCCURRED,
        price_version_id="pv_test",
    )


def said(verdict: ledger.ChargeVerdict) -> str:
    if verdict.HasField("error"):
        assert verdict.error.reason == error_reason_pb2.ERROR_REASON_IDEMPOTENCY_KEY_REUSED
        return "reused"
    return "duplicate" if verdict.posted.duplicate else "posted"


async def audit(database_url: str) -> None:
    database = Database(database_url, role="ledger_reader", schema="ledger", pool_size=1)
    try:
        async with database.begin() as connection:
            await scope(connection, PLATFORM)
            findings = [finding async for finding in run_checks(connection) if finding.count]
        assert findings == []
    finally:
        await database.close()


AMOUNTS = st.one_of(st.integers(0, 30), st.integers(0, 10_000), st.just(10**14))
BASIS_POINTS = st.sampled_from([(0, 0), (1500, 290), (3333, 6667), (10_000, 0), (1, 1)])


class LedgerMachine(RuleBasedStateMachine):
    """Random operations on one ledger; each machine has customers and organizations of its own."""

    running: Running

    @initialize(shares=st.lists(BASIS_POINTS, min_size=3, max_size=3))
    def begin(self, shares: list[tuple[int, int]]) -> None:
        number = next(_numbers)
        self.customers = [f"cus_{number}-{name}" for name in "ab"]
        self.organizations = [f"org_{number}-{name}" for name in "xyz"]
        self.oracle = LedgerOracle(dict(zip(self.organizations, shares, strict=True)))

        async def create() -> None:
            for organization, (platform, processing) in zip(self.organizations, shares, strict=True):
                await self.running.server.create_organization(organization, platform, processing)
            for customer in self.customers:
                await self.running.server.create_customer(customer)

        self.running.runner.run(create())

    @rule(data=st.data())
    def post_batch(self, data: st.DataObject) -> None:
        items = data.draw(
            st.lists(
                st.tuples(
                    st.sampled_from(self.customers),
                    st.integers(0, 12).map("run-{}".format),
                    AMOUNTS,
                    st.lists(
                        st.tuples(st.sampled_from(self.organizations), st.integers(1, 5)),
                        min_size=1,
                        max_size=3,
                        unique_by=lambda payee: payee[0],
                    ),
                ),
                min_size=1,
                max_size=8,
            )
        )
        request = ledger.PostChargesRequest(intents=[intent(*item) for item in items])
        response = self.running.runner.run(self._post(request))
        assert [said(verdict) for verdict in response.verdicts] == [
            self.oracle.charge(*item) for item in items
        ]
        for verdict in response.verdicts:
            if verdict.HasField("posted"):
                charge = verdict.posted.charge
                payment = charge.payment
                assert charge.gross.amount_micros == sum(
                    part.amount_micros
                    for part in (payment.from_credits, payment.from_receivable, payment.unpaid)
                )
                for earning in charge.earnings:
                    assert earning.gross.amount_micros == (
                        earning.net.amount_micros
                        + earning.platform_fee.amount_micros
                        + earning.processing_fee.amount_micros
                    )

    async def _post(self, request: ledger.PostChargesRequest) -> ledger.PostChargesResponse:
        return await self.running.server.service.ledger.PostCharges(request)

    @rule(
        data=st.data(), amount=st.one_of(st.integers(1, 50), st.integers(1, 100_000)), key=st.integers(0, 5)
    )
    def grant(self, data: st.DataObject, amount: int, key: int) -> None:
        customer = data.draw(st.sampled_from(self.customers))
        said = self.oracle.grant(customer, str(key), amount)

        async def grant() -> str:
            request = ledger.GrantCreditsRequest(
                customer_id=customer,
                amount=usd(amount),
                source=ledger.CREDIT_SOURCE_PURCHASE,
                idempotency_key=str(key),
            )
            try:
                granted = await self.running.server.operator.ledger.GrantCredits(request)
            except grpc.aio.AioRpcError as error:
                return "reused" if error.code() is grpc.StatusCode.ALREADY_EXISTS else error.details() or "?"
            assert granted.balance.available.amount_micros == self.oracle.credits[customer]
            return said if granted.transaction_id else "nothing"

        assert self.running.runner.run(grant()) == said

    @rule(data=st.data(), limit=st.sampled_from([0, 7, 1000, 50_000]))
    def limit(self, data: st.DataObject, limit: int) -> None:
        customer = data.draw(st.sampled_from(self.customers))
        self.oracle.credit_limit[customer] = limit

        async def change() -> None:
            await self.running.server.operator.directory.SetCreditLimit(
                directory.SetCreditLimitRequest(customer_id=customer, credit_limit=usd(limit))
            )

        self.running.runner.run(change())

    @invariant()
    def balances_agree(self) -> None:
        if hasattr(self, "oracle"):
            self.running.runner.run(self._compare())

    async def _compare(self) -> None:
        oracle, stub = self.oracle, self.running.server.operator.ledger
        for customer in self.customers:
            answer = await stub.GetCustomerBalance(ledger.GetCustomerBalanceRequest(customer_id=customer))
            balance = answer.balance
            assert balance.available.amount_micros == oracle.credits[customer]
            assert balance.receivable.amount_micros == oracle.receivable(customer)
            assert balance.unpaid.amount_micros == oracle.unpaid(customer)
            assert balance.credit_limit.amount_micros == oracle.credit_limit[customer]
        for organization in self.organizations:
            reply = await stub.GetEarningsBalance(
                ledger.GetEarningsBalanceRequest(organization_id=organization)
            )
            earned = reply.balance
            total = earned.available.amount_micros + earned.pending.amount_micros
            assert total == oracle.collected[organization] + oracle.uncollected[organization]
            assert earned.uncollected.amount_micros == oracle.uncollected[organization]
            assert earned.platform_fees.amount_micros == oracle.platform_fees[organization]
            assert earned.processing_fees.amount_micros == oracle.processing_fees[organization]

    def teardown(self) -> None:
        if hasattr(self, "oracle"):
            self.running.runner.run(audit(self.running.server.database_url))


def test_every_answer_and_balance_is_the_oracles(running: Running) -> None:
    machine = type("Machine", (LedgerMachine,), {"running": running})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=25, stateful_step_count=12, deadline=None)
    )


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_concurrent_batches_post_each_charge_once_and_never_overdraw(
    running: Running, data: st.DataObject
) -> None:
    number = next(_numbers)
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
                        [(organizations[0], 1)],
                        [(organizations[1], 1)],
                        [(organizations[0], 1), (organizations[1], 2)],
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
                ledger.PostChargesRequest(intents=[intent(*item) for item in order[start : start + 7]])
            )
            for order in orders
            for start in range(0, len(order), 7)
        ]
        singles = [
            server.service.ledger.PostCharge(ledger.PostChargeRequest(intent=intent(*item))) for item in items
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
