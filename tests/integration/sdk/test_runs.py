"""Runs of both clients against real services: reserved, settled, released, and an unreliable network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tallystick import (
    AsyncRun,
    Balance,
    InsufficientCredits,
    Money,
    OutcomeAlreadyResolved,
    OutcomeNotFound,
    ReservationEnded,
    ReservationTokenInvalid,
    RetryPolicy,
    Run,
    Unavailable,
    Usage,
    UsageEvent,
)
from tests.integration.metering.world import RUN_MICROS, World
from tests.integration.sdk.either import IMPATIENT, Either, Open
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import AGENT_RUN, running_metering
from tests.support.network import gate_to
from tests.support.waiting import eventually

PRICE = Money("USD", RUN_MICROS)
GRANTED = Money.of("100")
ALL: Any = {
    "customer": "cus_1",
    "agent": "agt_a",
    "action": "run",
    "workflow_id": "run-1",
    "max_cost": "0.50",
}


@pytest.fixture
async def world(
    database_url: str, redis_url: str, ledger: LedgerServer, host_key: str
) -> AsyncIterator[World]:
    """As that of metering, with reservations in Redis: docs/sdk.md is tested without."""
    async with running_metering(database_url, ledger, redis_url=redis_url) as running:
        await running.publish(AGENT_RUN)
        yield World(running, running.caller(host_key))


class AgentError(Exception):
    """What goes wrong in an agent."""


async def worked(run: Run | AsyncRun) -> None:
    """What costs PRICE."""
    run.tokens(input=400, output=500, model="gpt")
    run.tokens(input=600, model="gpt")
    run.tool("search")
    run.succeed({"ticket": 4711})


async def fail(run: Run | AsyncRun) -> None:
    run.tokens(input=400, output=500, model="gpt")
    raise AgentError


async def balance_of(client: Either) -> Balance:
    balance: Balance = await client.balance("cus_1")
    assert balance.credits == balance.available + balance.reserved + balance.held
    return balance


async def test_a_run_is_reserved_and_settled(world: World, opened: Open) -> None:
    async with opened() as client:

        async def work(run: Run | AsyncRun) -> None:
            assert run.reservation is not None
            assert run.reservation.amount == Money.of("0.50")
            assert (await balance_of(client)).reserved == Money.of("0.50")
            await worked(run)

        run = await client.run(work, **ALL)
        balance = await balance_of(client)
    assert run.result is not None
    assert run.result.metered.price_charged == PRICE
    settlement = run.result.settlement
    assert (settlement.state, settlement.reserved, settlement.captured) == (
        "settled",
        Money.of("0.50"),
        PRICE,
    )
    assert settlement.returned == settlement.reserved - PRICE
    assert settlement.excess == Money("USD", 0)
    assert settlement.available == balance.available == GRANTED - PRICE
    assert world.charge_count() == 1


async def test_what_a_run_costs_beyond_its_reservation_is_charged_too(world: World, opened: Open) -> None:
    async with opened() as client:
        run = await client.run(worked, **ALL | {"max_cost": "0.10"})
        balance = await balance_of(client)
    assert run.settlement is not None
    assert run.settlement.captured == Money.of("0.10")
    assert run.settlement.excess == run.settlement.excess_from_credits == PRICE - Money.of("0.10")
    assert balance.available == GRANTED - PRICE


async def test_who_cannot_pay_does_not_run(world: World, opened: Open) -> None:
    poor = ALL | {"customer": "cus_2"}
    async with opened() as client:
        with pytest.raises(InsufficientCredits) as refused:
            await client.run(fail, **poor)
        assert (refused.value.requested, refused.value.available) == (Money.of("0.50"), Money("USD", 0))
        usage = Usage(input_tokens=1_000, output_tokens=500)
        with pytest.raises(InsufficientCredits) as refused:
            await client.run(fail, **poor | {"max_cost": None, "expected": usage, "workflow_id": "run-2"})
        # Priced with the outcome that costs most.
        assert refused.value.requested == PRICE
        access = await client.check_access("cus_2", "agt_a", "run")
        assert (access.allowed, access.up_to) == (False, Money("USD", 0))
        assert isinstance(access.refusal, InsufficientCredits)
        access = await client.check_access("cus_1", "agt_a", "run", cost="100")
        assert (access.allowed, access.up_to, access.refusal) == (True, GRANTED, None)
    assert world.charge_count() == 0


async def test_a_run_that_fails_is_free(world: World, opened: Open) -> None:
    async with opened() as client:
        with pytest.raises(AgentError):
            await client.run(fail, **ALL)
        balance = await balance_of(client)
        assert (balance.available, balance.reserved) == (GRANTED, Money("USD", 0))
        with pytest.raises(AgentError):
            await client.run(fail, **ALL | {"workflow_id": "run-2", "on_error": "settle"})
        # Without the bonus for a success, and 600 tokens less.
        assert (await balance_of(client)).available == GRANTED - Money("USD", 6_440)
    assert world.charge_count() == 1


async def test_an_attempt_is_found_again_and_ends_once(world: World, opened: Open) -> None:
    """What a host does that died in the middle, and one that died at the end."""
    async with opened() as client:
        before = await client.authorize(**ALL, ttl=timedelta(minutes=5))
        run = await client.run(worked, **ALL, idempotency_key="")
        assert run.reservation is not None
        assert run.reservation.reservation_id == before.reservation_id
        assert run.reservation.duplicate
        with pytest.raises(ReservationEnded) as ended:
            await client.run(fail, **ALL, idempotency_key="")
        assert ended.value.state == "settled"
    assert world.charge_count() == 1


async def test_a_job_that_is_tried_again_runs_again(world: World, opened: Open) -> None:
    async with opened() as client:
        with pytest.raises(AgentError):
            await client.run(fail, **ALL)
        assert (await client.run(worked, **ALL)).result is not None
        # Also when nobody heard that it was done; it is charged once.
        again = await client.run(worked, **ALL)
        assert again.result is not None
        assert again.result.metered.duplicate
        balance = await balance_of(client)
    assert (balance.available, balance.reserved) == (GRANTED - PRICE, Money("USD", 0))
    assert world.charge_count() == 1


async def test_a_reservation_by_its_token(world: World, opened: Open) -> None:
    ask: Any = ALL | {"workflow_id": "run-2"}
    event: Any = {name: value for name, value in ask.items() if name != "max_cost"}
    async with opened() as client:
        reservation = await client.authorize(**ask)
        extended = await client.extend(reservation.token, max_cost="1", ttl=timedelta(minutes=10))
        assert extended.amount == Money.of("1")
        assert extended.expire_time > reservation.expire_time
        assert extended.available == (await balance_of(client)).available == GRANTED - Money.of("1")
        settled = await client.settle(extended.token, **event, input_tokens=1_000)
        again = await client.settle(extended.token, **event, input_tokens=1_000)
        assert (again.metered.duplicate, again.settlement.captured) == (True, settled.settlement.captured)
        released = await client.release(extended.token)
        assert (released.state, released.captured) == ("settled", settled.settlement.captured)
        with pytest.raises(ReservationTokenInvalid):
            await client.settle("rst_nonsense", **event)
        with pytest.raises(ReservationEnded):
            await client.extend(extended, max_cost="2")
    assert world.charge_count() == 1


async def test_a_long_run_keeps_its_reservation(world: World, opened: Open) -> None:
    async def work(run: Run | AsyncRun) -> None:
        assert run.reservation is not None
        first = run.reservation.expire_time

        async def is_extended() -> bool:
            assert run.reservation is not None
            # To where it would have ended long before.
            return run.reservation.expire_time > first + timedelta(seconds=1)

        await eventually(is_extended)
        await worked(run)

    async with opened() as client:
        # Long enough for a busy machine to extend it in time.
        run = await client.run(work, **ALL, ttl=timedelta(seconds=5))
    assert run.settlement is not None
    assert (run.settlement.state, run.settlement.captured) == ("settled", PRICE)


async def test_finished_work_of_an_outage_is_settled_after_it(world: World, opened: Open) -> None:
    async with (
        gate_to(world.server.address) as gate,
        opened(metering=gate.address, retry=IMPATIENT) as client,
    ):

        async def work(run: Run | AsyncRun) -> None:
            await worked(run)
            await gate.cut()

        # Only what is told after the work gives up soon.
        run = await client.run(work, timeout=30, **ALL)
        assert (run.recorded, run.result) == (True, None)
        assert world.charge_count() == 0
        await gate.open()
        assert await client.flush(timeout=30) == 0
        balance = await balance_of(client)
    # From its reservation, of which nothing is left behind.
    assert (balance.available, balance.reserved) == (GRANTED - PRICE, Money("USD", 0))
    assert world.charge_count() == 1


async def test_answers_that_are_lost_reserve_and_charge_once(world: World, opened: Open) -> None:
    patience = RetryPolicy(timeout=2, attempt_timeout=0.5, first_backoff=0.01)
    async with (
        gate_to(world.server.address) as gate,
        opened(metering=gate.address, retry=patience) as client,
    ):

        async def work(run: Run | AsyncRun) -> None:
            await worked(run)
            gate.swallow_answers()

        async def is_charged() -> bool:
            return world.charge_count() == 1

        run = await client.run(work, timeout=30, **ALL)
        # It took effect unheard, and waits to be told again.
        assert run.recorded
        await eventually(is_charged)
        await gate.cut()
        await gate.open()
        assert await client.flush(timeout=30) == 0
        balance = await balance_of(client)
        stats = client.client.stats
    assert (stats.delivered, stats.refused) == (1, 0)
    assert (balance.available, balance.reserved) == (GRANTED - PRICE, Money("USD", 0))
    assert world.charge_count() == 1


async def test_an_outage_at_the_beginning(world: World, opened: Open) -> None:
    async with (
        gate_to(world.server.address) as gate,
        opened(metering=gate.address, retry=IMPATIENT) as client,
    ):
        await gate.cut()
        with pytest.raises(Unavailable):
            await client.run(fail, **ALL)
        run = await client.run(worked, **ALL | {"workflow_id": "run-2"}, when_unavailable="run")
        assert (run.reservation, run.recorded) == (None, True)
        await gate.open()
        assert await client.flush(timeout=30) == 0
        assert (await balance_of(client)).available == GRANTED - PRICE
    assert world.charge_count() == 1


async def test_an_outcome_is_decided_later(world: World, opened: Open) -> None:
    async def work(run: Run | AsyncRun) -> None:
        run.tokens(input=1_000, output=500, model="gpt")
        run.pending(timedelta(days=1))

    bonus = Money.of("0.20")
    async with opened() as client:
        run = await client.run(work, **ALL)
        assert run.result is not None
        metered = run.result.metered
        assert metered.price_charged == PRICE - bonus
        assert metered.deferred_outcome is not None
        assert (metered.deferred_outcome.state, metered.deferred_outcome.max_bonus) == ("pending", bonus)
        balance = await balance_of(client)
        assert (balance.held, balance.reserved) == (bonus, Money("USD", 0))
        assert await client.outcome(metered.outcome_id) == metered.deferred_outcome
        outcome = await client.resolve_outcome(metered.outcome_id, "success", evidence={"stars": 5})
        assert (outcome.state, outcome.bonus, outcome.duplicate) == ("resolved", bonus, False)
        assert outcome.available == (await balance_of(client)).available == GRANTED - PRICE
        assert (await client.resolve_outcome(metered.outcome_id, "success")).duplicate
        with pytest.raises(OutcomeAlreadyResolved) as resolved:
            await client.resolve_outcome(metered.outcome_id, "failure")
        assert resolved.value.outcome == "success"
        assert resolved.value.resolve_time == outcome.resolve_time
        with pytest.raises(OutcomeNotFound):
            await client.outcome("out_" + "a" * 26)


async def test_every_answer_says_what_is_left(world: World, opened: Open) -> None:
    event: Any = {name: value for name, value in ALL.items() if name != "max_cost"}
    async with opened() as client:
        # With a reservation that stands, and what is set aside for more of them.
        reservation = await client.authorize(**ALL)
        assert reservation.available == (await balance_of(client)).available == GRANTED - Money.of("0.50")
        metered = await client.meter(**event | {"workflow_id": "run-2"})
        assert metered.available == (await balance_of(client)).available
        (batched,) = await client.meter_batch([UsageEvent(**event | {"workflow_id": "run-3"})])
        assert batched.available == (await balance_of(client)).available
        released = await client.release(reservation)
        assert released.available == (await balance_of(client)).available == GRANTED - Money("USD", 10_000)
