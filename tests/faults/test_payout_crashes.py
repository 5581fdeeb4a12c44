"""kill -9 at every step of the worker that pays. The steps are found by enumeration: see
tests/faults/crashing.py.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from sandbox.stripe.server import StripeStandIn
from tallystick.payouts.v1 import payout_pb2
from tests.faults.crashing import work
from tests.faults.proof import prove, transfers
from tests.integration.payouts.world import USD, World
from tests.support.ledger_server import LedgerServer
from tests.support.payouts_server import payouts_config

# Longer than the lease of a worker that was killed, and than any pause before a next attempt.
MUCH_LATER = timedelta(minutes=30)


@pytest.mark.parametrize("outcome", ["paid", "refused"])
async def test_whatever_step_the_worker_is_killed_at_money_leaves_once_or_comes_back(
    still_world: World, ledger: LedgerServer, stripe: StripeStandIn, outcome: str
) -> None:
    world = still_world
    await world.organization("org_lark", 1_000)
    if outcome == "refused":
        stripe.control.fund(-1_000_000_00)
    config = payouts_config(world.payouts.database_url, ledger.address, ledger.service.key, stripe)
    ahead, crash_at, survived = timedelta(0), 0, False
    while not survived:
        crash_at += 1
        payout = (await world.request("org_lark", 5, f"killed-at-{crash_at}")).payout
        survived = await asyncio.to_thread(work, config, crash_at=crash_at, ahead=ahead)
        # Another process takes over when the lease of the one that was killed is over.
        ahead += MUCH_LATER
        stripe.control.advance(int(MUCH_LATER.total_seconds()))
        assert await asyncio.to_thread(work, config, ahead=ahead)
        found = (await world.get(payout.payout_id)).payout
        assert not found.hold
        if outcome == "paid":
            assert found.state == payout_pb2.PAYOUT_STATE_COMPLETED
            assert found.bank_status in (payout_pb2.BANK_STATUS_PENDING, payout_pb2.BANK_STATUS_IN_TRANSIT)
        else:
            assert found.state == payout_pb2.PAYOUT_STATE_FAILED
    # It was killed at each step but the last time: else nothing was tested.
    assert crash_at > 15
    paid = crash_at if outcome == "paid" else 0
    assert len(transfers(world)) == paid
    assert await world.available("org_lark") == (1_000 - 5 * paid) * USD
    await prove(world)
