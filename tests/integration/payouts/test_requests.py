"""What organizations ask of payouts, and what becomes of it."""

import asyncio

import grpc

from sandbox.stripe.calling import call
from sandbox.stripe.server import StripeStandIn
from tallystick.payouts.v1 import payout_pb2, payout_service_pb2
from tests.integration.payouts.world import USD, World
from tests.support.rpc_errors import refusal, taken_apart


def _transfers(stripe: StripeStandIn) -> list[dict[str, object]]:
    return list(
        call(stripe.url.removeprefix("http://"), "GET", "/v1/transfers", [], key=stripe.api_key)[1]["data"]
    )


async def test_a_payout_goes_from_the_earnings_to_the_bank(world: World) -> None:
    await world.organization("org_lark", 100)
    requested = (await world.request("org_lark", 40)).payout
    assert requested.state == payout_pb2.PAYOUT_STATE_REQUESTED
    assert await world.available("org_lark") == 60 * USD

    done = await world.until(
        requested.payout_id, lambda payout: payout.bank_status == payout_pb2.BANK_STATUS_PENDING
    )
    assert done.payout.state == payout_pb2.PAYOUT_STATE_COMPLETED
    assert done.payout.transfer_id.startswith("tr_")
    assert done.payout.bank_payout_id.startswith("po_")
    states = [payout_pb2.PayoutState.Name(step.state) for step in done.transitions]
    assert states == [
        "PAYOUT_STATE_REQUESTED",
        "PAYOUT_STATE_PROCESSING",
        "PAYOUT_STATE_COMPLETED",
        "PAYOUT_STATE_COMPLETED",
    ]
    assert [step.number for step in done.transitions] == [1, 2, 3, 4]
    assert await world.available("org_lark") == 60 * USD


async def test_a_repeated_request_answers_the_same_payout(world: World) -> None:
    await world.organization("org_lark", 100)
    first, second = await asyncio.gather(
        world.request("org_lark", 40, "once"), world.request("org_lark", 40, "once")
    )
    assert first.payout.payout_id == second.payout.payout_id
    assert await world.available("org_lark") == 60 * USD
    assert (await refusal(world.request("org_lark", 41, "once"))).reason == "IDEMPOTENCY_KEY_REUSED"


async def test_more_than_is_available_is_refused_for_good(world: World) -> None:
    await world.organization("org_lark", 10)
    for _ in range(2):
        refused = await refusal(world.request("org_lark", 11, "too-much"))
        assert refused.reason == "INSUFFICIENT_EARNINGS"
        await world.earn("org_lark", 10)
    listed = await world.owners["org_lark"].payouts.ListPayouts(payout_service_pb2.ListPayoutsRequest())
    assert list(listed.payouts) == []


async def test_fifty_requests_at_once_never_exceed_the_balance(world: World) -> None:
    await world.organization("org_lark", 100)

    async def attempt(number: int) -> int:
        try:
            await world.request("org_lark", 7, f"attempt-{number}")
        except grpc.aio.AioRpcError as error:
            return 0 if taken_apart(error).reason == "INSUFFICIENT_EARNINGS" else -1000
        return 7

    accepted = sum(await asyncio.gather(*map(attempt, range(50))))
    assert accepted == 98
    assert await world.available("org_lark") == 2 * USD


async def test_a_cancelled_payout_is_available_again_and_never_sent(still_world: World) -> None:
    world = still_world
    await world.organization("org_lark", 100)
    requested = (await world.request("org_lark", 40)).payout
    owner = world.owners["org_lark"].payouts
    for _ in range(2):
        cancelled = await owner.CancelPayout(
            payout_service_pb2.CancelPayoutRequest(payout_id=requested.payout_id, reason="not now")
        )
        assert cancelled.payout.state == payout_pb2.PAYOUT_STATE_CANCELLED
        assert cancelled.payout.failure_reason == "not now"
    assert await world.available("org_lark") == 100 * USD
    assert _transfers(world.payouts.stripe) == []
