"""Allocations of a lease that become holds: one reservation, in one place, with one end."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from services.kit import ids
from services.ledger.audit import audit
from tallystick.ledger.v1 import charge_pb2
from tallystick.ledger.v1 import credit_service_pb2 as pb
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support.ledger_credits import (
    OUTCOME,
    Credits,
    Held,
    allocation,
    hold_request,
    in_future,
    intent,
    of_hold,
    outcome_hold,
    reason_of,
    release_of,
    state_of,
    usd,
)
from tests.support.ledger_server import running_ledger

CHARGE = ids.charge_id("cus_a", "run-1", "BASE", 0)


@pytest.fixture
async def credits(database_url: str) -> AsyncIterator[Credits]:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x")
        for customer in ("cus_a", "cus_b"):
            await server.create_customer(customer)
        yield Credits(server)
        assert await audit(database_url) == 0


@pytest.fixture
async def leased(credits: Credits) -> Credits:
    """With 1,000, of which 600 are leased."""
    await credits.grant(1000)
    await credits.open(600)
    await credits.give_back(1, 1, 400)
    return credits


def kept(verdict: pb.HoldVerdict) -> tuple[int, int]:
    assert verdict.HasField("placed"), verdict
    hold = verdict.placed.hold
    return hold.from_credits.amount_micros, hold.from_receivable.amount_micros


def ended_as(verdict: pb.HoldVerdict) -> str:
    assert reason_of(verdict.error) == "RESERVATION_ENDED"
    return verdict.error.metadata["state"]


async def limit(credits: Credits, micros: int) -> None:
    await credits.server.operator.directory.SetCreditLimit(
        directory.SetCreditLimitRequest(customer_id="cus_a", credit_limit=usd(micros))
    )


async def test_an_allocation_becomes_a_hold_within_its_lease_first(leased: Credits) -> None:
    (verdict,) = await leased.hold(hold_request("rsv_1", 150, of=allocation("rsv_1", 1, 100)))
    assert kept(verdict) == (150, 0)
    lease = verdict.placed.lease
    assert (lease.epoch, lease.remaining.amount_micros, lease.version) == (1, 500, 3)
    assert verdict.placed.balance.held.amount_micros == 650
    assert verdict.placed.hold.price_version_id == "pv_1"
    assert await leased.held() == Held(350, leased=500, runs=150)
    # Again: as it stands.
    (again,) = await leased.hold(hold_request("rsv_1", 150, of=allocation("rsv_1", 1, 100)))
    assert (again.placed.duplicate, kept(again)) == (True, (150, 0))
    assert again.placed.lease == lease
    # Of a larger allocation it takes what it needs.
    (smaller,) = await leased.hold(hold_request("rsv_2", 30, of=allocation("rsv_2", 1, 100)))
    assert smaller.placed.lease.remaining.amount_micros == 470
    assert await leased.held() == Held(350, leased=470, runs=180)


async def test_a_draining_lease_gives_what_it_has_and_room_the_rest(leased: Credits) -> None:
    await limit(leased, 50)
    await leased.open(400, seen=1)
    await leased.give_back(1, 2, 580)
    assert await leased.held() == Held(580, leased=400, draining=20)
    (verdict,) = await leased.hold(hold_request("rsv_1", 640, of=allocation("rsv_1", 1, 100)))
    assert kept(verdict) == (600, 40)
    assert not verdict.placed.HasField("lease")
    assert await leased.held() == Held(0, leased=400, runs=600, held_receivable=40)


async def test_a_refused_conversion_leaves_the_allocation_in_its_lease(leased: Credits) -> None:
    request = hold_request("rsv_1", 501, of=allocation("rsv_1", 1, 100))
    (refused,) = await leased.hold(request)
    assert reason_of(refused.error) == "INSUFFICIENT_CREDITS"
    assert refused.error.metadata["available_micros"] == "500"
    assert await leased.held() == Held(400, leased=600)
    # It may still become one, or be captured where it is.
    await leased.grant(1, "second")
    (placed,) = await leased.hold(request)
    assert kept(placed) == (501, 0)
    (other,) = await leased.hold(hold_request("rsv_2", 5000, of=allocation("rsv_2", 1, 100)))
    assert reason_of(other.error) == "INSUFFICIENT_CREDITS"
    (posted,) = await leased.post(intent("run-2", 70, allocation("rsv_2", 1, 100)))
    assert (state_of(posted.reservation), posted.charge.captured.amount_micros) == ("settled", 70)


async def test_a_hold_that_was_refused_is_no_hold_of_an_allocation(leased: Credits) -> None:
    (refused,) = await leased.hold(hold_request("rsv_1", 5000))
    assert reason_of(refused.error) == "INSUFFICIENT_CREDITS"
    (posted,) = await leased.post(intent("run-1", 70, allocation("rsv_1", 1, 100)))
    assert (state_of(posted.reservation), posted.charge.captured.amount_micros) == ("settled", 70)


@pytest.mark.parametrize("epoch", [1, 7])
async def test_the_old_token_settles_the_hold_once(leased: Credits, epoch: int) -> None:
    await leased.hold(hold_request("rsv_1", 150, of=allocation("rsv_1", 1, 100)))
    # The hold has no end of its own by the time of a claim.
    old = allocation("rsv_1", epoch, 100, in_future(-1))
    first, second, by_hold = await leased.post(
        intent("run-1", 120, old, outcome_hold("out_1", 40)),
        intent("run-2", 120, old),
        intent("run-3", 10, of_hold("rsv_1")),
    )
    assert (first.charge.reservation_id, first.charge.captured.amount_micros) == ("rsv_1", 120)
    assert [state_of(one.reservation) for one in (first, second, by_hold)] == ["settled"] * 3
    assert [one.charge.captured.amount_micros for one in (second, by_hold)] == [0, 0]
    assert first.reservation.HasField("lease") == (epoch == 1)
    # Its lease is not touched by any of them.
    assert await leased.held() == Held(210, leased=500, outcomes=40)
    for claim in (old, of_hold("rsv_1")):
        (released,) = await leased.release(release_of(claim))
        assert state_of(released.released.ended) == "settled"
        assert released.released.ended.captured_credits.amount_micros == 120
    (again,) = await leased.post(intent("run-1", 120, of_hold("rsv_1")))
    assert again.duplicate
    assert state_of(again.reservation) == "settled"
    assert await leased.held() == Held(210, leased=500, outcomes=40)


async def test_the_old_token_releases_the_hold_once(leased: Credits) -> None:
    old = allocation("rsv_1", 1, 100)
    await leased.hold(hold_request("rsv_1", 150, of=old))
    (released,) = await leased.release(release_of(old))
    assert state_of(released.released.ended) == "released"
    assert await leased.held() == Held(500, leased=500)
    (again,) = await leased.release(release_of(of_hold("rsv_1")))
    assert state_of(again.released.ended) == "released"
    (posted,) = await leased.post(intent("run-1", 60, old))
    assert (state_of(posted.reservation), posted.charge.captured.amount_micros) == ("released", 0)
    assert await leased.held() == Held(440, leased=500)


async def test_a_hold_for_an_outcome_is_not_what_was_allocated(leased: Credits) -> None:
    await leased.hold(hold_request("rsv_1", 50, OUTCOME))
    (posted,) = await leased.post(intent("run-1", 60, allocation("rsv_1", 1, 100)))
    assert posted.charge.captured.amount_micros == 60
    assert await leased.held() == Held(350, leased=540, outcomes=50)


async def test_what_has_ended_gets_no_hold(leased: Credits) -> None:
    settled, released = allocation("rsv_1", 1, 100), allocation("rsv_2", 1, 100)
    (posted,) = await leased.post(intent("run-1", 60, settled))
    assert posted.charge.charge_id == CHARGE
    await leased.release(release_of(released))
    verdicts = await leased.hold(
        hold_request("rsv_1", 10, of=settled),
        hold_request("rsv_2", 10, of=released),
        hold_request("rsv_3", 10, expires=in_future(-1)),
        hold_request("rsv_4", 10, of=allocation("rsv_4", 1, 100, in_future(-1))),
        hold_request("rsv_5", 10, of=allocation("rsv_5", 9, 100)),
        # The charge was paid from another reservation.
        hold_request("rsv_6", 10),
    )
    assert [ended_as(one) for one in verdicts[:5]] == ["settled", "released", "expired", "expired", "expired"]
    assert kept(verdicts[5]) == (10, 0)
    without = await leased.hold(hold_request("rsv_1", 10), hold_request("rsv_2", 10))
    assert [ended_as(one) for one in without] == ["settled", "released"]
    assert await leased.held() == Held(390, leased=540, runs=10)


async def test_malformed_conversions_are_the_callers_mistake(leased: Credits) -> None:
    euro = allocation("rsv_1", 1, 100)
    euro.amount.currency_code = "EUR"
    timeless = allocation("rsv_1", 1, 100)
    timeless.ClearField("expire_time")
    fields = {}
    for number, (request, field) in enumerate(
        [
            (hold_request("rsv_1", 10, of=allocation("rsv_2", 1, 100)), "from_lease.reservation_id"),
            (hold_request("rsv_1", 10, of=of_hold("rsv_1")), "from_lease.lease_epoch"),
            (hold_request("rsv_1", 10, of=euro), "from_lease.amount.currency_code"),
            (hold_request("rsv_1", 10, of=timeless), "from_lease.expire_time"),
            (hold_request("rsv_1", 10, content=None, of=allocation("rsv_1", 1, 100)), "content_hash"),
            (hold_request("rsv_1", 10, OUTCOME, of=allocation("rsv_1", 1, 100)), "purpose"),
        ]
    ):
        (verdict,) = await leased.hold(request)
        assert reason_of(verdict.error) == "INVALID_FIELD"
        fields[number, field] = field in {one.field for one in verdict.error.field_violations}
    assert all(fields.values()), fields


async def test_of_conversion_settle_and_release_each_reservation_ends_once(credits: Credits) -> None:
    await credits.grant(100_000)
    await credits.open(50_000)
    await credits.give_back(1, 1, 50_000)
    for number in range(15):
        name, workflow = f"rsv_{number}", f"run-{number}"
        claim = allocation(name, 1, 100)
        request = hold_request(name, 150, of=claim)
        settle: tuple[charge_pb2.ReservationClaim, ...] = (claim, of_hold(name))[: 1 + number % 2]
        await asyncio.gather(
            credits.hold(request),
            *(credits.post(intent(workflow, 60, one)) for one in settle),
            credits.release(release_of(claim)),
            credits.hold(request),
        )
        # Whoever comes late may have left a hold; it is the one that is released.
        await credits.release(release_of(claim))
        held = await credits.held()
        assert held.runs == 0
        assert held.available + held.leased == 100_000 - 60 * (number + 1)
    read = await credits.server.operator.ledger.GetCustomerBalance(
        ledger.GetCustomerBalanceRequest(customer_id="cus_a")
    )
    assert read.balance.unpaid.amount_micros == 0


async def test_a_hold_says_what_it_is_charged_by(credits: Credits) -> None:
    await credits.grant(1000)
    request = hold_request("rsv_1", 10)
    await credits.hold(request)
    request.price_version_id = "pv_2"
    (again,) = await credits.hold(request)
    assert again.placed.hold.price_version_id == "pv_1"
    request.content_hash = b""
    (raised,) = await credits.hold(request)
    assert raised.placed.hold.price_version_id == "pv_1"
    listed = await credits.server.operator.credits.ListHolds(pb.ListHoldsRequest(customer_id="cus_a"))
    assert [hold.price_version_id for hold in listed.holds] == ["pv_1"]


async def test_an_ended_hold_outlives_the_tokens_of_its_lease(leased: Credits) -> None:
    await leased.hold(hold_request("rsv_1", 150, of=allocation("rsv_1", 1, 100), expires=in_future(1)))
    await leased.release(release_of(allocation("rsv_1", 1, 100)))
    async with await psycopg.AsyncConnection.connect(
        leased.server.database_url, autocommit=True
    ) as superuser:
        # Long after its own time, but it has ended only hours ago.
        await superuser.execute(
            "UPDATE ledger.hold SET expire_time = now() - interval '3 days',"
            " end_time = now() - interval '23 hours'"
        )
        await superuser.execute("SELECT ledger.forget_ended(10)")
    (posted,) = await leased.post(intent("run-1", 60, allocation("rsv_1", 1, 100)))
    assert (state_of(posted.reservation), posted.charge.captured.amount_micros) == ("released", 0)
