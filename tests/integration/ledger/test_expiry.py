"""What time ends: leases that nobody renews, holds that nobody ends, and what is remembered of both."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import LiteralString

import psycopg
import pytest
from prometheus_client import REGISTRY

from services.ledger.audit import audit
from tallystick.ledger.v1 import credit_pb2
from tests.support.ledger_credits import (
    OUTCOME,
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
)
from tests.support.ledger_server import running_ledger
from tests.support.waiting import eventually

SOON = timedelta(milliseconds=20)


@asynccontextmanager
async def running(database_url: str, lease: timedelta = timedelta(minutes=30)) -> AsyncIterator[Credits]:
    async with running_ledger(
        database_url, reap_interval=SOON, lease_duration=lease, lease_drain=lease
    ) as server:
        await server.create_organization("org_x")
        await server.create_customer("cus_a")
        yield Credits(server)
        assert await audit(database_url) == 0


@pytest.fixture
async def credits(database_url: str) -> AsyncIterator[Credits]:
    async with running(database_url) as found:
        yield found


async def execute(credits: Credits, statement: LiteralString) -> list[tuple[object, ...]]:
    """As a superuser, for whom time can be moved."""
    async with await psycopg.AsyncConnection.connect(
        credits.server.database_url, autocommit=True
    ) as superuser:
        cursor = await superuser.execute(statement)
        return await cursor.fetchall() if cursor.description else []


def comes_to(credits: Credits, held: Held) -> Callable[[], Awaitable[bool]]:
    async def agrees() -> bool:
        return await credits.held() == held

    return agrees


async def test_what_remains_of_a_lease_comes_back_and_its_epoch_is_kept(database_url: str) -> None:
    async with running(database_url, lease=timedelta(milliseconds=400)) as credits:
        await credits.grant(1000)
        await credits.open(500)
        await credits.post(intent("run-1", 100, allocation("rsv_1", 1, 100)))
        await eventually(comes_to(credits, Held(900)))
        assert reason_of((await credits.renew(1, 10)).error) == "LEASE_SUPERSEDED"
        # Who does not know of it is told of it; who does, opens the next one.
        told = await credits.open(10)
        assert (told.opened, told.granted.lease.epoch) == (False, 1)
        assert told.granted.lease.remaining.amount_micros == 0
        (late,) = await credits.post(intent("run-2", 50, allocation("rsv_2", 1, 100)))
        assert state_of(late.reservation) == "expired"
        assert not late.reservation.HasField("lease")
        opened = await credits.open(10, seen=1)
        assert (opened.opened, opened.granted.lease.epoch) == (True, 2)
        await eventually(comes_to(credits, Held(850)))
        assert await execute(credits, "SELECT epoch, closed FROM ledger.credit_lease") == [(2, True)]


async def test_a_renewed_lease_stays_and_a_drained_one_goes(credits: Credits) -> None:
    await credits.grant(10_000_000)
    await credits.open(10)
    await credits.open(10, seen=1)
    assert await credits.held() == Held(2_500_000, leased=2_500_000, draining=5_000_000)
    await execute(credits, "UPDATE ledger.credit_lease SET expire_time = now() WHERE draining")
    await eventually(comes_to(credits, Held(7_500_000, leased=2_500_000)))
    assert await execute(credits, "SELECT epoch FROM ledger.credit_lease") == [(2,)]
    assert (await credits.renew(2, 0)).HasField("granted")


async def test_holds_for_runs_end_by_themselves_and_those_for_outcomes_a_day_later(credits: Credits) -> None:
    await credits.grant(1000)
    soon = in_future(0.3)
    await credits.hold(
        hold_request("hold_1", 100, expires=soon),
        hold_request("hold_2", 100),
        hold_request("out_1", 100, OUTCOME, expires=soon),
    )
    await eventually(comes_to(credits, Held(800, runs=100, outcomes=100)))
    (again,) = await credits.hold(hold_request("hold_1", 100, expires=soon))
    assert again.placed.hold.state == credit_pb2.HOLD_STATE_EXPIRED
    (released,) = await credits.release(release_of(of_hold("hold_1")))
    (posted,) = await credits.post(intent("run-1", 10, of_hold("hold_1")))
    assert state_of(released.released.ended) == state_of(posted.reservation) == "expired"
    await execute(
        credits,
        "UPDATE ledger.hold SET expire_time = now() - interval '1 day' WHERE hold_id = 'out_1'",
    )
    await eventually(comes_to(credits, Held(890, runs=100)))


async def test_what_ended_long_ago_is_forgotten(credits: Credits) -> None:
    await credits.grant(1000)
    await credits.hold(hold_request("hold_1", 10), hold_request("hold_2", 10), hold_request("refused", 5000))
    await credits.release(release_of(of_hold("hold_1")))
    await credits.open(10)
    await credits.release(
        release_of(allocation("rsv_1", 1, 10)), release_of(allocation("rsv_2", 1, 10, in_future(7200)))
    )
    for statement in (
        (
            "UPDATE ledger.hold SET expire_time = now() - interval '1 day',"
            " end_time = now() - interval '1 day' WHERE state <> 'held'"
        ),
        (
            "UPDATE ledger.released_reservation SET expire_time = now() - interval '1 hour'"
            " WHERE reservation_id = 'rsv_1'"
        ),
    ):
        await execute(credits, statement)
    assert await execute(credits, "SELECT ledger.forget_ended(1000)") == [(3,)]
    assert await execute(credits, "SELECT hold_id FROM ledger.hold") == [("hold_2",)]
    assert await execute(credits, "SELECT reservation_id FROM ledger.released_reservation") == [("rsv_2",)]


@pytest.mark.parametrize("customers", [1, 40])
async def test_many_that_expire_at_once_leave_room_for_charges(database_url: str, customers: int) -> None:
    async with running_ledger(database_url, reap_interval=timedelta(hours=1)) as server:
        await server.create_organization("org_x")
        credits = Credits(server)
        names = [f"cus_{number}" for number in range(customers)]
        for name in names:
            await server.create_customer(name)
            await credits.grant(10_000, customer=name)
        for start in range(0, 2000, 500):
            expires = in_future(2)
            verdicts = await credits.hold(
                *(
                    hold_request(f"hold_{n}", 4, customer=names[n % customers], expires=expires)
                    for n in range(start, start + 500)
                )
            )
            assert all(verdict.HasField("placed") for verdict in verdicts)
    # Three replicas reap at once, while charges come in.
    async with (
        running_ledger(database_url, reap_interval=SOON) as server,
        running_ledger(database_url, reap_interval=SOON),
        running_ledger(database_url, reap_interval=SOON),
    ):
        credits = Credits(server)
        charged = 0

        async def all_ended() -> bool:
            nonlocal charged
            (posted,) = await credits.post(intent(f"run-{charged}", 1, customer=names[0]))
            assert posted.charge.payment.from_credits.amount_micros == 1
            charged += 1
            found = [await credits.held(name) for name in names]
            return all(one.runs == 0 for one in found)

        await eventually(all_ended)
        assert sum([(await credits.held(name)).available for name in names]) == 10_000 * customers - charged
        assert await audit(database_url) == 0


async def test_what_is_held_and_reaped_is_measured(credits: Credits) -> None:
    before = REGISTRY.get_sample_value(
        "tallystick_reaped_micros_total", {"kind": "run", "currency_code": "USD"}
    )
    await credits.grant(1000)
    await credits.hold(hold_request("hold_1", 123, expires=in_future(0.2)))

    async def counted() -> bool:
        after = REGISTRY.get_sample_value(
            "tallystick_reaped_micros_total", {"kind": "run", "currency_code": "USD"}
        )
        return (after or 0) - (before or 0) == 123

    await eventually(counted)


async def test_of_a_charge_and_the_reaper_one_ends_a_hold(credits: Credits) -> None:
    await credits.grant(10_000)
    spent = 0
    for number in range(20):
        # On a busy machine the time of one may be over before it comes: then it is another one's turn.
        for attempt in range(100):
            hold_id = f"hold_{number}_{attempt}"
            (first,) = await credits.hold(hold_request(hold_id, 100, expires=in_future(0.02)))
            if first.HasField("placed"):
                break
        assert first.HasField("placed")
        await asyncio.sleep(0.002 * number)
        (posted,) = await credits.post(intent(f"run-{number}", 60, of_hold(hold_id)))
        spent += 60
        (told,) = await credits.hold(hold_request(hold_id, 100))
        state = credit_pb2.HoldState.Name(told.placed.hold.state).removeprefix("HOLD_STATE_").lower()
        assert state == state_of(posted.reservation)
        assert posted.charge.captured.amount_micros == (60 if state == "settled" else 0)
    assert await credits.held() == Held(10_000 - spent)


async def test_a_hold_that_expired_does_not_end_what_its_attempt_was_leased_later(credits: Credits) -> None:
    await credits.grant(1000)
    names = ("settled", "released", "converted", "refused", "over")
    await credits.hold(*(hold_request(name, 100, expires=in_future(0.1)) for name in names))
    await eventually(comes_to(credits, Held(1000)))
    await credits.open(600)
    await credits.give_back(1, 1, 400)
    (posted,) = await credits.post(intent("run-1", 80, allocation("settled", 1, 100)))
    assert (state_of(posted.reservation), posted.charge.captured.amount_micros) == ("settled", 80)
    released, over = await credits.release(
        release_of(allocation("released", 1, 100)), release_of(allocation("over", 1, 100, in_future(-1)))
    )
    assert (state_of(released.released.ended), state_of(over.released.ended)) == ("released", "expired")
    converted, refused = await credits.hold(
        hold_request("converted", 150, content="extended", of=allocation("converted", 1, 100)),
        hold_request("refused", 5000, content="extended", of=allocation("refused", 1, 100)),
    )
    assert (converted.placed.duplicate, converted.placed.hold.from_credits.amount_micros) == (False, 150)
    assert reason_of(refused.error) == "INSUFFICIENT_CREDITS"
    assert await credits.held() == Held(350, leased=420, runs=150)
    # Each ends once, here as everywhere.
    claims = [allocation(name, 1, 100) for name in names[:4]]
    late = await credits.post(*(intent(f"run-{name.reservation_id}", 10, name) for name in claims))
    assert [state_of(one.reservation) for one in late] == ["settled", "released", "settled", "settled"]
    assert [one.charge.captured.amount_micros for one in late] == [0, 0, 10, 10]
    # The tokens of the holds are as dead as before.
    dead = await credits.post(*(intent(f"dead-{name}", 1, of_hold(name)) for name in names))
    assert [one.charge.captured.amount_micros for one in dead] == [0] * 5


async def test_a_hold_that_took_an_allocation_over_ends_it_for_good(credits: Credits) -> None:
    await credits.grant(1000)
    await credits.open(200)
    await credits.give_back(1, 1, 800)
    names = ("settled", "released", "converted")
    # The allocation may have been prolonged in Redis, which the hold does not know.
    longer = [allocation(name, 1, 50, in_future(600)) for name in names]
    await credits.hold(
        *(
            hold_request(name, 50, expires=in_future(0.1), of=allocation(name, 1, 50, in_future(0.1)))
            for name in names
        )
    )
    await eventually(comes_to(credits, Held(950, leased=50)))
    (posted,) = await credits.post(intent("run-1", 50, longer[0]))
    assert (state_of(posted.reservation), posted.charge.captured.amount_micros) == ("expired", 0)
    (released,) = await credits.release(release_of(longer[1]))
    assert state_of(released.released.ended) == "expired"
    (converted,) = await credits.hold(hold_request("converted", 60, of=longer[2]))
    assert converted.placed.hold.state == credit_pb2.HOLD_STATE_EXPIRED
    assert await credits.held() == Held(900, leased=50)
