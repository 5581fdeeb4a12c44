"""Leases: how credits get into Redis and back, whatever happens to Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import redis
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.client import connect
from tallystick.ledger.v1 import (
    account_pb2,
    charge_pb2,
    credit_pb2,
    credit_service_pb2,
    credit_service_pb2_grpc,
    ledger_service_pb2,
)
from tallystick.metering.v1 import metering_service_pb2 as pb
from tallystick.metering.v1 import reservation_pb2, reservation_service_pb2
from tests.integration.metering.reserving import Reserving, usd
from tests.integration.metering.world import RUN_MICROS, refused, run
from tests.support.ledger_credits import intent
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import AGENT_RUN, running_metering
from tests.support.waiting import eventually

CREDITS = 100_000_000


@asynccontextmanager
async def leasing(
    database_url: str,
    redis_url: str,
    ledger: LedgerServer,
    host_key: str,
    *,
    lease_interval: timedelta = timedelta(milliseconds=50),
    lease_idle: timedelta = timedelta(seconds=60),
    **settings: Any,
) -> AsyncIterator[Reserving]:
    async with running_metering(
        database_url,
        ledger,
        redis_url=redis_url,
        lease_interval=lease_interval,
        lease_idle=lease_idle,
        **settings,
    ) as running:
        await running.publish(AGENT_RUN)
        yield Reserving(running, running.caller(host_key), reservation_pb2.RESERVATION_KIND_LEASED)


@pytest.fixture
async def reserving(
    database_url: str, redis_url: str, ledger: LedgerServer, host_key: str
) -> AsyncIterator[Reserving]:
    async with leasing(database_url, redis_url, ledger, host_key) as running:
        yield running


async def leases(ledger: LedgerServer) -> list[credit_pb2.CreditLease]:
    """What the ledger lists: the leases that hold money."""
    async with connect(ledger.address, ledger.operator.key) as channel:
        stub = credit_service_pb2_grpc.CreditServiceStub(channel)
        return list((await stub.ListLeases(credit_service_pb2.ListLeasesRequest())).leases)


async def reconcile(
    reserving: Reserving, *, dry_run: bool = False
) -> reservation_service_pb2.ReconcileResponse:
    return await reserving.server.operator.reservations.Reconcile(
        reservation_service_pb2.ReconcileRequest(dry_run=dry_run)
    )


async def test_a_lease_takes_half_of_the_credits_and_more_when_that_is_needed(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    await reserving.authorize("run-1", 1_000_000)
    (lease,) = await leases(ledger)
    assert lease.remaining == usd(CREDITS // 2)
    await reserving.authorize("run-2", 60_000_000)
    (lease,) = await leases(ledger)
    assert lease.epoch == 1
    assert lease.remaining.amount_micros >= 61_000_000
    assert (await reserving.balance())["reserved"] == 61_000_000


async def test_an_idle_lease_is_given_back(
    database_url: str, redis_url: str, ledger: LedgerServer, host_key: str
) -> None:
    async with leasing(
        database_url, redis_url, ledger, host_key, lease_idle=timedelta(milliseconds=300)
    ) as reserving:
        token = (await reserving.authorize("run-1", 500_000)).reservation.token
        await reserving.settle(token)

        async def is_back() -> bool:
            return not await leases(ledger)

        await eventually(is_back)
        assert await reserving.available() == CREDITS - RUN_MICROS
        # And the next run takes a new one.
        assert (await reserving.authorize("run-2", 500_000)).reservation.token


async def test_a_debit_that_a_lease_stands_in_the_way_of_gets_through(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    await reserving.authorize("run-1", 1_000_000)

    async def is_debited() -> bool:
        request = ledger_service_pb2.AdjustBalancesRequest(
            postings=[
                ledger_service_pb2.Posting(account=account, amount=usd(sign * 99_000_000))
                for sign, account in (
                    (-1, account_ref("cus_1", account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS)),
                    (1, account_ref("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS)),
                )
            ],
            reason="taken back by the operator",
            idempotency_key="debit",
        )
        return await ledger_allows(ledger, request)

    await eventually(is_debited)
    assert (await reserving.balance())["credits"] == 1_000_000


async def test_what_a_process_that_is_gone_has_leased_is_found_and_given_back(
    database_url: str, redis_url: str, ledger: LedgerServer, host_key: str
) -> None:
    async with leasing(database_url, redis_url, ledger, host_key) as reserving:
        token = (await reserving.authorize("run-1", 500_000)).reservation.token
        await reserving.settle(token)
    assert await leases(ledger)

    async with running_metering(
        database_url,
        ledger,
        redis_url=redis_url,
        lease_scan_interval=timedelta(milliseconds=200),
        lease_idle=timedelta(milliseconds=200),
    ):

        async def is_back() -> bool:
            return not await leases(ledger)

        await eventually(is_back)


async def test_a_process_that_never_saw_the_lease_makes_room_for_a_long_run(
    database_url: str, redis_url: str, ledger: LedgerServer, host_key: str
) -> None:
    async with leasing(database_url, redis_url, ledger, host_key) as reserving:
        await reserving.authorize("run-1", 500_000)
    async with leasing(database_url, redis_url, ledger, host_key) as reserving:
        answer = await reserving.authorize("run-2", CREDITS - 500_000, ttl=3600)
        assert answer.reservation.kind == reservation_pb2.RESERVATION_KIND_DURABLE
        assert answer.available_balance == usd(0)


async def test_finished_work_is_paid_from_what_a_lease_has_free(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    await ledger.operator.ledger.GrantCredits(
        ledger_service_pb2.GrantCreditsRequest(
            customer_id="cus_2",
            amount=usd(RUN_MICROS),
            source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
            idempotency_key="cus_2",
        )
    )
    token = (await reserving.authorize("run-1", 100_000, customer_id="cus_2")).reservation.token
    await reserving.meter(run("run-2", "cus_2"))
    await reserving.release(token)

    async def is_paid() -> bool:
        return (await reserving.balance("cus_2"))["unpaid"] == 0

    await eventually(is_paid)
    assert (await reserving.balance("cus_2"))["credits"] == 0


async def test_redis_that_was_emptied_never_gives_the_same_credits_twice(
    reserving: Reserving, ledger: LedgerServer, redis_url: str
) -> None:
    first = (await reserving.authorize("run-1", 40_000_000)).reservation
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()

    second = (await reserving.authorize("run-2", 40_000_000)).reservation

    found = {lease.epoch: (lease.remaining.amount_micros, lease.draining) for lease in await leases(ledger)}
    assert found[1] == (50_000_000, True)
    assert not found[2][1]
    assert (await reserving.balance())["reserved"] == 90_000_000
    # What is left beside both is all that can be had, until the first one has drained.
    assert (await refused(reserving.authorize("run-3", 20_000_000))).reason == "INSUFFICIENT_CREDITS"
    for token in (first.token, second.token):
        settled = await reserving.settle(token)
        assert settled.settlement.captured == usd(RUN_MICROS)
    assert (await reserving.balance())["credits"] == CREDITS - 2 * RUN_MICROS


async def test_a_reservation_whose_lease_was_lost_is_extended_as_a_hold(
    reserving: Reserving, redis_url: str
) -> None:
    token = (await reserving.authorize("run-1", 500_000)).reservation.token
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()

    extended = await reserving.host.metering.Extend(pb.ExtendRequest(token=token, amount=usd(600_000)))

    assert extended.reservation.kind == reservation_pb2.RESERVATION_KIND_DURABLE
    assert extended.reservation.amount == usd(600_000)
    settled = await reserving.settle(extended.reservation.token)
    assert settled.settlement.captured == usd(RUN_MICROS)


async def place_hold_of_an_earlier_try(
    ledger: LedgerServer, reservation: reservation_pb2.Reservation, expire_time: Timestamp
) -> None:
    """As if the same attempt had come once before, while Redis was away, and nobody had heard its answer."""
    placed = await ledger.service.credits.PlaceHolds(
        credit_service_pb2.PlaceHoldsRequest(
            holds=[
                credit_service_pb2.HoldRequest(
                    customer_id="cus_1",
                    hold_id=reservation.reservation_id,
                    purpose=credit_pb2.HOLD_PURPOSE_RUN,
                    amount=usd(1_000_000),
                    expire_time=expire_time,
                    content_hash=bytes(32),
                    price_version_id=reservation.price_version_id,
                )
            ]
        )
    )
    assert not placed.verdicts[0].HasField("error")


async def test_an_attempt_that_placed_a_hold_before_it_was_leased_has_that_hold_raised(
    reserving: Reserving, ledger: LedgerServer, redis_url: str
) -> None:
    leased = (await reserving.authorize("run-1", 1_000_000)).reservation
    await place_hold_of_an_earlier_try(ledger, leased, leased.expire_time)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    request = pb.ExtendRequest(token=leased.token, amount=usd(3_000_000))
    extended = (await reserving.host.metering.Extend(request)).reservation
    assert extended.kind == reservation_pb2.RESERVATION_KIND_DURABLE
    assert extended.amount == usd(3_000_000)
    settled = await reserving.settle(extended.token)
    assert settled.settlement.captured == usd(RUN_MICROS)


@pytest.mark.parametrize("extends", [False, True])
async def test_what_an_attempt_was_leased_outlives_the_hold_that_it_placed_before(
    reserving: Reserving, ledger: LedgerServer, redis_url: str, extends: bool
) -> None:
    leased = (await reserving.authorize("run-1", 1_000_000)).reservation
    soon = Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=0.2))
    await place_hold_of_an_earlier_try(ledger, leased, soon)

    async def hold_is_over() -> bool:
        answer = await ledger.operator.ledger.GetCustomerBalance(
            ledger_service_pb2.GetCustomerBalanceRequest(customer_id="cus_1")
        )
        return not answer.balance.held_credits.runs.amount_micros

    await eventually(hold_is_over)
    token = leased.token
    if extends:
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        request = pb.ExtendRequest(token=token, amount=usd(1_500_000))
        token = (await reserving.host.metering.Extend(request)).reservation.token
    settled = await reserving.settle(token)
    assert settled.settlement.captured == usd(RUN_MICROS)


async def test_what_was_captured_unheard_is_not_promised_again(
    database_url: str, redis_url: str, ledger: LedgerServer, host_key: str
) -> None:
    async with leasing(
        database_url,
        redis_url,
        ledger,
        host_key,
        # The keeper does not come to ask the ledger, as if that was away.
        lease_interval=timedelta(hours=1),
        reservation_grace=timedelta(0),
    ) as reserving:
        taken = (await reserving.authorize("run-1", 40_000_000, ttl=1)).reservation
        (lease,) = await leases(ledger)
        # As if metering had settled the run, and the ledger's answer was lost.
        await ledger.service.ledger.PostCharges(
            ledger_service_pb2.PostChargesRequest(
                intents=[
                    intent(
                        "run-1",
                        40_000_000,
                        charge_pb2.ReservationClaim(
                            reservation_id=taken.reservation_id,
                            lease_epoch=lease.epoch,
                            amount=taken.amount,
                            expire_time=taken.expire_time,
                        ),
                        customer="cus_1",
                        organization="org_a",
                    )
                ]
            )
        )
        (lease,) = await leases(ledger)
        assert lease.remaining == usd(10_000_000)
        await asyncio.sleep(1.2)
        # There is as much, but not in the lease as it was.
        again = (await reserving.authorize("run-2", 45_000_000)).reservation
        assert again.kind == reservation_pb2.RESERVATION_KIND_LEASED
        (lease,) = await leases(ledger)
        assert lease.remaining.amount_micros >= 45_000_000


async def test_reservations_are_listed_soonest_first(reserving: Reserving) -> None:
    for number, ttl in enumerate((300, 60, 600)):
        await reserving.authorize(f"run-{number}", 1_000 + number, ttl=ttl)
    reservations = reserving.server.operator.reservations

    seen: list[int] = []
    token = ""
    while True:
        page = await reservations.ListReservations(
            reservation_service_pb2.ListReservationsRequest(
                customer_id="cus_1", page_size=2, page_token=token
            )
        )
        seen += [one.amount.amount_micros for one in page.reservations]
        token = page.next_page_token
        if not token:
            break
    assert seen == [1_001, 1_000, 1_002]


async def test_where_nothing_differs_there_is_no_drift(reserving: Reserving) -> None:
    token = (await reserving.authorize("run-1", 500_000)).reservation.token
    await reserving.settle(token)
    await reserving.authorize("run-2", 500_000)
    found = await reconcile(reserving)
    assert (list(found.drifts), found.compared_leases) == ([], 1)


async def test_the_leases_of_nobody_are_not_found(reserving: Reserving) -> None:
    error = await refused(
        reserving.server.operator.reservations.Reconcile(
            reservation_service_pb2.ReconcileRequest(customer_id="cus_nobody")
        )
    )
    assert error.reason == "CUSTOMER_NOT_FOUND"


Damage = Callable[[redis.Redis], None]


def lose(client: redis.Redis) -> None:
    client.flushall()


def set_back(client: redis.Redis) -> None:
    client.hset("tallystick:{cus_1}:pool:USD", mapping={"remaining": "49000000", "version": "0"})


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lose, reservation_service_pb2.DRIFT_KIND_LEASE_LOST),
        (set_back, reservation_service_pb2.DRIFT_KIND_REMAINING_DIFFERS),
    ],
)
async def test_drift_is_explained_and_repaired(
    database_url: str,
    redis_url: str,
    ledger: LedgerServer,
    host_key: str,
    damage: Damage,
    kind: reservation_service_pb2.DriftKind.ValueType,
) -> None:
    # The keeper would mend it too.
    async with leasing(
        database_url, redis_url, ledger, host_key, lease_interval=timedelta(hours=1)
    ) as reserving:
        await reserving.authorize("run-1", 500_000)
        with redis.Redis.from_url(redis_url) as client:
            damage(client)

        seen = await reconcile(reserving, dry_run=True)
        assert [(one.kind, one.customer_id, one.repaired) for one in seen.drifts] == [(kind, "cus_1", False)]
        assert seen.drifts[0].expected == usd(50_000_000)
        assert "; to repair it: " in seen.drifts[0].explanation

        repaired = await reconcile(reserving)
        assert [(one.kind, one.repaired) for one in repaired.drifts] == [(kind, True)]
        assert "; repaired: " in repaired.drifts[0].explanation
        assert not (await reconcile(reserving, dry_run=True)).drifts
        assert (await reserving.authorize("run-2", 500_000)).reservation.token


def account_ref(owner_id: str, kind: account_pb2.AccountKind.ValueType) -> account_pb2.AccountRef:
    return account_pb2.AccountRef(owner_id=owner_id, kind=kind, currency_code="USD")


async def ledger_allows(ledger: LedgerServer, request: ledger_service_pb2.AdjustBalancesRequest) -> bool:
    """Whether an adjustment goes through; False if the credits do not suffice yet."""
    try:
        await ledger.operator.ledger.AdjustBalances(request)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            raise
        return False
    return True
