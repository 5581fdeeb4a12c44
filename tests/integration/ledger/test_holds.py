"""Holds over gRPC: placed whole or not at all, raised, prolonged, released, listed."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from services.ledger.audit import audit
from tallystick.ledger.v1 import credit_pb2
from tallystick.ledger.v1 import credit_service_pb2 as pb
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tests.support.ledger_credits import (
    OUTCOME,
    RUN,
    Credits,
    Held,
    allocation,
    hold_request,
    in_future,
    intent,
    of_hold,
    reason_of,
    release_of,
    state_of,
    usd,
)
from tests.support.ledger_server import running_ledger
from tests.support.rpc_errors import refusal


@pytest.fixture
async def credits(database_url: str) -> AsyncIterator[Credits]:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x")
        for customer in ("cus_a", "cus_b"):
            await server.create_customer(customer)
        yield Credits(server)
        assert await audit(database_url) == 0


def kept(verdict: pb.HoldVerdict) -> tuple[int, int]:
    hold = verdict.placed.hold
    return hold.from_credits.amount_micros, hold.from_receivable.amount_micros


async def test_holds_are_judged_in_their_order_and_refused_whole(credits: Credits) -> None:
    await credits.grant(100)
    verdicts = await credits.hold(
        hold_request("hold_1", 70),
        hold_request("hold_2", 40),
        hold_request("hold_3", 30),
        hold_request("hold_4", 1, customer="cus_nobody"),
        hold_request("hold 5", 1),
        hold_request("hold_6", 1, customer="cus_b"),
    )
    assert [kept(one) for one in (verdicts[0], verdicts[2])] == [(70, 0), (30, 0)]
    assert [reason_of(verdicts[n].error) for n in (1, 3, 4, 5)] == [
        "INSUFFICIENT_CREDITS",
        "CUSTOMER_NOT_FOUND",
        "INVALID_FIELD",
        "INSUFFICIENT_CREDITS",
    ]
    assert dict(verdicts[1].error.metadata) == {
        "customer_id": "cus_a",
        "currency_code": "USD",
        "requested_micros": "40",
        "available_micros": "30",
    }
    assert verdicts[2].placed.balance.held.amount_micros == 100
    assert await credits.held() == Held(0, runs=100)


async def test_a_refusal_is_final_for_its_id(credits: Credits) -> None:
    (refused,) = await credits.hold(hold_request("hold_1", 10))
    assert reason_of(refused.error) == "INSUFFICIENT_CREDITS"
    await credits.grant(100)
    for request in (hold_request("hold_1", 10), hold_request("hold_1", 1, content=None)):
        (again,) = await credits.hold(request)
        assert reason_of(again.error) == "INSUFFICIENT_CREDITS"
    (other,) = await credits.hold(hold_request("hold_2", 10))
    assert not other.placed.duplicate


async def test_a_hold_is_placed_once_and_raised_but_not_lowered(credits: Credits) -> None:
    await credits.grant(100)
    expires = in_future(60)
    answers = await asyncio.gather(
        *(credits.hold(hold_request("hold_1", 40, expires=expires)) for _ in range(8))
    )
    assert sorted(one.placed.duplicate for (one,) in answers) == [False] + [True] * 7
    assert await credits.held() == Held(60, runs=40)
    later = in_future(3600)
    (raised,) = await credits.hold(hold_request("hold_1", 90, expires=later, content=None))
    assert (kept(raised), raised.placed.duplicate) == ((90, 0), True)
    # The first request again, late: nothing goes down.
    (again,) = await credits.hold(hold_request("hold_1", 40, expires=expires))
    assert kept(again) == (90, 0)
    assert again.placed.hold.expire_time == later
    (beyond,) = await credits.hold(hold_request("hold_1", 101, content=None))
    assert reason_of(beyond.error) == "INSUFFICIENT_CREDITS"
    assert beyond.error.metadata["available_micros"] == "100"
    # It stands as it was.
    assert await credits.held() == Held(10, runs=90)


async def test_the_same_id_with_other_content_is_refused(credits: Credits) -> None:
    await credits.grant(100)
    await credits.hold(hold_request("hold_1", 40))
    in_euro = hold_request("hold_1", 40)
    in_euro.amount.currency_code = "EUR"
    verdicts = [
        (await credits.hold(request))[0]
        for request in (
            hold_request("hold_1", 40, content="other"),
            hold_request("hold_1", 40, OUTCOME),
            in_euro,
        )
    ]
    assert {reason_of(verdict.error) for verdict in verdicts} == {"IDEMPOTENCY_KEY_REUSED"}
    (missing,) = await credits.hold(hold_request("hold_2", 40, content=None))
    assert reason_of(missing.error) == "RESERVATION_ENDED"
    assert dict(missing.error.metadata) == {"reservation_id": "hold_2", "state": "expired"}
    twice = hold_request("hold_3", 1)
    refused = await refusal(credits.service.credits.PlaceHolds(pb.PlaceHoldsRequest(holds=[twice, twice])))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_postpaid_customer_is_held_the_room_under_its_limit(credits: Credits) -> None:
    await credits.server.operator.directory.SetCreditLimit(
        directory.SetCreditLimitRequest(customer_id="cus_a", credit_limit=usd(100))
    )
    await credits.grant(30)
    (placed,) = await credits.hold(hold_request("hold_1", 50))
    assert kept(placed) == (30, 20)
    assert placed.placed.balance.held_receivable.amount_micros == 20
    (raised,) = await credits.hold(hold_request("hold_1", 120, content=None))
    assert kept(raised) == (30, 90)
    (refused,) = await credits.hold(hold_request("hold_2", 11))
    assert refused.error.metadata["available_micros"] == "10"
    # A lease is of credits alone, but tells the room.
    opened = await credits.open(5)
    assert (opened.granted.lease.remaining.amount_micros, opened.granted.credit_room.amount_micros) == (0, 10)
    (released,) = await credits.release(release_of(of_hold("hold_1")))
    assert released.released.balance.available.amount_micros == 30
    assert await credits.held() == Held(30)


async def test_an_outcome_hold_is_placed_as_far_as_there_is_money(credits: Credits) -> None:
    await credits.grant(30)
    first, second = await credits.hold(hold_request("out_1", 50, OUTCOME), hold_request("out_2", 5, OUTCOME))
    assert (kept(first), kept(second)) == ((30, 0), (0, 0))
    await credits.grant(10, "second")
    (raised,) = await credits.hold(hold_request("out_1", 50, OUTCOME, content=None))
    assert kept(raised) == (40, 0)


async def test_releases_say_how_each_reservation_ended(credits: Credits) -> None:
    await credits.grant(1000)
    await credits.hold(hold_request("hold_1", 100), hold_request("hold_2", 100))
    await credits.open(500)
    leased, late = allocation("rsv_1", 1, 50), allocation("rsv_2", 1, 50, in_future(-1))
    taken = allocation("rsv_3", 1, 50)
    await credits.post(intent("run-1", 20, taken))
    await credits.post(intent("run-2", 60, of_hold("hold_2")))
    releases = [
        release_of(of_hold("hold_1")),
        release_of(of_hold("hold_2")),
        release_of(of_hold("hold_nobody")),
        release_of(leased),
        release_of(late),
        release_of(taken),
        release_of(allocation("rsv_4", 9, 50)),
        release_of(leased, customer="cus_nobody"),
    ]
    verdicts = await credits.release(*releases)
    assert [state_of(one.released.ended) for one in verdicts[:-1]] == [
        "released",
        "settled",
        "expired",
        "released",
        "expired",
        "settled",
        "expired",
    ]
    assert reason_of(verdicts[-1].error) == "CUSTOMER_NOT_FOUND"
    assert verdicts[1].released.ended.captured_credits.amount_micros == 60
    assert verdicts[5].released.ended.captured_credits.amount_micros == 20
    lease = verdicts[3].released.ended.lease
    assert (lease.epoch, lease.remaining.amount_micros) == (1, 780)
    assert verdicts[0].released.balance.available.amount_micros == 140
    assert await credits.held() == Held(140, leased=780)
    # Again: the same answers, and nothing moves.
    again = await credits.release(*releases)
    assert [one.released.ended for one in again] == [one.released.ended for one in verdicts]
    (late_charge,) = await credits.post(intent("run-3", 20, leased))
    assert state_of(late_charge.reservation) == "released"


async def test_a_hold_that_ended_is_answered_as_it_ended(credits: Credits) -> None:
    await credits.grant(100)
    request = hold_request("hold_1", 40)
    await credits.hold(request)
    (posted,) = await credits.post(intent("run-1", 30, of_hold("hold_1")))
    (again,) = await credits.hold(request)
    hold = again.placed.hold
    assert (hold.state, hold.captured.amount_micros) == (credit_pb2.HOLD_STATE_SETTLED, 30)
    assert hold.charge_id == posted.charge.charge_id
    assert hold.HasField("end_time")
    assert await credits.held() == Held(70)


async def test_concurrent_holds_never_exceed_the_credits(credits: Credits) -> None:
    await credits.grant(100)
    answers = await asyncio.gather(*(credits.hold(hold_request(f"hold_{n}", 7)) for n in range(40)))
    assert sum(verdict.HasField("placed") for (verdict,) in answers) == 14
    assert await credits.held() == Held(2, runs=98)


async def test_holds_that_stand_are_listed_in_pages(credits: Credits) -> None:
    for customer in ("cus_a", "cus_b"):
        await credits.grant(100, customer=customer)
        await credits.hold(
            *(hold_request(f"hold_{n}", 10, RUN if n % 2 else OUTCOME, customer=customer) for n in range(4))
        )
    await credits.release(release_of(of_hold("hold_1")))
    seen: list[tuple[str, str]] = []
    request = pb.ListHoldsRequest(page_size=2)
    while True:
        page = await credits.server.operator.credits.ListHolds(request)
        seen += [(hold.customer_id, hold.hold_id) for hold in page.holds]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert seen == [
        ("cus_a", "hold_0"),
        ("cus_a", "hold_2"),
        ("cus_a", "hold_3"),
        *[("cus_b", f"hold_{n}") for n in range(4)],
    ]
    of_b = await credits.server.operator.credits.ListHolds(
        pb.ListHoldsRequest(customer_id="cus_b", purpose=OUTCOME)
    )
    assert [hold.hold_id for hold in of_b.holds] == ["hold_0", "hold_2"]
