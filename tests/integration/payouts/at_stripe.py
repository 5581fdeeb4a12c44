"""What is done at Stripe beside what payouts asks for, and what payouts has heard of it."""

from __future__ import annotations

import asyncio
from typing import Any

from sandbox.stripe.calling import call
from sandbox.stripe.server import StripeStandIn
from tallystick.payouts.v1 import payout_pb2
from tallystick.payouts.v1 import reconciliation_service_pb2 as pb
from tests.integration.payouts.world import World
from tests.support.payouts_server import PayoutsServer
from tests.support.waiting import eventually


def call_stripe(world: World, method: str, path: str, account: str = "", **params: Any) -> dict[str, Any]:
    """One call of Stripe's API, as from the dashboard."""
    stripe = world.payouts.stripe
    pairs = [(name, str(value)) for name, value in params.items()]
    address = stripe.url.removeprefix("http://")
    status, answer = call(address, method, path, pairs, key=stripe.api_key, account=account)
    assert status == 200, answer
    return answer


async def command(world: World, words: str, **arguments: object) -> dict[str, Any]:
    """A command that sends webhooks, which this event loop answers."""
    return await asyncio.to_thread(world.payouts.stripe.control.run, words, **arguments)


def account_of(world: World, organization_id: str = "org_lark") -> str:
    """The id at Stripe of an organization's account."""
    ((found,),) = world.payouts.query(
        f"SELECT stripe_account_id FROM payouts.connected_account WHERE organization_id = '{organization_id}'"
    )
    return str(found)


async def let_it_owe(world: World) -> None:
    """Let Stripe take back what is on its way to the bank already."""
    await command(world, "account reserves", account=account_of(world))


async def paid_out(world: World, units: int = 40, key: str = "first") -> payout_pb2.Payout:
    """A payout of org_lark whose money is on its way to the bank."""
    if "org_lark" not in world.owners:
        await world.organization("org_lark", 100)
    requested = (await world.request("org_lark", units, key)).payout
    done = await world.until(
        requested.payout_id, lambda payout: payout.bank_status == payout_pb2.BANK_STATUS_PENDING
    )
    await settled(world)
    return done.payout


def transfer_by_hand(stripe: StripeStandIn) -> dict[str, Any]:
    """A transfer that no payout asked for, as Stripe shows it."""
    address, key = stripe.url.removeprefix("http://"), stripe.api_key
    asked = [("type", "express"), ("capabilities[transfers][requested]", "true")]
    account = call(address, "POST", "/v1/accounts", asked, key=key)[1]
    stripe.control.onboard(account["id"])
    body = [("amount", "100"), ("currency", "usd"), ("destination", account["id"])]
    return call(address, "POST", "/v1/transfers", body, key=key)[1]


def deliveries(payouts: PayoutsServer, kind: str) -> list[dict[str, Any]]:
    """Deliveries of events of a type, in the order of the events."""
    view = payouts.stripe.control.run("webhooks list")
    found = [one for one in (*view["waiting"], *view["done"]) if one["type"] == kind]
    return sorted(found, key=lambda one: str(one["id"]))


async def heard(world: World, state: int = 0) -> list[pb.ProcessorEvent]:
    """The events that payouts has, the newest first."""
    response = await world.payouts.operator.reconciliation.ListProcessorEvents(
        pb.ListProcessorEventsRequest(page_size=1000, state=pb.ProcessorEventState.ValueType(state))
    )
    return list(response.events)


async def heard_of(world: World, kind: str, *states: int) -> pb.ProcessorEvent:
    """The last event of a type, once it is in one of the states."""
    found: list[pb.ProcessorEvent] = []

    async def there() -> bool:
        found[:] = [one for one in await heard(world) if one.type == kind and one.state in states]
        return bool(found)

    await eventually(there)
    return found[0]


async def settled(world: World) -> None:
    """Wait until everything that was sent is handled."""
    await command(world, "webhooks settle")

    async def handled() -> bool:
        return not world.payouts.query(
            "SELECT FROM payouts.processor_event WHERE state IN ('pending', 'failing')"
        )

    await eventually(handled)
