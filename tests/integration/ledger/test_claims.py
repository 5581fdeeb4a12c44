"""Charges that claim what was reserved for them: the waterfall, the one end of each, holds for outcomes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.ledger.audit import audit
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import charge_pb2, credit_pb2
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


@pytest.fixture
async def credits(database_url: str) -> AsyncIterator[Credits]:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x")
        for customer in ("cus_a", "cus_b"):
            await server.create_customer(customer)
        yield Credits(server)
        assert await audit(database_url) == 0


async def limit(credits: Credits, micros: int) -> None:
    await credits.server.operator.directory.SetCreditLimit(
        directory.SetCreditLimitRequest(customer_id="cus_a", credit_limit=usd(micros))
    )


def payment(posted: ledger.PostedCharge) -> tuple[int, int, int, int]:
    """From credits, as receivable, unpaid; and captured of the reservation."""
    paid = posted.charge.payment
    return (
        paid.from_credits.amount_micros,
        paid.from_receivable.amount_micros,
        paid.unpaid.amount_micros,
        posted.charge.captured.amount_micros,
    )


async def test_a_claim_is_captured_first_and_its_lease_says_what_is_left(credits: Credits) -> None:
    await credits.grant(1000)
    await credits.open(600)  # all of it, since it is little
    await credits.give_back(1, 1, 400)
    claim = allocation("rsv_1", 1, 100)
    (posted,) = await credits.post(intent("run-1", 80, claim))
    assert payment(posted) == (80, 0, 0, 80)
    assert posted.charge.reservation_id == "rsv_1"
    assert state_of(posted.reservation) == "settled"
    assert posted.reservation.captured_credits.amount_micros == 80
    lease = posted.reservation.lease
    assert (lease.epoch, lease.remaining.amount_micros, lease.version) == (1, 520, 3)
    assert (posted.balance.available.amount_micros, posted.balance.held.amount_micros) == (400, 520)
    # What exceeds the claim comes from what is available.
    (more,) = await credits.post(intent("run-2", 150, allocation("rsv_2", 1, 100)))
    assert payment(more) == (150, 0, 0, 100)
    assert await credits.held() == Held(350, leased=420)
    read = await credits.server.operator.ledger.GetCharge(
        ledger.GetChargeRequest(charge_id=more.charge.charge_id)
    )
    assert (read.charge.reservation_id, read.charge.captured.amount_micros) == ("rsv_2", 100)


async def test_claims_of_one_lease_share_what_remains_of_it(credits: Credits) -> None:
    await credits.grant(100)
    await credits.open(100)
    posted = await credits.post(*(intent(f"run-{n}", 40, allocation(f"rsv_{n}", 1, 40)) for n in range(4)))
    assert [payment(one) for one in posted] == [
        (40, 0, 0, 40),
        (40, 0, 0, 40),
        (20, 0, 20, 20),
        (0, 0, 40, 0),
    ]
    # Redis promised more than the lease had; they have ended all the same.
    assert {state_of(one.reservation) for one in posted} == {"settled"}
    assert posted[-1].reservation.lease.remaining.amount_micros == 0
    assert await credits.held() == Held(0, unpaid=60)


async def test_all_five_stages_in_their_order(credits: Credits) -> None:
    await credits.grant(100)
    await limit(credits, 100)
    # 60 of credits; then 40 of credits and 30 of the room.
    await credits.hold(hold_request("hold_1", 60), hold_request("hold_2", 70))
    assert await credits.held() == Held(0, runs=100, held_receivable=30)
    posted = await credits.post(
        intent("run-1", 50, of_hold("hold_1")),
        # Takes its 40, the 10 that hold_1 gives back, and its room of 30; and 20 more of the room.
        intent("run-2", 100, of_hold("hold_2")),
        intent("run-3", 70),
    )
    assert [payment(one) for one in posted] == [(50, 0, 0, 50), (50, 50, 0, 70), (0, 50, 20, 0)]
    second = posted[1].reservation
    assert (second.captured_credits.amount_micros, second.captured_receivable.amount_micros) == (40, 30)
    assert await credits.held() == Held(0, receivable=100, unpaid=20)


async def test_what_a_hold_keeps_of_the_room_is_not_lent_to_others(credits: Credits) -> None:
    await limit(credits, 100)
    await credits.hold(hold_request("hold_1", 80))
    (other,) = await credits.post(intent("run-1", 50))
    assert payment(other) == (0, 20, 30, 0)
    # Not even when the limit goes down meanwhile: it was promised.
    await limit(credits, 10)
    (own,) = await credits.post(intent("run-2", 60, of_hold("hold_1")))
    assert payment(own) == (0, 60, 0, 60)
    assert await credits.held() == Held(0, receivable=80, unpaid=30)


async def test_what_a_hold_leaves_serves_the_others_of_the_batch(credits: Credits) -> None:
    await credits.grant(100)
    await credits.hold(hold_request("hold_1", 100))
    posted = await credits.post(intent("run-1", 70), intent("run-2", 40, of_hold("hold_1")))
    assert [payment(one) for one in posted] == [(60, 0, 10, 0), (40, 0, 0, 40)]
    assert await credits.held() == Held(0, unpaid=10)


async def test_a_charge_of_zero_ends_its_reservation(credits: Credits) -> None:
    await credits.grant(100)
    await credits.hold(hold_request("hold_1", 100))
    (posted,) = await credits.post(intent("run-1", 0, of_hold("hold_1")))
    assert (state_of(posted.reservation), payment(posted)) == ("settled", (0, 0, 0, 0))
    assert posted.charge.reservation_id == "hold_1"
    assert await credits.held() == Held(100)


async def test_a_duplicate_answers_how_its_reservation_ended(credits: Credits) -> None:
    await credits.grant(1000)
    await credits.open(500)
    claim = allocation("rsv_1", 1, 100)
    (first,) = await credits.post(intent("run-1", 80, claim))
    again, other, none = await credits.post(
        intent("run-1", 80, claim), intent("run-1", 80, allocation("rsv_2", 1, 100)), intent("run-1", 80)
    )
    assert again.duplicate
    assert again.reservation == first.reservation
    # The charge is not paid from the other one, which stands.
    assert other.duplicate
    assert not other.HasField("reservation")
    assert other.charge.reservation_id == "rsv_1"
    assert not none.HasField("reservation")
    (released,) = await credits.release(release_of(allocation("rsv_2", 1, 100)))
    assert state_of(released.released.ended) == "released"
    late, gone = await credits.post(
        intent("run-1", 80, allocation("rsv_2", 1, 100)),
        intent("run-1", 80, allocation("rsv_3", 1, 100, in_future(-1))),
    )
    assert (state_of(late.reservation), late.reservation.captured_credits.amount_micros) == ("released", 0)
    assert state_of(gone.reservation) == "expired"
    assert await credits.held() == Held(0, leased=920)


@pytest.mark.parametrize(
    ("claim", "state"),
    [
        (allocation("rsv_1", 1, 100, in_future(-1)), "expired"),
        (allocation("rsv_1", 2, 100), "expired"),
        (of_hold("hold_nobody"), "expired"),
        (of_hold("hold_released"), "released"),
        (of_hold("hold_refused"), "expired"),
        (allocation("rsv_released", 1, 100), "released"),
    ],
)
async def test_what_has_ended_is_not_captured(
    credits: Credits, claim: charge_pb2.ReservationClaim, state: str
) -> None:
    await credits.grant(1000)
    await credits.hold(hold_request("hold_released", 10), hold_request("hold_refused", 5000))
    await credits.release(release_of(of_hold("hold_released")))
    await credits.open(500)
    await credits.release(release_of(allocation("rsv_released", 1, 100)))
    (posted,) = await credits.post(intent("run-1", 80, claim))
    assert state_of(posted.reservation) == state
    assert (posted.charge.reservation_id, payment(posted)) == ("", (0, 0, 80, 0))
    assert await credits.held() == Held(0, leased=1000, unpaid=80)


async def test_a_hold_is_captured_by_one_charge(credits: Credits) -> None:
    await credits.grant(100)
    await credits.hold(hold_request("hold_1", 100))
    first, second = await credits.post(
        intent("run-1", 30, of_hold("hold_1")), intent("run-2", 30, of_hold("hold_1"))
    )
    assert (first.charge.reservation_id, second.charge.reservation_id) == ("hold_1", "")
    assert [state_of(one.reservation) for one in (first, second)] == ["settled", "settled"]
    assert second.reservation.captured_credits.amount_micros == 0
    assert await credits.held() == Held(40)


@pytest.mark.parametrize("kind", ["lease", "hold"])
async def test_of_settle_and_release_one_wins(credits: Credits, kind: str) -> None:
    await credits.grant(100_000)
    await credits.open(50_000)
    await credits.give_back(1, 1, 50_000)
    settled = 0
    for number in range(12):
        claim = allocation(f"rsv_{number}", 1, 100) if kind == "lease" else of_hold(f"hold_{number}")
        if kind == "hold":
            await credits.hold(hold_request(f"hold_{number}", 100))
        answers = await asyncio.gather(
            credits.release(release_of(claim)),
            credits.post(intent(f"run-{number}", 60, claim)),
            credits.release(release_of(claim)),
            credits.post(intent(f"run-{number}", 60, claim)),
        )
        states = {
            state_of(one.reservation if isinstance(one, ledger.PostedCharge) else one.released.ended)
            for answer in answers
            for one in answer
        }
        (posted,) = await credits.post(intent(f"run-{number}", 60, claim))
        assert posted.duplicate
        assert state_of(posted.reservation) in states
        if state_of(posted.reservation) == "settled":
            settled += 1
            assert posted.charge.captured.amount_micros == 60
        else:
            assert states == {"released"}
            assert posted.charge.reservation_id == ""
    held = await credits.held()
    captured = settled * 60
    assert held.available + held.leased == 100_000 - 12 * 60
    if kind == "lease":
        assert held.leased == 50_000 - captured


async def test_two_services_that_settle_and_release_agree_at_the_instant_of_expiry(credits: Credits) -> None:
    await credits.grant(100_000)
    await credits.open(50_000)
    for number in range(10):
        claim = allocation(f"rsv_{number}", 1, 100, in_future(0.03))
        await asyncio.sleep(0.02)
        # More and more of them come after the instant.
        posts = [credits.post(intent(f"run-{number}", 60, claim)) for _ in range(3)]
        releases = [credits.release(release_of(claim)) for _ in range(3)]
        posted, released = await asyncio.gather(asyncio.gather(*posts), asyncio.gather(*releases))
        said = {state_of(one.reservation) for (one,) in posted}
        said |= {state_of(one.released.ended) for (one,) in released}
        assert len(said) == 1


async def test_an_outcome_is_held_from_the_claim_first(credits: Credits) -> None:
    await credits.grant(1000)
    await credits.open(500)
    await credits.give_back(1, 1, 700)
    asked = outcome_hold("out_1", 90)
    (posted,) = await credits.post(intent("run-1", 60, allocation("rsv_1", 1, 100), asked))
    # 40 of what the claim leaves, 50 of what is available.
    hold = posted.outcome_hold
    assert (hold.purpose, hold.state) == (OUTCOME, credit_pb2.HOLD_STATE_HELD)
    assert (hold.from_credits.amount_micros, hold.from_receivable.amount_micros) == (90, 0)
    assert posted.reservation.lease.remaining.amount_micros == 200
    assert await credits.held() == Held(650, leased=200, outcomes=90)
    (again,) = await credits.post(intent("run-1", 60, allocation("rsv_1", 1, 100), asked))
    assert again.outcome_hold == hold
    bonus = intent("run-1", 75, of_hold("out_1"))
    bonus.component = charge_pb2.CHARGE_COMPONENT_OUTCOME
    (resolved,) = await credits.post(bonus)
    assert (state_of(resolved.reservation), payment(resolved)) == ("settled", (75, 0, 0, 75))
    assert await credits.held() == Held(665, leased=200)


async def test_an_outcome_is_held_as_far_as_there_is_money(credits: Credits) -> None:
    await credits.grant(100)
    await limit(credits, 20)
    posted = await credits.post(
        intent("run-1", 50, None, outcome_hold("out_1", 60)),
        intent("run-2", 0, None, outcome_hold("out_2", 60)),
    )
    kept = [
        (one.outcome_hold.from_credits.amount_micros, one.outcome_hold.from_receivable.amount_micros)
        for one in posted
    ]
    assert kept == [(50, 10), (0, 10)]
    assert await credits.held() == Held(0, outcomes=50, held_receivable=20)
    released = await credits.release(release_of(of_hold("out_1")), release_of(of_hold("out_2")))
    assert {state_of(one.released.ended) for one in released} == {"released"}
    assert await credits.held() == Held(50)


async def test_malformed_claims_are_the_callers_mistake(credits: Credits) -> None:
    euro = allocation("rsv_1", 1, 100)
    euro.amount.currency_code = "EUR"
    timeless = allocation("rsv_1", 1, 100)
    timeless.ClearField("expire_time")
    verdicts = (
        await credits.service.ledger.PostCharges(
            ledger.PostChargesRequest(
                intents=[
                    intent("run-1", 1, allocation("rsv 1", 1, 100)),
                    intent("run-2", 1, allocation("rsv_1", -1, 100)),
                    intent("run-3", 1, allocation("rsv_1", 1, 0)),
                    intent("run-4", 1, euro),
                    intent("run-5", 1, timeless),
                    intent("run-6", 1, None, outcome_hold("", 5)),
                    intent("run-7", 1, None, outcome_hold("out_1", 5, in_future(400 * 86_400))),
                    intent("run-8", 1),
                ]
            )
        )
    ).verdicts
    assert {reason_of(verdict.error) for verdict in verdicts[:-1]} == {"INVALID_FIELD"}
    assert [verdict.error.field_violations[0].field for verdict in verdicts[:-1]] == [
        "reservation.reservation_id",
        "reservation.lease_epoch",
        "reservation.amount.amount_micros",
        "reservation.amount.currency_code",
        "reservation.expire_time",
        "outcome_hold.hold_id",
        "outcome_hold.expire_time",
    ]
    assert verdicts[-1].HasField("posted")


@pytest.mark.parametrize("against", ["charge", "release"])
async def test_a_reservation_ends_once_whatever_currency_it_is_named_in(
    credits: Credits, against: str
) -> None:
    for currency in ("USD", "EUR"):
        amount = money_pb2.Money(currency_code=currency, amount_micros=100_000)
        await credits.server.operator.ledger.GrantCredits(
            ledger.GrantCreditsRequest(
                customer_id="cus_a",
                amount=amount,
                source=ledger.CREDIT_SOURCE_PURCHASE,
                idempotency_key=currency,
            )
        )
        await credits.server.service.credits.OpenLease(
            pb.OpenLeaseRequest(customer_id="cus_a", currency_code=currency, wanted_micros=100_000)
        )
    for number in range(20):
        dollars = intent(f"usd-{number}", 10, allocation(f"rsv_{number}", 1, 20))
        euros = intent(f"eur-{number}", 10, allocation(f"rsv_{number}", 1, 20))
        euros.gross.currency_code = euros.reservation.amount.currency_code = "EUR"
        release = release_of(allocation(f"rsv_{number}", 1, 20))
        release.currency_code = "EUR"

        answers: Any = await asyncio.gather(
            credits.post(dollars), credits.post(euros) if against == "charge" else credits.release(release)
        )
        (posted,), (other,) = answers
        ended = other.reservation if against == "charge" else other.released.ended
        took = posted.charge.captured.amount_micros
        assert state_of(posted.reservation) == state_of(ended)
        # Each says what was taken in its own currency.
        assert took + ended.captured_credits.amount_micros == (10 if state_of(ended) == "settled" else 0)
