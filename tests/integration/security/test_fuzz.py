"""Every unary RPC under messages that nobody in their right mind sends.

Whatever arrives, the answer is one of the contract: never INTERNAL or UNKNOWN, no word of what is inside, and
after INVALID_ARGUMENT nothing is stored. At the end the server answers as before, and the books balance.
"""

from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.ledger.store.audit import run_checks
from tallystick.common.v1 import access_pb2
from tests.integration.security.cases import CASES
from tests.integration.security.world import METHODS, Running, World, roles_of
from tests.support.strange_messages import DEFECTS, INSIDE, MAX_BYTES, Messages, with_nul

EXAMPLES_PER_RPC = 25
UNARY = sorted(name for name, method in METHODS.items() if not method.server_streaming)


def _known_ids(world: World) -> list[str]:
    found = [world.platform_book, world.shared_charge, world.shared_transaction, "pv_test"]
    for things in (world.alpha, world.bravo):
        found += [things.organization, things.customer, things.agent, things.member, things.workflow]
        found += [
            things.price_book,
            things.published,
            things.draft,
            things.charge,
            things.transaction,
            things.outcome,
            things.reservation,
            things.budget,
            things.contract,
            *things.subscriptions,
            things.closing,
            things.token,
        ]
        found += [f"1-{things.tenant}"]
    return found


def _caller_of(method: MethodDescriptor) -> str:
    """Who gets furthest: somebody of the platform, if the method is for one."""
    roles = roles_of(method)
    names = {
        access_pb2.ROLE_OPERATOR: "operator",
        access_pb2.ROLE_SERVICE: "service",
        access_pb2.ROLE_HOST: "host",
    }
    return next(name for role, name in names.items() if role in roles)


def _stored(world: World) -> list[tuple[object, ...]]:
    """How much there is of everything that a call creates."""
    tables = (
        "ledger.organization",
        "ledger.revenue_share_agreement",
        "ledger.customer",
        "ledger.agent",
        "ledger.agent_version",
        "ledger.member",
        "ledger.api_key",
        "ledger.idempotency",
        "ledger.charge",
        "ledger.credit_lease",
        "ledger.hold",
        "ledger.released_reservation",
        "metering.idempotency",
        "metering.price_book",
        "metering.price_version",
        "metering.usage_event",
        "metering.deferred_outcome",
        "metering.budget",
        "metering.budget_reservation",
        "metering.contract",
        "metering.contract_version",
        "metering.subscription",
        "metering.subscription_segment",
        "metering.subscription_fee",
        "metering.counted_period",
        "metering.period_closing",
    )
    # By name: PostgreSQL may count several tables at once, and answers whichever is done first.
    counts = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in tables)
    return world.rows(f"{counts} ORDER BY 1")


@dataclass
class _Unchanged:
    """How much there was after a call that stored nothing, which is how much there is before the next one."""

    world: World | None = None
    rows: list[tuple[object, ...]] = field(default_factory=list)

    def take(self, world: World) -> list[tuple[object, ...]]:
        rows = self.rows if self.world is world else _stored(world)
        self.world = None
        return rows


_unchanged = _Unchanged()


def _try(running: Running, name: str, request: Message) -> None:
    world, method = running.world, METHODS[name]
    caller = world.principals[_caller_of(method)]
    before = _unchanged.take(world)
    answer = running.runner.run(_call(caller.call(method, request)))
    assert answer.code not in DEFECTS, f"{answer.code.name} for {request}"
    if answer.code is not grpc.StatusCode.OK:
        # Ours, not made by gRPC on the way: a status with its domain, or the verdict on an item.
        assert "tallystick" in answer.text or "ERROR_REASON_" in answer.text
        # An error may name what it was asked about.
        asked = text_format.MessageToString(request)
        assert all(found[0] in asked for found in INSIDE.finditer(answer.text)), answer.text
    if answer.code is grpc.StatusCode.INVALID_ARGUMENT:
        assert _stored(world) == before
        _unchanged.world, _unchanged.rows = world, before


async def _call(call: Any) -> Any:
    return await call


@pytest.mark.parametrize("name", UNARY)
def test_no_message_is_too_strange(running: Running, name: str) -> None:
    make = Messages(_known_ids(running.world), nul=True)
    wild = make.of(METHODS[name].input_type)
    good = st.sampled_from([case.request for case in CASES[name](running.world)])
    messages = wild | good.flatmap(make.near)

    @settings(
        max_examples=EXAMPLES_PER_RPC,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(messages.filter(lambda message: message.ByteSize() < MAX_BYTES))
    def fuzz(request: Message) -> None:
        _try(running, name, request)

    fuzz()


@pytest.mark.parametrize("name", UNARY)
def test_nul_in_a_good_request_is_refused(running: Running, name: str) -> None:
    for case in CASES[name](running.world):
        for request in with_nul(case.request):
            _try(running, name, request)


def test_the_books_balance_after_all_that(running: Running) -> None:
    world = running.world

    async def check() -> list[str]:
        await world.settled()
        database = Database(world.ledger.database_url, role="ledger_reader", schema="ledger", pool_size=1)
        try:
            async with database.begin() as connection:
                await scope(connection, PLATFORM)
                return [found.check.name async for found in run_checks(connection) if found.count]
        finally:
            await database.close()

    assert running.runner.run(check()) == []
