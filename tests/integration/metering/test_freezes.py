"""A frozen customer starts no run, however its credits are kept; what it has done is charged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest

from services.kit.status import from_rpc_error
from tallystick.ledger.v1 import directory_service_pb2, funding_service_pb2, ledger_service_pb2
from tallystick.ledger.v1.purchase_reversal_pb2 import PURCHASE_REVERSAL_KIND_CHARGEBACK
from tallystick.metering.v1 import metering_service_pb2 as pb
from tallystick.metering.v1 import reservation_pb2
from tests.integration.metering.reserving import Reserving, usd
from tests.integration.metering.world import RUN_MICROS, refused, run
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import AGENT_RUN, running_metering
from tests.support.waiting import eventually

CREDITS = 100_000_000
LEASED, DURABLE = (
    reservation_pb2.RESERVATION_KIND_LEASED,
    reservation_pb2.RESERVATION_KIND_DURABLE,
)


@pytest.fixture(params=["leased", "durable"])
async def reserving(
    request: pytest.FixtureRequest, database_url: str, ledger: LedgerServer, host_key: str
) -> AsyncIterator[Reserving]:
    is_leased = request.param == "leased"
    async with running_metering(
        database_url,
        ledger,
        redis_url=request.getfixturevalue("redis_url") if is_leased else None,
        lease_interval=timedelta(milliseconds=50),
    ) as running:
        await running.publish(AGENT_RUN)
        yield Reserving(running, running.caller(host_key), LEASED if is_leased else DURABLE)


async def freeze(ledger: LedgerServer, customer_id: str = "cus_1") -> None:
    await ledger.operator.directory.FreezeCustomer(
        directory_service_pb2.FreezeCustomerRequest(customer_id=customer_id, reason="a test")
    )


async def unfreeze(ledger: LedgerServer, customer_id: str = "cus_1") -> None:
    await ledger.operator.directory.UnfreezeCustomer(
        directory_service_pb2.UnfreezeCustomerRequest(customer_id=customer_id, reason="a test")
    )


async def until_refused(reserving: Reserving) -> None:
    """Wait until the freeze is known; what was authorized meanwhile is given back."""
    attempts = iter(range(100_000))

    async def is_refused() -> bool:
        try:
            answer = await reserving.authorize("run-early", 1, key=str(next(attempts)))
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason == "CUSTOMER_FROZEN"
        await reserving.release(answer.reservation.token)
        return False

    await eventually(is_refused)


async def test_a_frozen_customer_starts_no_run_and_finishes_what_it_began(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    began = (await reserving.authorize("run-1", 500_000)).reservation
    assert began.kind == reserving.kind
    other = (await reserving.authorize("run-2", 500_000)).reservation
    await freeze(ledger)
    await until_refused(reserving)

    # What ended makes room in a lease, and nobody gets it.
    settled = await reserving.settle(began.token)
    assert settled.settlement.captured == usd(RUN_MICROS)
    for number in range(20):
        error = await refused(reserving.authorize("run-3", 1_000, key=f"again-{number}"))
        assert (error.reason, error.metadata["customer_id"]) == ("CUSTOMER_FROZEN", "cus_1")
    # What is metered is charged.
    await reserving.meter(run("run-4"))
    assert (await reserving.balance())["credits"] == CREDITS - 2 * RUN_MICROS

    # The attempts hear what they heard before, whatever it was.
    again = await reserving.authorize("run-2", 500_000)
    assert (again.duplicate, again.reservation.reservation_id) == (True, other.reservation_id)
    await unfreeze(ledger)
    assert (await refused(reserving.authorize("run-3", 1_000, key="again-0"))).reason == "CUSTOMER_FROZEN"
    answer = await reserving.authorize("run-3", 1_000, key="now")
    assert answer.reservation.kind == reserving.kind


async def test_a_frozen_customer_has_no_access_and_no_free_runs(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    request = pb.CheckAccessRequest(customer_id="cus_1", agent_id="agt_a", action_type="run")
    assert (await reserving.host.metering.CheckAccess(request)).allowed
    await freeze(ledger)
    access = await reserving.host.metering.CheckAccess(request)
    assert not access.allowed
    assert access.up_to == usd(0)
    assert access.refusal.metadata["customer_id"] == "cus_1"
    # Long runs are holds in any case, and those that cost nothing reserve nothing.
    error = await refused(reserving.authorize("run-1", 1_000, ttl=3_600))
    assert error.reason == "CUSTOMER_FROZEN"
    await unfreeze(ledger)
    assert (await reserving.host.metering.CheckAccess(request)).allowed
    assert (await refused(reserving.authorize("run-1", 1_000, ttl=3_600))).reason == "CUSTOMER_FROZEN"
    assert (await reserving.authorize("run-1", 1_000, ttl=3_600, key="2")).reservation.kind == DURABLE


async def test_a_run_under_way_is_prolonged_but_gets_no_more(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    token = (await reserving.authorize("run-1", 500_000, ttl=60)).reservation.token
    await freeze(ledger)
    await until_refused(reserving)
    request = pb.ExtendRequest(token=token)
    request.ttl.FromSeconds(600)
    prolonged = await reserving.host.metering.Extend(request)
    assert prolonged.reservation.amount == usd(500_000)
    more = pb.ExtendRequest(token=prolonged.reservation.token, amount=usd(90_000_000))
    assert (await refused(reserving.host.metering.Extend(more))).reason == "CUSTOMER_FROZEN"
    assert (await reserving.settle(prolonged.reservation.token)).settlement.captured == usd(RUN_MICROS)


async def test_a_chargeback_stops_the_runs_and_takes_what_the_lease_had_free(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    token = (await reserving.authorize("run-1", 500_000)).reservation.token
    await ledger.service.funding.ReversePurchase(
        funding_service_pb2.ReversePurchaseRequest(
            customer_id="cus_1",
            purchase_key="first",
            reversal_id="dp_1",
            amount=usd(CREDITS),
            kind=PURCHASE_REVERSAL_KIND_CHARGEBACK,
        )
    )
    await until_refused(reserving)

    async def is_paid() -> bool:
        return (await reserving.balance())["chargebacks"] == 500_000

    # All but what the run under way has.
    await eventually(is_paid)
    await reserving.settle(token)

    async def is_paid_from_the_rest() -> bool:
        found = await reserving.balance()
        return (found["credits"], found["chargebacks"]) == (0, RUN_MICROS)

    await eventually(is_paid_from_the_rest)
    granted = await ledger.operator.ledger.GrantCredits(
        ledger_service_pb2.GrantCreditsRequest(
            customer_id="cus_1",
            amount=usd(1_000_000),
            source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
            idempotency_key="second",
        )
    )
    assert granted.balance.available == usd(1_000_000 - RUN_MICROS)
    await unfreeze(ledger)
    assert (await reserving.authorize("run-2", 1_000)).reservation.token
