"""Organizations that are paid by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from sandbox.stripe.server import StripeStandIn
from services.kit.errors import Unavailable
from services.payouts.domain.schedule import Run, Schedule
from services.payouts.scheduler import Scheduler
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import directory_service_pb2
from tallystick.payouts.v1 import payout_pb2, payout_schedule_pb2, payout_service_pb2, schedule_service_pb2
from tests.faults.proof import prove, transfers
from tests.integration.payouts.world import USD, World
from tests.support.ledger_server import LedgerServer
from tests.support.payouts_server import MovedClock, running_payouts
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually

COMPLETED = payout_pb2.PAYOUT_STATE_COMPLETED
TWO_WEEKS = timedelta(days=14)
SOON = timedelta(milliseconds=50)


@pytest.fixture
async def world(database_url: str, ledger: LedgerServer, stripe: StripeStandIn) -> AsyncIterator[World]:
    """Payouts that looks at schedules all the time."""
    async with running_payouts(database_url, ledger, stripe, schedule_interval=SOON) as running:
        yield World(running)


async def payouts_of(world: World, organization_id: str) -> list[payout_pb2.Payout]:
    listed = await world.payouts.operator.payouts.ListPayouts(
        payout_service_pb2.ListPayoutsRequest(organization_id=organization_id)
    )
    return list(listed.payouts)


async def until_paid(world: World, organization_id: str, count: int) -> list[payout_pb2.Payout]:
    async def paid() -> bool:
        found = await payouts_of(world, organization_id)
        return len(found) == count and all(one.state == COMPLETED for one in found)

    await eventually(paid)
    return await payouts_of(world, organization_id)


async def scheduled(world: World, organization_id: str) -> payout_schedule_pb2.PayoutSchedule:
    response = await world.owners[organization_id].schedules.GetPayoutSchedule(
        schedule_service_pb2.GetPayoutScheduleRequest(organization_id=organization_id)
    )
    return response.schedule


async def set_schedule(world: World, organization_id: str, interval: str, **more: object) -> None:
    schedule = payout_schedule_pb2.PayoutSchedule(
        organization_id=organization_id,
        interval=payout_schedule_pb2.PayoutInterval.Value(f"PAYOUT_INTERVAL_{interval}"),
        **more,  # type: ignore[arg-type]
    )
    await world.owners[organization_id].schedules.SetPayoutSchedule(
        schedule_service_pb2.SetPayoutScheduleRequest(schedule=schedule)
    )


async def test_who_set_no_schedule_is_paid_on_wednesdays(world: World) -> None:
    await world.organization("org_lark", 100)
    schedule = await scheduled(world, "org_lark")
    assert schedule.interval == payout_schedule_pb2.PAYOUT_INTERVAL_WEEKLY
    assert schedule.next_run_time.ToDatetime().weekday() == 2
    await world.payouts.advance(TWO_WEEKS)
    (payout,) = await until_paid(world, "org_lark", 1)
    assert payout.amount.amount_micros == 100 * USD
    assert payout.origin == payout_pb2.PAYOUT_ORIGIN_SCHEDULE
    assert datetime.fromisoformat(payout.earned_before).weekday() == 0
    history = await world.get(payout.payout_id)
    assert history.transitions[0].actor == "schedule"
    await prove(world)


async def test_several_processes_and_several_looks_make_one_payout(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    clock = MovedClock()
    async with (
        running_payouts(database_url, ledger, stripe, clock=clock, schedule_interval=SOON) as first,
        running_payouts(database_url, ledger, stripe, clock=clock, schedule_interval=SOON),
        running_payouts(database_url, ledger, stripe, clock=clock, schedule_interval=SOON),
    ):
        world = World(first)
        await world.organization("org_lark", 100)

        async def planned() -> bool:
            return bool(first.query("SELECT FROM payouts.payout_schedule"))

        await eventually(planned)
        await world.payouts.advance(TWO_WEEKS)
        await until_paid(world, "org_lark", 1)
        await asyncio.sleep(0.3)
        assert len(transfers(world)) == 1
        await prove(world)


async def test_after_an_outage_of_weeks_one_run_pays_for_all(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    clock = MovedClock()
    async with running_payouts(database_url, ledger, stripe, clock=clock, schedule_interval=SOON) as running:
        await World(running).organization("org_lark", 100)

        async def planned() -> bool:
            return bool(running.query("SELECT FROM payouts.payout_schedule"))

        await eventually(planned)
    clock.advance(timedelta(days=60))
    stripe.control.advance(60 * 86_400)
    async with running_payouts(database_url, ledger, stripe, clock=clock, schedule_interval=SOON) as running:
        world = World(running)
        (payout,) = await until_paid(world, "org_lark", 1)
        age = clock.now() - datetime.fromisoformat(payout.earned_before).replace(tzinfo=UTC)
        assert timedelta(days=2) <= age < timedelta(days=10)
        await prove(world)


async def test_small_amounts_and_who_cannot_be_paid_wait(world: World) -> None:
    await world.organization("org_small", 10)
    await world.organization("org_unknown", 100, connected=False)
    await world.organization("org_frozen", 100)
    await world.organization("org_lark", 100)
    minimum = money_pb2.Money(currency_code="USD", amount_micros=11 * USD)
    await set_schedule(world, "org_small", "WEEKLY", minimums=[minimum])
    await set_schedule(world, "org_unknown", "WEEKLY")
    await world.payouts.ledger.operator.directory.FreezePayouts(
        directory_service_pb2.FreezePayoutsRequest(organization_id="org_frozen", reason="an investigation")
    )
    await scheduled(world, "org_lark")
    await world.payouts.advance(TWO_WEEKS)
    await until_paid(world, "org_lark", 1)

    async def all_ran() -> bool:
        return not world.payouts.query(
            "SELECT FROM payouts.payout_schedule"
            f" WHERE next_run_time < '{world.payouts.clock.now().isoformat()}'"
        )

    await eventually(all_ran)
    assert [await world.available(f"org_{name}") for name in ("small", "unknown", "frozen")] == [
        10 * USD,
        100 * USD,
        100 * USD,
    ]
    await world.earn("org_small", 5)
    await world.payouts.advance(TWO_WEEKS)
    (payout,) = await until_paid(world, "org_small", 1)
    assert payout.amount.amount_micros == 15 * USD
    await prove(world)


async def test_the_preview_says_what_would_be_paid_and_why_not_more(still_world: World) -> None:
    world = still_world
    await world.organization("org_lark")
    await world.earn_micros("org_lark", 12_345_678)

    async def preview() -> payout_schedule_pb2.PayoutPreview:
        response = await world.owners["org_lark"].schedules.PreviewPayoutSchedule(
            schedule_service_pb2.PreviewPayoutScheduleRequest(organization_id="org_lark")
        )
        (only,) = response.previews
        return only

    # In a month today's earnings are old enough for every interval.
    await world.payouts.advance(timedelta(days=31))
    for interval in ("DAILY", "WEEKLY", "MONTHLY"):
        await set_schedule(world, "org_lark", interval)
        found = await preview()
        assert found.amount.amount_micros == 12_340_000
        assert found.available.amount_micros == 12_345_678
        assert found.explanation == "what cannot be moved in whole units stays"
        schedule = await scheduled(world, "org_lark")
        assert found.run_time == schedule.next_run_time
    minimum = money_pb2.Money(currency_code="USD", amount_micros=100 * USD)
    await set_schedule(world, "org_lark", "WEEKLY", minimums=[minimum])
    found = await preview()
    assert found.amount.amount_micros == 0
    assert found.explanation == "less than 100.00 USD waits for the next run"
    await set_schedule(world, "org_lark", "MANUAL")
    response = await world.owners["org_lark"].schedules.PreviewPayoutSchedule(
        schedule_service_pb2.PreviewPayoutScheduleRequest(organization_id="org_lark")
    )
    assert list(response.previews) == []
    assert world.payouts.query("SELECT FROM payouts.payout") == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"interval": 9}, "schedule.interval"),
        ({"interval": 0}, "schedule.interval"),
        ({"time_zone": "Mars/Olympus"}, "schedule.time_zone"),
        ({"minimums": [money_pb2.Money(currency_code="XXX", amount_micros=1)]}, "currency_code"),
        ({"minimums": [money_pb2.Money(currency_code="USD", amount_micros=-1)]}, "amount_micros"),
        ({"minimums": [money_pb2.Money(currency_code="USD", amount_micros=1)] * 2}, "currency_code"),
    ],
)
async def test_what_is_not_a_schedule_is_refused(
    still_world: World, change: dict[str, object], field: str
) -> None:
    await still_world.organization("org_lark")
    request = schedule_service_pb2.SetPayoutScheduleRequest(
        schedule=payout_schedule_pb2.PayoutSchedule(
            **{"organization_id": "org_lark", "interval": 3, **change}  # type: ignore[arg-type]
        )
    )
    refused = await refusal(still_world.owners["org_lark"].schedules.SetPayoutSchedule(request))
    assert refused.fields[0].endswith(field)


async def test_a_frozen_organization_stops_before_money_moves(still_world: World) -> None:
    world = still_world
    await world.organization("org_lark", 100)
    payout = (await world.request("org_lark", 40)).payout
    directory = world.payouts.ledger.operator.directory
    await directory.FreezePayouts(
        directory_service_pb2.FreezePayoutsRequest(organization_id="org_lark", reason="an investigation")
    )
    clock = MovedClock()
    async with running_payouts(
        world.payouts.database_url, world.payouts.ledger, world.payouts.stripe, clock=clock
    ) as running:
        world = World(running)
        held = await world.until(payout.payout_id, lambda payout: bool(payout.hold))
        assert held.payout.hold == payout_pb2.PAYOUT_HOLD_FROZEN
        assert held.payout.state == payout_pb2.PAYOUT_STATE_REQUESTED
        assert world.payouts.stripe.control.requests("transfers.create") == []
        await directory.UnfreezePayouts(
            directory_service_pb2.UnfreezePayoutsRequest(organization_id="org_lark", reason="it is over")
        )
        clock.advance(timedelta(minutes=10))
        await world.until_state(payout.payout_id, COMPLETED)
        await prove(world)


async def test_a_schedule_that_cannot_run_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    payable = Scheduler.payable

    async def failing(self: Scheduler, schedule: Schedule, run: Run) -> dict[str, int]:
        if schedule.organization_id == "org_first":
            raise Unavailable("the ledger does not answer for this one")
        return await payable(self, schedule, run)

    await world.organization("org_first", 100)
    await world.organization("org_lark", 100)

    async def have_schedules() -> bool:
        async with await psycopg.AsyncConnection.connect(world.payouts.database_url) as database:
            found = await database.execute("SELECT count(*) FROM payouts.payout_schedule")
            return await found.fetchone() == (2,)

    # One that is made after the clock was moved is not due.
    await eventually(have_schedules)
    monkeypatch.setattr(Scheduler, "payable", failing)
    await world.payouts.advance(TWO_WEEKS)
    await until_paid(world, "org_lark", 1)
    monkeypatch.undo()
    await until_paid(world, "org_first", 1)
    await prove(world)


async def test_to_set_a_schedule_loses_no_run_that_is_due(still_world: World) -> None:
    world = still_world
    await world.organization("org_lark", 100)
    await set_schedule(world, "org_lark", "WEEKLY")
    # Nobody looks at schedules meanwhile.
    await world.payouts.advance(TWO_WEEKS)
    await set_schedule(world, "org_lark", "MONTHLY")
    async with running_payouts(
        world.payouts.database_url,
        world.payouts.ledger,
        world.payouts.stripe,
        clock=world.payouts.clock,
        schedule_interval=SOON,
    ) as again:
        await until_paid(world.reopened(again), "org_lark", 1)
