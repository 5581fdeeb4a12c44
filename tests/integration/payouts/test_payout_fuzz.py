"""Every unary RPC of payouts under messages that nobody in their right mind sends.

Whatever arrives, the answer is one of the contract, with no word of what is inside, after INVALID_ARGUMENT
nothing is stored, and Stripe is sent nothing that it would not take. At the end everything reconciles.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings

from sandbox.stripe.server import StripeStandIn
from services.kit.client import connect
from tallystick.common.v1 import access_pb2
from tallystick.payouts.v1 import reconciliation_service_pb2
from tests.integration.payouts.access import CASES as ORGANIZATION_CASES
from tests.integration.payouts.access import LARK, METHODS, ask, roles_of
from tests.integration.payouts.buyers import Buyers
from tests.integration.payouts.test_payment_access import CASES as PAYMENT_CASES
from tests.integration.payouts.world import World
from tests.support.ledger_server import running_ledger
from tests.support.payouts_server import running_payouts
from tests.support.strange_messages import DEFECTS, INSIDE, MAX_BYTES, Messages, with_nul

EXAMPLES_PER_RPC = 12
UNARY = sorted(name for name, method in METHODS.items() if not method.server_streaming)


@dataclass(frozen=True)
class Target:
    """Payouts, somebody of each role, known ids, and good requests by method."""

    runner: asyncio.Runner
    world: World
    channels: Mapping[access_pb2.Role.ValueType, grpc.aio.Channel]
    known_ids: list[str]
    good: Mapping[str, Message]

    def attempt(self, name: str, request: Message) -> None:
        """One strange call, judged."""
        method, before = METHODS[name], self._stored()
        # Whoever gets furthest: somebody of the platform, if the method is for one.
        channel = next(channel for role, channel in self.channels.items() if role in roles_of(method))
        answer = self.runner.run(ask(channel, method, request))
        assert answer.code not in DEFECTS, f"{answer} for {request}"
        if answer.code is not grpc.StatusCode.OK:
            asked = text_format.MessageToString(request)
            assert all(found[0] in asked for found in INSIDE.finditer(answer.text)), answer.text
        if answer.code is grpc.StatusCode.INVALID_ARGUMENT:
            assert self._stored() == before, request

    def _stored(self) -> list[tuple[object, ...]]:
        tables = ("payout", "payout_transition", "payout_schedule", "connected_account", "purchase")
        counts = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM payouts.{table}" for table in tables)
        return self.world.payouts.query(f"{counts} ORDER BY 1")


@asynccontextmanager
async def _populated(
    runner: asyncio.Runner, database_url: str, stripe: StripeStandIn
) -> AsyncIterator[Target]:
    async with (
        running_ledger(database_url) as ledger,
        running_payouts(database_url, ledger, stripe, workers=False, webhooks=False) as payouts,
    ):
        world, buyers = World(payouts), Buyers(payouts)
        await world.organization(LARK, earned=1_000)
        payout = (await world.request(LARK, 33)).payout
        card = await buyers.customer()
        bought = (await buyers.buy(20)).purchase
        owner = await ledger.create_caller(access_pb2.ROLE_OWNER, "fuzzing", organization_id=LARK)
        keys = {
            access_pb2.ROLE_OPERATOR: ledger.operator.key,
            access_pb2.ROLE_SERVICE: ledger.service.key,
            access_pb2.ROLE_OWNER: owner.key,
        }
        channels = {role: connect(payouts.address, key) for role, key in keys.items()}
        good = {case.method: case.request(payout.payout_id) for case in ORGANIZATION_CASES}
        good |= {name: request(bought.purchase_id, card) for name, request, _ in PAYMENT_CASES}
        known_ids = [LARK, "cus_ada", payout.payout_id, bought.purchase_id, card]
        try:
            yield Target(runner, world, channels, known_ids, good)
        finally:
            for channel in channels.values():
                await channel.close()


@pytest.fixture
def target(database_url: str, stripe: StripeStandIn) -> Iterator[Target]:
    with asyncio.Runner() as runner:
        context = _populated(runner, database_url, stripe)
        found = runner.run(context.__aenter__())
        try:
            yield found
        finally:
            runner.run(context.__aexit__(None, None, None))


def test_no_message_is_too_strange(target: Target) -> None:
    make = Messages(target.known_ids, nul=True)
    for name in UNARY:
        for request in with_nul(target.good[name]):
            target.attempt(name, request)
        _fuzz(target, make, name)
    target.runner.run(_reconcile(target.world))


def _fuzz(target: Target, make: Messages, name: str) -> None:
    messages = make.of(METHODS[name].input_type) | make.near(target.good[name])

    @settings(
        max_examples=EXAMPLES_PER_RPC,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        deadline=None,
        database=None,
    )
    @given(messages.filter(lambda message: message.ByteSize() < MAX_BYTES))
    def fuzz(request: Message) -> None:
        target.attempt(name, request)

    fuzz()


async def _reconcile(world: World) -> None:
    found = await world.payouts.operator.reconciliation.Reconcile(
        reconciliation_service_pb2.ReconcileRequest()
    )
    assert list(found.differences) == []
