"""The faults of paying through Stripe: each happens for real, and then the books agree."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY

from sandbox.process import SandboxError
from sandbox.stripe.server import StripeStandIn
from services.kit.errors import FailedPrecondition
from services.payouts.rpc.ledger import Ledger
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.payouts.v1 import payout_pb2, payout_service_pb2
from tallystick.payouts.v1 import reconciliation_service_pb2 as pb
from tests.faults.doubt import answer_to_newest, news_of_newest, paid_in_doubt
from tests.faults.proof import prove, transfers
from tests.integration.payouts.at_stripe import (
    account_of,
    call_stripe,
    command,
    deliveries,
    heard,
    heard_of,
    let_it_owe,
    paid_out,
    settled,
)
from tests.integration.payouts.world import USD, World
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import intent
from tests.support.ledger_server import LedgerServer
from tests.support.payouts_server import (
    CONNECT_SECRET,
    WEBHOOK_SECRET,
    MovedClock,
    PayoutsServer,
    running_payouts,
    running_stripe,
)
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually

COMPLETED = payout_pb2.PAYOUT_STATE_COMPLETED
FAILED = payout_pb2.PAYOUT_STATE_FAILED
PROCESSING = payout_pb2.PAYOUT_STATE_PROCESSING
PENDING = payout_pb2.BANK_STATUS_PENDING
CANCELLED = payout_pb2.PAYOUT_STATE_CANCELLED

DAY = timedelta(days=1)


async def test_fault_01_the_event_of_a_transfer_comes_before_the_answer(world: World) -> None:
    await world.organization("org_lark", 100)
    world.payouts.stripe.control.fault("slow", "transfers.create", ms=1500, effect=True)
    requested = (await world.request("org_lark", 40)).payout
    await world.until_state(requested.payout_id, COMPLETED)
    # It goes to the bank once the answer has come.
    done = await world.until(requested.payout_id, lambda payout: payout.bank_status == PENDING)
    (first,) = [step for step in done.transitions if step.stripe_id == done.payout.transfer_id]
    assert (first.state, first.actor) == (COMPLETED, "stripe")
    assert len(done.transitions) == 4
    assert await world.available("org_lark") == 60 * USD
    await prove(world)


async def _change_something(world: World) -> list[str]:
    """Pay out, and let a part come back: it must be as if each event of it had come once. Their types."""
    payout = await paid_out(world)
    await let_it_owe(world)
    await command(world, "transfer reverse", transfer=payout.transfer_id, amount=1000)
    await settled(world)
    history = await world.get(payout.payout_id)
    assert [step.stripe_id[:3] for step in history.transitions] == ["", "acc", "tr_", "po_", "trr"]
    assert [one.amount.amount_micros for one in history.reversals] == [10 * USD]
    await prove(world)
    await world.until_available("org_lark", 70 * USD)
    return [one.type for one in await heard(world)]


async def test_fault_02_the_same_event_comes_twice_at_once(world: World) -> None:
    for kind in ("transfer.*", "payout.*"):
        await command(world, "webhooks mishap", kind="duplicate", type=kind, count=20)
    kinds = await _change_something(world)
    assert (kinds.count("transfer.created"), kinds.count("transfer.reversed")) == (1, 1)
    assert [one["handling"] for one in deliveries(world.payouts, "transfer.created")] == [["duplicate"]]


async def test_fault_03_two_events_tell_of_one_change(world: World) -> None:
    for kind in ("transfer.*", "payout.*"):
        await command(world, "events double", type=kind, count=20)
    kinds = await _change_something(world)
    assert (kinds.count("transfer.created"), kinds.count("transfer.reversed")) == (2, 2)


async def _refused_until_sound(world: World, *mishaps: str) -> None:
    """Nothing but their events can tell that these payouts are paid; each is spoiled when it first comes."""
    await world.organization("org_lark", 100)
    for number, mishap in enumerate(mishaps, 1):
        await command(world, "webhooks mishap", kind=mishap, type="transfer.created")
        payout = await paid_in_doubt(world, 10, mishap)
        assert await answer_to_newest(world) == 400
        assert news_of_newest(world) == []
        assert (await world.get(payout.payout_id)).payout.state == PROCESSING
        assert await world.available("org_lark") == (100 - 10 * number) * USD
        # Stripe sends it again, and signs it again.
        await world.payouts.advance(timedelta(seconds=61))
        await world.until_state(payout.payout_id, COMPLETED)
    assert await world.available("org_lark") == (100 - 10 * len(mishaps)) * USD
    await prove(world)


async def test_fault_04_a_bad_signature_or_an_altered_body_is_refused(world: World) -> None:
    await _refused_until_sound(world, "no_signature", "wrong_signature", "altered_body")


async def test_fault_05_a_time_long_gone_or_far_ahead_is_refused(world: World) -> None:
    await _refused_until_sound(world, "stale", "future")


async def test_fault_06_a_secret_is_rolled(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    """While both secrets are known what either signs is believed, and then the new one alone."""
    clock = MovedClock()

    def roll(world: World, keep_seconds: int) -> None:
        ours = [one for one in stripe.control.run("webhooks list")["endpoints"] if not one["connect"]]
        (endpoint,) = [one["id"] for one in ours if one["url"].startswith(world.payouts.web_url)]
        stripe.control.run("webhooks roll", endpoint=endpoint, keep_seconds=keep_seconds, secret="whsec_new")

    def knowing(*secrets: str) -> AbstractAsyncContextManager[PayoutsServer]:
        known = ",".join((*secrets, CONNECT_SECRET))
        return running_payouts(database_url, ledger, stripe, clock=clock, webhook_secrets=known)

    async with knowing("whsec_new", WEBHOOK_SECRET) as running:
        world = World(running)
        await world.organization("org_lark", 100)
        for signed_with in ("old", "both", "new"):
            if signed_with == "both":
                roll(world, keep_seconds=3600)
            elif signed_with == "new":
                await running.advance(timedelta(hours=2))
            payout = await paid_in_doubt(world, 10, signed_with)
            assert await answer_to_newest(world) == 200
            await world.until_state(payout.payout_id, COMPLETED)
    async with knowing("whsec_new") as running:
        world = world.reopened(running)
        payout = await paid_in_doubt(world, 10, "old again")
        assert await answer_to_newest(world) == 400
        assert (await world.get(payout.payout_id)).payout.state == PROCESSING
        roll(world, keep_seconds=0)
        await running.advance(timedelta(seconds=61))
        await world.until_state(payout.payout_id, COMPLETED)
        assert await world.available("org_lark") == 60 * USD
        await prove(world)


@pytest.mark.parametrize("ours", ["test", "live"])
async def test_fault_07_an_event_of_the_other_mode_is_ignored(
    database_url: str, ledger: LedgerServer, ours: str
) -> None:
    with running_stripe(api_keys=[f"sk_{ours}_tallystick"]) as standin:
        standin.control.fund(1_000_000_00)
        async with running_payouts(database_url, ledger, standin) as running:
            world = World(running)
            await world.organization("org_lark", 100)
            if ours == "test":
                standin.control.run("webhooks mishap", kind="not_live", type="transfer.created")
            # With a live key all events are, since those of the stand-in are of test mode.
            payout = await paid_in_doubt(world, 40)
            assert await answer_to_newest(world) == 200
            other = "live" if ours == "test" else "test"
            assert news_of_newest(world) == [
                ("ignored", f"of {other} mode, and our API key is of {ours} mode")
            ]
            assert (await world.get(payout.payout_id)).payout.state == PROCESSING
            assert await world.available("org_lark") == 60 * USD
            # The payout is found without it.
            await running.advance(timedelta(hours=25))
            await world.until_state(payout.payout_id, COMPLETED)
            assert await world.available("org_lark") == 60 * USD
            await prove(world)


async def test_fault_08_news_of_an_unknown_account_or_payout_is_set_aside_and_alerts(world: World) -> None:
    def alerts() -> float:
        return REGISTRY.get_sample_value("tallystick_events_handled_total", {"state": "quarantined"}) or 0

    payout = await paid_out(world)
    before = alerts()
    stranger = call_stripe(world, "POST", "/v1/accounts", type="express")["id"]
    await command(world, "account onboard", account=stranger)
    account, named = account_of(world), {"metadata[payout_id]": "po_nobody"}
    world.payouts.stripe.control.fund(1000, account=account)
    unknown = call_stripe(world, "POST", "/v1/payouts", account, amount=1000, currency="usd", **named)["id"]
    await command(world, "webhooks settle")
    # The account may be one whose id is not written down yet; it is waited for.
    await world.payouts.advance(timedelta(minutes=2))
    await settled(world)
    aside = {one.object_id: one.note for one in await heard(world, pb.PROCESSOR_EVENT_STATE_QUARANTINED)}
    assert aside[stranger] == "the account is not known here"
    assert aside[unknown] == "it names the payout po_nobody, which is not here"
    assert alerts() - before >= 2
    assert {one["status"] for one in deliveries(world.payouts, "account.updated")} == {200}
    assert {one["status"] for one in deliveries(world.payouts, "payout.created")} == {200}
    assert (await world.get(payout.payout_id)).payout == payout
    assert await world.available("org_lark") == 60 * USD
    await prove(world)


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
    async with running_payouts(database_url, ledger, stripe, webhooks=False) as first:
        world = World(first)
        await world.organization("org_lark", 100)
        # The answer takes longer than this process lives.
        stripe.control.fault("slow", "transfers.create", ms=4000, effect=True)
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


async def test_fault_13_an_answer_of_500_and_later_the_event_of_its_transfer(world: World) -> None:
    await world.organization("org_lark", 100)
    await command(world, "webhooks pause")
    payout = await paid_in_doubt(world, 40)

    async def answered() -> bool:
        return world.payouts.query("SELECT attempt_count > 0 FROM payouts.payout") == [(True,)]

    await eventually(answered)
    assert (await world.get(payout.payout_id)).payout.state == PROCESSING
    assert await world.available("org_lark") == 60 * USD
    await command(world, "webhooks resume")
    done = await world.until_state(payout.payout_id, COMPLETED)
    assert done.payout.transfer_id == transfers(world)[0]["id"]
    assert await world.available("org_lark") == 60 * USD
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
    await world.until_available("org_lark", 100 * USD)
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
        await world.until_available("org_lark", 100 * USD)
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


async def test_fault_22_a_whole_transfer_comes_back_and_is_told_again(world: World) -> None:
    payout = await paid_out(world)
    await let_it_owe(world)
    await command(world, "transfer reverse", transfer=payout.transfer_id)
    await settled(world)
    with pytest.raises(SandboxError, match="already been reversed"):
        await command(world, "transfer reverse", transfer=payout.transfer_id)
    told = await heard_of(world, "transfer.reversed", pb.PROCESSOR_EVENT_STATE_DONE)
    await command(world, "webhooks duplicate", event=told.event_id)
    # News of something else, whose reader finds the reversal as well.
    call_stripe(world, "POST", f"/v1/transfers/{payout.transfer_id}", description="came back")
    await settled(world)
    history = await world.get(payout.payout_id)
    assert [one.amount.amount_micros for one in history.reversals] == [40 * USD]
    assert history.payout.state == COMPLETED
    await prove(world)
    await world.until_available("org_lark", 100 * USD)


async def test_fault_23_two_parts_come_back_and_never_more_than_left(world: World) -> None:
    payout = await paid_out(world)
    await let_it_owe(world)
    # Both are there when the first event is handled, and their events come in the wrong order.
    await command(world, "webhooks pause")
    for cents in (1500, 2000):
        await command(world, "transfer reverse", transfer=payout.transfer_id, amount=cents)
    with pytest.raises(SandboxError, match="is not from 1 to 500"):
        await command(world, "transfer reverse", transfer=payout.transfer_id, amount=501)
    await command(world, "webhooks reorder", order="reverse")
    await command(world, "webhooks resume")
    await settled(world)
    for event in await heard(world):
        if event.type == "transfer.reversed":
            await command(world, "webhooks duplicate", event=event.event_id)
    await settled(world)
    history = await world.get(payout.payout_id)
    assert [one.amount.amount_micros for one in history.reversals] == [15 * USD, 20 * USD]
    assert history.payout.reversed.amount_micros == 35 * USD
    assert history.payout.state == COMPLETED
    await prove(world)
    await world.until_available("org_lark", 95 * USD)
    assert world.payouts.query("SELECT DISTINCT posted FROM payouts.payout_reversal") == [(True,)]


async def test_what_came_back_and_the_ledger_refused_is_not_forgotten_over_news_of_the_bank(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    payout = await paid_out(world)
    await let_it_owe(world)

    async def refusing(self: Ledger, *arguments: object) -> None:
        raise FailedPrecondition("a ledger that is older than this", reason="NOT_YET", metadata={})

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "reverse_payout", refusing)
        await command(world, "transfer reverse", transfer=payout.transfer_id, amount=1500)
        await world.until(payout.payout_id, lambda found: found.hold == payout_pb2.PAYOUT_HOLD_UNRESOLVED)
    await command(world, "payout submit", payout=payout.bank_payout_id)
    await command(world, "payout arrive", payout=payout.bank_payout_id)
    await settled(world)
    await world.until_available("org_lark", 75 * USD)
    assert not (await world.get(payout.payout_id)).payout.hold
    await prove(world)


async def test_fault_24_a_reversal_is_refused_and_the_debt_stays_noted(world: World) -> None:
    """The customer's money went back after what it earned had been paid out, and the account has spent it."""
    await world.organization("org_lark")
    books = Corrections(world.payouts.ledger)
    await books.server.create_customer("cus_a")
    await books.grant(100 * USD)
    charged = await books.server.service.ledger.PostCharge(
        ledger_service_pb2.PostChargeRequest(intent=intent("run-1", 100 * USD, organization="org_lark"))
    )
    # Less the fees.
    await world.until_available("org_lark", 82_100_000)
    payout = await paid_out(world, 80)
    await books.correct("taken-back", 100 * USD, charge_id=charged.posted.charge.charge_id)
    with pytest.raises(SandboxError, match="insufficient"):
        await command(world, "transfer reverse", transfer=payout.transfer_id)
    await settled(world)
    assert (await world.get(payout.payout_id)).payout == payout
    await world.until_available("org_lark", -80 * USD)
    assert (await books.earned("org_lark")).clawed_back.amount_micros == 80 * USD
    assert (await refusal(world.request("org_lark", 1, "second"))).reason == "INSUFFICIENT_EARNINGS"
    await prove(world)


