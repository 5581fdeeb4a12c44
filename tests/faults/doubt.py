"""Payouts that are paid although their call was answered with 500.

Stripe keeps that answer under the call's key, so asking again learns nothing: only an event, or a look a day
later, tells.
"""

from __future__ import annotations

from tallystick.payouts.v1 import payout_pb2
from tests.faults.proof import transfers
from tests.integration.payouts.at_stripe import deliveries
from tests.integration.payouts.world import World
from tests.support.waiting import eventually


async def paid_in_doubt(world: World, units: int, key: str = "first") -> payout_pb2.Payout:
    """A payout of org_lark, as it was requested, whose transfer is made. Its event comes by webhook or not at
    all.
    """
    control = world.payouts.stripe.control
    control.fault("cut", "events.list", count=1000)
    control.fault("server_error", "transfers.create", effect=True)
    payout = (await world.request("org_lark", units, key)).payout

    async def made() -> bool:
        return any(one["metadata"].get("payout_id") == payout.payout_id for one in transfers(world))

    await eventually(made)
    return payout


async def answer_to_newest(world: World) -> int:
    """What was answered when Stripe first told of the newest transfer."""
    statuses: list[int] = []

    async def tried() -> bool:
        sent = deliveries(world.payouts, "transfer.created")
        # One for each transfer.
        if len(sent) == len(transfers(world)) and sent[-1]["status"] is not None:
            statuses[:] = [sent[-1]["status"]]
        return bool(statuses)

    await eventually(tried)
    return statuses[0]


def news_of_newest(world: World) -> list[tuple[object, ...]]:
    """What was stored of events about the newest transfer."""
    transfer_id = transfers(world)[0]["id"]
    return world.payouts.query(
        f"SELECT state, note FROM payouts.processor_event WHERE object_id = '{transfer_id}'"
    )
