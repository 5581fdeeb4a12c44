"""Stripe's books compared with the ledger, over what really happened."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.kit.times import timestamp
from services.payouts.config import StripeConfig
from services.payouts.reconcile import reconcile
from tallystick.payouts.v1 import payout_pb2, purchase_pb2, reconciliation_pb2
from tallystick.payouts.v1 import reconciliation_service_pb2 as pb
from tests.integration.payouts.buyers import Buyers
from tests.integration.payouts.world import World
from tests.support.waiting import eventually

FUNDED = "The platform added money to its own balance"
COMPLETED = payout_pb2.PAYOUT_STATE_COMPLETED


async def _compared(world: World) -> pb.ReconcileResponse:
    # What happened in the last minute is left out.
    world.payouts.clock.advance(timedelta(minutes=2))
    return await world.payouts.operator.reconciliation.Reconcile(pb.ReconcileRequest())


async def test_purchases_payouts_and_what_came_back_agree_with_fees(world: World) -> None:
    buyers = Buyers(world.payouts)
    await buyers.customer()
    bought = (await buyers.buy(100)).purchase
    assert bought.state == purchase_pb2.PURCHASE_STATE_SUCCEEDED
    await buyers.refund(bought.purchase_id, 20)
    await world.organization("org_lark", 100)
    payout = (await world.request("org_lark", 40)).payout
    done = await world.until_state(payout.payout_id, COMPLETED)
    control = world.payouts.stripe.control
    account = world.payouts.query("SELECT stripe_account_id FROM payouts.connected_account")[0][0]
    # Its money went on to the bank, so it goes into debt.
    await asyncio.to_thread(control.run, "account reserves", account=account)
    transfer = done.payout.transfer_id
    await asyncio.to_thread(control.run, "transfer reverse", transfer=transfer, amount=10_00)

    async def heard() -> bool:
        return (await world.get(payout.payout_id)).payout.reversed.amount_micros == 10_000_000

    await eventually(heard)

    async def agree() -> bool:
        (total,) = (await _compared(world)).totals
        # The purchase, its fee, the refund, the transfer, its reversal.
        return total.matched_count == 5

    await eventually(agree)
    found = await _compared(world)
    # The money that the stand-in was given to begin with came from nowhere.
    assert {one.explanation.partition(".")[0] for one in found.differences} <= {FUNDED}


async def test_since_the_first_moment_of_time_is_since_ever(world: World) -> None:
    await world.organization("org_lark", 100)
    ever = await _compared(world)
    # Nothing can be subtracted from it.
    request = pb.ReconcileRequest(start_time=timestamp(datetime.min.replace(tzinfo=UTC)))
    since = await world.payouts.operator.reconciliation.Reconcile(request)
    assert ever.totals
    assert since.totals == ever.totals


async def test_each_difference_is_explained(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    await world.organization("org_lark", 100)
    payout = (await world.request("org_lark", 40)).payout
    await world.until_state(payout.payout_id, COMPLETED)
    account = world.payouts.query("SELECT stripe_account_id FROM payouts.connected_account")[0][0]
    buyers = Buyers(world.payouts)
    by_hand = buyers.stripe("POST", "/v1/transfers", amount=500, currency="usd", destination=account)

    async def completed() -> bool:
        return not world.payouts.query("SELECT FROM payouts.payout WHERE owed IS NOT NULL")

    await eventually(completed)
    found = await _compared(world)
    (one,) = [one for one in found.differences if one.stripe_id == by_hand["id"]]
    assert one.kind == reconciliation_pb2.DIFFERENCE_KIND_MISSING_IN_LEDGER
    assert one.processor_amount.amount_micros == -5_000_000
    assert one.ledger_amount.amount_micros == 0
    assert "made by hand" in one.explanation
    assert found.difference_count == len(found.differences)

    config = StripeConfig(
        stripe_api_key=world.payouts.stripe.api_key,
        stripe_base_url=world.payouts.stripe.url,
        stripe_calls_per_second=1000,
        ledger_address=world.payouts.ledger.address,
        ledger_api_key=world.payouts.ledger.service.key,
    )
    assert await reconcile(config) in (0, 1)
    assert capsys.readouterr().out.splitlines()[-1].startswith(("differences: ", "nothing differs"))