async def test_fault_25_the_bank_gives_back_what_was_completed(world: World) -> None:
    payout = await paid_out(world)
    for words, status in (
        ("payout submit", payout_pb2.BANK_STATUS_IN_TRANSIT),
        ("payout arrive", payout_pb2.BANK_STATUS_PAID),
        ("payout fail", payout_pb2.BANK_STATUS_FAILED),
    ):
        await command(world, words, payout=payout.bank_payout_id)
        await settled(world)
        found = (await world.get(payout.payout_id)).payout
        assert (found.state, found.bank_status) == (COMPLETED, status)
        # It is on the connected account: the ledger is not concerned.
        assert await world.available("org_lark") == 60 * USD
    assert found.bank_failure_code == "account_closed"
    await prove(world)


@pytest.mark.parametrize("order", ["reverse", "shuffle"])
async def test_fault_26_the_bank_s_failure_is_told_before_its_payment(world: World, order: str) -> None:
    payout = await paid_out(world)
    await command(world, "webhooks pause")
    for words in ("payout submit", "payout arrive", "payout fail"):
        await command(world, words, payout=payout.bank_payout_id)
    await command(world, "webhooks reorder", order=order)
    await command(world, "webhooks resume")
    await settled(world)
    if order == "reverse":
        failed, paid = [
            (await heard_of(world, kind, pb.PROCESSOR_EVENT_STATE_DONE)).receive_time.ToDatetime()
            for kind in ("payout.failed", "payout.paid")
        ]
        assert failed < paid
    history = await world.get(payout.payout_id)
    assert history.payout.bank_status == payout_pb2.BANK_STATUS_FAILED
    assert history.payout.bank_failure_code == "account_closed"
    assert history.payout.state == COMPLETED
    assert await world.available("org_lark") == 60 * USD
    await prove(world)


