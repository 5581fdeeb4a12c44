"""The faults of paying through Stripe: each happens for real, and then the books agree."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from sandbox.stripe.server import StripeStandIn
from tallystick.payouts.v1 import payout_pb2, payout_service_pb2
from tests.faults.proof import prove, transfers
from tests.integration.payouts.world import USD, World
from tests.support.ledger_server import LedgerServer
from tests.support.payouts_server import MovedClock, running_payouts
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually

COMPLETED = payout_pb2.PAYOUT_STATE_COMPLETED
FAILED = payout_pb2.PAYOUT_STATE_FAILED
PROCESSING = payout_pb2.PAYOUT_STATE_PROCESSING
CANCELLED = payout_pb2.PAYOUT_STATE_CANCELLED

DAY = timedelta(days=1)


async def test_fault_09_an_answer_is_lost_after_the_transfer_was_made(world: World) -> None:
    await world.organization("org_lark", 100)
    world.payouts.stripe.control.fault("lost_answer", "transfers.create")
    payout = (await world.request("org_lark", 40)).payout
    done = await world.until_state(payout.payout_id, COMPLETED)
    assert len(transfers(world)) == 1
    assert done.payout.transfer_id == transfers(world)[0]["id"]
    assert await world.available("org_lark") == 60 * USD
    await prove(world)


async def test_fault_10_a_connection_is_cut_before_the_transfer_was_made(world: World) -> None:
    await world.organization("org_lark", 100)
    world.payouts.stripe.control.fault("cut", "transfers.create")
    payout = (await world.request("org_lark", 40)).payout
    await world.until_state(payout.payout_id, COMPLETED)
    assert await world.available("org_lark") == 60 * USD
    await prove(world)


async def test_fault_11_a_crash_between_the_call_and_writing_its_answer_down(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    """The next process asks again with the same key, and is told of the same transfer."""
    async with running_payouts(database_url, ledger, stripe) as first:
        world = World(first)
        await world.organization("org_lark", 100)
        # The answer takes longer than this process lives.
        stripe.control.fault("slow", "transfers.create", ms=1500, effect=True)
        payout = (await world.request("org_lark", 40)).payout

        async def made() -> bool:
            return len(transfers(world)) == 1

        await eventually(made)
        assert (await world.get(payout.payout_id)).payout.state == PROCESSING
    async with running_payouts(database_url, ledger, stripe) as second:
        world = World(second)
        await world.until_state(payout.payout_id, COMPLETED)
        assert len(transfers(world)) == 1
        await prove(world)


@pytest.mark.parametrize("made", [True, False], ids=["made", "not-made"])
async def test_fault_12_a_day_later_it_is_looked_for_and_never_asked_for_again(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn, made: bool
) -> None:
    clock = MovedClock()
    async with running_payouts(database_url, ledger, stripe, clock=clock) as first:
        world = World(first)
        await world.organization("org_lark", 100)
        if made:
            stripe.control.fault("server_error", "transfers.create", count=1, effect=True)
        stripe.control.fault("cut", "transfers.create", count=1000)
        payout = (await world.request("org_lark", 40)).payout

        async def asked() -> bool:
            return bool(stripe.control.requests("transfers.create"))

        await eventually(asked)
    stripe.control.run("faults clear")
    before = len(stripe.control.requests("transfers.create"))
    clock.advance(timedelta(hours=25))
    stripe.control.advance(25 * 3600)
    async with running_payouts(database_url, ledger, stripe, clock=clock, webhooks=False) as second:
        world = World(second)
        if made:
            found = await world.until_state(payout.payout_id, COMPLETED)
            # By the look-up, or by the list of events that is read at start, whichever was first.
            methods = [step.method for step in found.transitions]
            assert "lookup" in methods or any(method.startswith("evt_") for method in methods)
        else:
            found = await world.until(payout.payout_id, lambda payout: bool(payout.hold))
            assert found.payout.hold == payout_pb2.PAYOUT_HOLD_UNRESOLVED
            assert found.payout.state == PROCESSING
            assert await world.available("org_lark") == 60 * USD
        assert len(stripe.control.requests("transfers.create")) == before
        await prove(world)


async def test_fault_12_an_operator_decides_what_nobody_knows(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    clock = MovedClock()
    async with running_payouts(database_url, ledger, stripe, clock=clock) as running:
        world = World(running)
        await world.organization("org_lark", 100)
        resolve = running.operator.payouts.ResolvePayout
        for number, resolution in enumerate(
            (payout_service_pb2.PAYOUT_RESOLUTION_FAIL, payout_service_pb2.PAYOUT_RESOLUTION_SEND_AGAIN)
        ):
            stripe.control.fault("cut", "transfers.create", count=1000)
            payout = (await world.request("org_lark", 10, f"payout-{number}")).payout
            await world.until_state(payout.payout_id, PROCESSING)
            request = payout_service_pb2.ResolvePayoutRequest(
                payout_id=payout.payout_id, resolution=resolution, reason="Stripe's dashboard shows none"
            )
            assert (await refusal(resolve(request))).reason == "PAYOUT_STATE_CONFLICT"
            await running.advance(timedelta(hours=25))
            await world.until(payout.payout_id, lambda payout: bool(payout.hold))
            stripe.control.run("faults clear")
            await resolve(request)
            await world.until_state(payout.payout_id, COMPLETED if number else FAILED)
        assert await world.available("org_lark") == 90 * USD
        await prove(world)


async def test_fault_14_two_workers_and_one_payout(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    async with (
        running_payouts(database_url, ledger, stripe) as first,
        running_payouts(database_url, ledger, stripe),
    ):
        world = World(first)
        await world.organization("org_lark", 100)
        stripe.control.fault("key_in_use", "transfers.create")
        requested = await asyncio.gather(
            *(world.request("org_lark", 10, f"payout-{number}") for number in range(5))
        )
        for one in requested:
            await world.until_state(one.payout.payout_id, COMPLETED)
        assert len(transfers(world)) == 5
        await prove(world)


async def test_fault_15_a_key_that_went_with_another_body_alerts_and_keeps_the_money(
    still_world: World, database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    """As after a restored backup that forgot what had been asked."""
    await still_world.organization("org_lark", 100)
    payout = (await still_world.request("org_lark", 40)).payout
    async with running_payouts(database_url, ledger, stripe) as running:
        world = World(running)
        await world.until_state(payout.payout_id, COMPLETED)
    still_world.payouts.query_write(
        """
        UPDATE payouts.payout
        SET state = 'processing', owed = NULL, transfer_id = NULL, bank_status = 'none', bank_body = NULL,
            bank_key = NULL, bank_time = NULL, bank_payout_id = NULL, version = version + 1,
            next_attempt_time = now(), transfer_body = transfer_body || '{"amount": 3999}';
        INSERT INTO payouts.payout_work (organization_id, due_time) VALUES ('org_lark', now())
        ON CONFLICT (organization_id) DO UPDATE SET due_time = now()
        """
    )
    async with running_payouts(database_url, ledger, stripe) as running:
        world = World(running)
        held = await world.until(payout.payout_id, lambda payout: bool(payout.hold))
        assert held.payout.hold == payout_pb2.PAYOUT_HOLD_KEY_CONFLICT
        assert held.payout.state == PROCESSING
        transfer_id = transfers(world)[0]["id"]
        adopt = payout_service_pb2.ResolvePayoutRequest(
            payout_id=payout.payout_id,
            resolution=payout_service_pb2.PAYOUT_RESOLUTION_FAIL,
            reason="nothing seems to have left",
        )
        assert (await refusal(running.operator.payouts.ResolvePayout(adopt))).reason == "TRANSFER_CONFLICT"
        adopt.resolution = payout_service_pb2.PAYOUT_RESOLUTION_ADOPT_TRANSFER
        adopt.transfer_id = transfer_id
        await running.operator.payouts.ResolvePayout(adopt)
        await world.until_state(payout.payout_id, COMPLETED)
        await prove(world)


async def test_fault_16_a_storm_of_429_fails_and_credits_nothing(world: World) -> None:
    await world.organization("org_lark", 100)
    world.payouts.stripe.control.fault("rate_limit", "*", count=3)
    payout = (await world.request("org_lark", 40)).payout
    assert await world.available("org_lark") == 60 * USD
    done = await world.until_state(payout.payout_id, COMPLETED)
    assert not done.payout.failure_code
    await prove(world)


async def test_fault_17_too_little_money_at_stripe_fails_it_and_gives_the_amount_back(world: World) -> None:
    await world.organization("org_lark", 100)
    world.payouts.stripe.control.fund(-1_000_000_00)
    payout = (await world.request("org_lark", 40)).payout
    done = await world.until_state(payout.payout_id, FAILED)
    assert done.payout.failure_code == "balance_insufficient"
    assert done.payout.failure_reason

    async def returned() -> bool:
        return await world.available("org_lark") == 100 * USD

    await eventually(returned)
    await prove(world)


async def test_fault_18_a_capability_that_was_lost_fails_it_with_its_reason(still_world: World) -> None:
    world = still_world
    await world.organization("org_lark", 100)
    payout = (await world.request("org_lark", 40)).payout
    account = world.payouts.query("SELECT stripe_account_id FROM payouts.connected_account")[0][0]
    world.payouts.stripe.control.run(
        "account capability", account=account, reason="requirements.fields_needed"
    )
    async with running_payouts(
        world.payouts.database_url, world.payouts.ledger, world.payouts.stripe
    ) as running:
        world = World(running)
        done = await world.until_state(payout.payout_id, FAILED)
        assert done.payout.failure_code == "insufficient_capabilities_for_transfer"
        assert done.payout.failure_reason

        async def returned() -> bool:
            return await world.available("org_lark") == 100 * USD

        await eventually(returned)
        await prove(world)


async def test_fault_19_without_onboarding_it_is_refused_and_stripe_is_not_asked(world: World) -> None:
    await world.organization("org_lark", 100, connected=False)
    refused = await refusal(world.request("org_lark", 40))
    assert refused.reason == "PAYOUTS_NOT_ENABLED"
    assert refused.metadata["account_state"] == "onboarding"
    assert world.payouts.stripe.control.requests("transfers.create") == []
    assert await world.available("org_lark") == 100 * USD
    await prove(world)


async def test_fault_20_of_requests_above_the_balance_at_once_one_is_accepted(world: World) -> None:
    await world.organization("org_lark", 100)
    answers = await asyncio.gather(
        world.request("org_lark", 80, "first"),
        world.request("org_lark", 80, "second"),
        return_exceptions=True,
    )
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
    assert await world.available("org_lark") == 20 * USD
    await prove(world)


async def test_fault_21_of_a_cancellation_and_the_worker_exactly_one_wins(world: World) -> None:
    await world.organization("org_lark", 100)
    owner = world.owners["org_lark"].payouts
    ends = set()
    for number in range(20):
        payout = (await world.request("org_lark", 5, f"payout-{number}")).payout
        await asyncio.sleep(0.002 * number)
        cancel = payout_service_pb2.CancelPayoutRequest(payout_id=payout.payout_id)
        (answer,) = await asyncio.gather(owner.CancelPayout(cancel), return_exceptions=True)
        done = await world.until_state(payout.payout_id, COMPLETED, CANCELLED)
        won = not isinstance(answer, BaseException)
        assert (done.payout.state == CANCELLED) == won
        ends.add(done.payout.state)
        if won:

            async def settled(payout_id: str = payout.payout_id) -> bool:
                return not world.payouts.query(
                    f"SELECT FROM payouts.payout WHERE payout_id = '{payout_id}' AND owed IS NOT NULL"
                )

            await eventually(settled)
    await prove(world)


@pytest.mark.parametrize(
    ("currency", "earned", "asked", "accepted"),
    [("HUF", 1_045, 1_045, False), ("HUF", 1_045, 1_000, True), ("JPY", 1_045, 1_045, True)],
)
async def test_fault_28_currencies_keep_their_remainder_and_are_not_blown_up(
    world: World, currency: str, earned: int, asked: int, accepted: bool
) -> None:
    world.payouts.stripe.control.fund(1_000_000, currency.lower())
    # 10.45 HUF; Stripe writes yen without decimals, forint with two.
    micros = USD // 100 if currency == "HUF" else USD
    await world.organization("org_lark", connected=True)
    await world.earn_micros("org_lark", earned * micros, currency)
    request = world.request_micros("org_lark", asked * micros, currency)
    if not accepted:
        assert (await refusal(request)).fields == ["amount.amount_micros"]
        return
    payout = (await request).payout
    await world.until_state(payout.payout_id, COMPLETED)
    assert [one["amount"] for one in transfers(world)] == [asked]
    assert await world.available("org_lark", currency) == (earned - asked) * micros


async def test_fault_29_a_revoked_key_alerts_and_keeps_the_money(world: World) -> None:
    await world.organization("org_lark", 100)
    world.payouts.stripe.control.fault("unauthorized", "transfers.create", count=1)
    world.payouts.stripe.control.fault("forbidden", "transfers.create", count=1)
    payout = (await world.request("org_lark", 40)).payout
    held = await world.until(payout.payout_id, lambda payout: bool(payout.hold))
    assert held.payout.hold == payout_pb2.PAYOUT_HOLD_KEY_REFUSED
    assert await world.available("org_lark") == 60 * USD

    async def looked_at_until_paid() -> bool:
        await world.payouts.advance(timedelta(minutes=6))
        return (await world.get(payout.payout_id)).payout.state == COMPLETED

    # The key is mended: two looks later it is paid.
    await eventually(looked_at_until_paid)
    await prove(world)


async def test_fault_30_a_connected_account_in_debt_shrinks_what_can_leave(world: World) -> None:
    await world.organization("org_lark", 100)
    control = world.payouts.stripe.control
    account = str(world.payouts.query("SELECT stripe_account_id FROM payouts.connected_account")[0][0])
    # What the platform has is all reserved for the account's debt.
    control.fund(-(1_000_000_00 - 50_00))
    control.fund(-30_00, account=account)
    payout = (await world.request("org_lark", 40)).payout
    done = await world.until_state(payout.payout_id, FAILED)
    assert done.payout.failure_code == "balance_insufficient"
    await prove(world)
