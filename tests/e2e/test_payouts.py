"""What `make up` starts pays out by the clock of the stand-in for Stripe, despite a crash; and recharges."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc
import psycopg
import pytest
import redis

from sandbox.calls import until
from sandbox.register import CURRENCY, ONE_DOLLAR, Operator
from sandbox.replay import CUSTOMERS, RUN_ACTION, Party
from sandbox.servers import Stores
from sandbox.shop import Shop
from sandbox.stack import Stack
from sandbox.stripe.calling import call
from sandbox.stripe.client import StripeControl
from sandbox.stripe.server import DEFAULT_KEY
from services.kit.client import connect
from tallystick.common.v1 import access_pb2
from tallystick.common.v1.money_pb2 import Money
from tallystick.ledger.v1 import account_pb2, directory_service_pb2, ledger_service_pb2
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tallystick.metering.v1.metering_service_pb2 import AuthorizeRequest
from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceStub
from tallystick.payouts.v1 import (
    payment_service_pb2,
    payout_pb2,
    payout_schedule_pb2,
    payout_service_pb2,
    purchase_pb2,
    schedule_service_pb2,
)
from tallystick.payouts.v1.payment_service_pb2_grpc import PaymentServiceStub
from tallystick.payouts.v1.payout_service_pb2_grpc import PayoutServiceStub
from tallystick.payouts.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from tests.conftest import FreshDatabase

USD = 1_000_000
DEADLINE_SECONDS = 120.0
WEEK = 7 * 86_400


@pytest.fixture(scope="module")
def stack(
    session_stores: Stores, fresh_database: FreshDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """One for all tests here. Each has an organization of its own; the last one moves the clock."""
    with redis.Redis.from_url(session_stores.redis_url) as client:
        client.flushdb()
    with fresh_database() as database_url:
        own = replace(session_stores, database_url=database_url)
        with Stack(
            tmp_path_factory.mktemp("stack"), own, services=("ledger", "metering", "payouts")
        ) as running:
            yield running


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def earn(ledger: LedgerServiceStub, organization_id: str, micros: int, key: tuple[tuple[str, str]]) -> None:
    """Earnings that may be paid out at once."""
    postings = [
        ledger_service_pb2.Posting(
            account=account_pb2.AccountRef(owner_id=owner_id, kind=kind, currency_code="USD"),
            amount=Money(currency_code="USD", amount_micros=amount),
        )
        for owner_id, kind, amount in (
            (organization_id, account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE, micros),
            ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, -micros),
        )
    ]
    ledger.AdjustBalances(
        ledger_service_pb2.AdjustBalancesRequest(
            postings=postings, reason="earnings of a test", idempotency_key="earn"
        ),
        metadata=key,
    )

    def folded() -> bool:
        asked = ledger_service_pb2.GetEarningsBalanceRequest(organization_id=organization_id)
        return ledger.GetEarningsBalance(asked, metadata=key).balance.available.amount_micros == micros

    eventually(folded)


def connected_account(stack: Stack, organization_id: str) -> str:
    """An account at the stand-in, onboarded, and the row that onboarding would leave; its id."""
    assert stack.endpoints.stripe is not None
    status, account = call(
        stack.endpoints.stripe,
        "POST",
        "/v1/accounts",
        [
            ("type", "express"),
            ("capabilities[transfers][requested]", "true"),
            ("settings[payouts][schedule][interval]", "manual"),
        ],
        key=DEFAULT_KEY,
    )
    assert status == 200, account
    StripeControl(f"http://{stack.endpoints.stripe}").onboard(account["id"])
    with psycopg.connect(stack.endpoints.database_url) as connection:
        connection.execute(
            "INSERT INTO payouts.connected_account (organization_id, country_code, stripe_account_id,"
            " create_attempt_time, transfers_status, bank_payouts_enabled, details_submitted, create_time,"
            " refresh_time) VALUES (%s, 'US', %s, now(), 'active', true, true, now(), now())",
            (organization_id, account["id"]),
        )
    return str(account["id"])


def usd(units: int) -> Money:
    return Money(currency_code=CURRENCY, amount_micros=units * USD)


async def test_a_refused_run_has_credits_bought_by_themselves(stack: Stack) -> None:
    customer, party, key = min(CUSTOMERS), Party("wren", "mixed"), stack.operator_key.read()
    async with (
        connect(stack.endpoints.ledger, key) as to_ledger,
        connect(stack.endpoints.metering, key) as to_metering,
        connect(stack.endpoints.payouts, key) as to_payouts,
    ):
        operator = Operator(to_ledger, to_metering)
        await operator.register([party])
        await operator.publish_prices(int(time.time() - 60) * USD)
        await Shop(to_payouts).open([(customer, ONE_DOLLAR)])
        recharge = purchase_pb2.AutoRecharge(
            customer_id=customer, enabled=True, threshold=usd(5), amount=usd(20), monthly_ceiling=usd(60)
        )
        await PaymentServiceStub(to_payouts).SetAutoRecharge(
            payment_service_pb2.SetAutoRechargeRequest(auto_recharge=recharge)
        )
        async with connect(stack.endpoints.metering, await operator.create_host_key()) as of_host:
            numbers = itertools.count(1)

            async def authorized() -> bool:
                # Each time another run: one that was refused stays refused.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await MeteringServiceStub(of_host).Authorize(
                        AuthorizeRequest(
                            customer_id=customer,
                            workflow_id=f"run-{next(numbers)}",
                            agent_id=party.agent_id,
                            action_type=RUN_ACTION,
                            max_cost=usd(10),
                        )
                    )
                    return True
                return False

            assert not await authorized()
            await until("the credits are there", authorized)


def test_a_payout_survives_kill_and_follows_the_clock_of_the_stand_in(stack: Stack) -> None:
    assert stack.endpoints.stripe is not None
    stripe = StripeControl(f"http://{stack.endpoints.stripe}")
    key = (("authorization", f"Bearer {stack.operator_key.read()}"),)
    with (
        grpc.insecure_channel(stack.endpoints.ledger) as to_ledger,
        grpc.insecure_channel(stack.endpoints.payouts) as to_payouts,
    ):
        ledger, payouts = LedgerServiceStub(to_ledger), PayoutServiceStub(to_payouts)
        schedules = ScheduleServiceStub(to_payouts)

        def changed_at() -> int:
            """When, by its clock, payouts was told that nothing is paid by itself."""
            manual = payout_schedule_pb2.PayoutSchedule(
                organization_id="org_lark", interval=payout_schedule_pb2.PAYOUT_INTERVAL_MANUAL
            )
            asked = schedule_service_pb2.SetPayoutScheduleRequest(schedule=manual)
            return schedules.SetPayoutSchedule(asked, metadata=key).schedule.update_time.seconds

        directory = DirectoryServiceStub(to_ledger)
        directory.CreateOrganization(
            directory_service_pb2.CreateOrganizationRequest(
                organization_id="org_lark", display_name="Lark", platform_fee_bps=1500, processing_fee_bps=290
            ),
            metadata=key,
        )
        owner = directory.CreateApiKey(
            directory_service_pb2.CreateApiKeyRequest(
                role=access_pb2.ROLE_OWNER, organization_id="org_lark", idempotency_key="owner"
            ),
            metadata=key,
        )
        earn(ledger, "org_lark", 100 * USD, key)
        account = connected_account(stack, "org_lark")
        stripe.fund(100_00)
        # It takes effect, but payouts is not told: the stand-in has to be asked again, by another process.
        stripe.fault("lost_answer", "transfers.create")
        changed_at()
        later = stripe.advance(WEEK)
        # Payouts notices by itself that a week has passed. Before that, a call that it has frozen would be a
        # week old at once, and never be sent.
        eventually(lambda: changed_at() >= later - 2)
        requested = payouts.RequestPayout(
            payout_service_pb2.RequestPayoutRequest(
                organization_id="org_lark",
                amount=Money(currency_code="USD", amount_micros=40 * USD),
                idempotency_key="first",
            ),
            metadata=(("authorization", f"Bearer {owner.secret}"),),
        ).payout
        eventually(lambda: len(stripe.requests("transfers.create")) > 0)
        stack.kill("payouts")
        stack.restart("payouts")

        def found() -> payout_pb2.Payout:
            asked = payout_service_pb2.GetPayoutRequest(payout_id=requested.payout_id)
            return payouts.GetPayout(asked, metadata=key, wait_for_ready=True, timeout=30).payout

        # The lease of the one that was killed ends by the same clock.
        stripe.advance(120)
        eventually(lambda: found().state == payout_pb2.PAYOUT_STATE_COMPLETED)
        assert found().update_time.seconds >= later - 2
        status, transfers = call(
            stack.endpoints.stripe, "GET", "/v1/transfers", [("destination", account)], key=DEFAULT_KEY
        )
        assert status == 200
        assert [transfer["amount"] for transfer in transfers["data"]] == [40_00]
        balance = ledger.GetEarningsBalance(
            ledger_service_pb2.GetEarningsBalanceRequest(organization_id="org_lark"), metadata=key
        ).balance
        assert balance.available.amount_micros == 60 * USD
    assert stripe.violations == []