async def test_fault_27_after_four_days_without_an_endpoint_everything_ends_the_same(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    clock, never = MovedClock(), timedelta(days=300)
    # Nobody is told anything, and nobody looks.
    async with running_payouts(
        database_url, ledger, stripe, clock=clock, webhooks=False, catch_up_interval=never
    ) as running:
        world = World(running)
        payout = await paid_out(world)
        for words in ("payout submit", "payout arrive", "payout fail"):
            await command(world, words, payout=payout.bank_payout_id)
        await command(world, "transfer reverse", transfer=payout.transfer_id, amount=1000)
    # Longer than Stripe tries to deliver.
    clock.advance(4 * DAY)
    stripe.control.advance(4 * 86_400)
    async with running_payouts(database_url, ledger, stripe, clock=clock, webhooks=False) as running:
        world = World(running)
        done = await world.until(
            payout.payout_id,
            lambda found: (
                found.bank_status == payout_pb2.BANK_STATUS_FAILED
                and found.reversed.amount_micros == 10 * USD
            ),
        )
        assert done.payout.state == COMPLETED
        assert done.payout.bank_failure_code == "account_closed"
        await prove(world)
        await world.until_available("org_lark", 70 * USD)
        found = await heard(world)
        assert all(one.caught_up for one in found)
        assert [one.type for one in found].count("transfer.reversed") == 1
        # Stripe is asked for nothing else.
        handled = {"transfer", "payout", "account", "capability"}
        assert {one.type.split(".")[0] for one in found} <= handled


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
        assert await world.available("org_lark", currency) == earned * micros
        await prove(world)
        return
    payout = (await request).payout
    await world.until_state(payout.payout_id, COMPLETED)
    assert [one["amount"] for one in transfers(world)] == [asked]
    assert await world.available("org_lark", currency) == (earned - asked) * micros
    await prove(world)


async def test_what_is_left_after_a_reversal_goes_to_the_bank_in_whole_units(world: World) -> None:
    world.payouts.stripe.control.fund(1_000_000, "huf")
    await world.organization("org_lark")
    await world.earn_micros("org_lark", 1_000 * USD, "HUF")
    bank = {"object": "bank_account", "country": "HU", "currency": "huf", "account_number": "000123456789"}
    given = {f"external_account[{name}]": value for name, value in bank.items()}
    call_stripe(world, "POST", f"/v1/accounts/{account_of(world)}/external_accounts", **given)
    world.payouts.stripe.control.fault("refused", "payouts.create", code="no_account")
    payout = (await world.request_micros("org_lark", 1_000 * USD, "HUF")).payout
    refused = await world.until(
        payout.payout_id, lambda found: found.bank_status == payout_pb2.BANK_STATUS_FAILED
    )
    # 50.45 HUF.
    await command(world, "transfer reverse", transfer=refused.payout.transfer_id, amount=5_045)
    await settled(world)
    await world.payouts.operator.payouts.RetryBankPayout(
        payout_service_pb2.RetryBankPayoutRequest(payout_id=payout.payout_id)
    )
    again = await world.until(
        payout.payout_id, lambda found: found.bank_status != payout_pb2.BANK_STATUS_WAITING
    )
    assert again.payout.bank_status == payout_pb2.BANK_STATUS_PENDING
    sent_again = call_stripe(world, "GET", f"/v1/payouts/{again.payout.bank_payout_id}", account_of(world))
    assert sent_again["amount"] == 94_900
    await prove(world)


async def test_an_account_that_left_before_its_bank_was_paid_is_no_fault_of_our_key(world: World) -> None:
    await world.organization("org_lark", 100)
    world.payouts.stripe.control.fault("cut", "payouts.create", count=1000)
    payout = (await world.request("org_lark", 40)).payout
    await world.until_state(payout.payout_id, COMPLETED)

    async def asked() -> bool:
        return bool(world.payouts.query("SELECT FROM payouts.payout WHERE attempt_count > 0"))

    await eventually(asked)
    await command(world, "account deauthorize", account=account_of(world))
    world.payouts.stripe.control.run("faults clear")
    held = await world.until(payout.payout_id, lambda found: bool(found.hold))
    assert held.payout.hold == payout_pb2.PAYOUT_HOLD_ACCOUNT_NOT_READY
    await prove(world)


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
