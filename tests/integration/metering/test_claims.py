"""Reports that claim a reservation: priced as was pinned, paid from it first, and counted by budgets."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest

from services.kit.auth import Principal, Role
from services.kit.client import connect
from services.kit.clock import SystemClock
from services.kit.db import Database
from services.kit.errors import TallystickError
from services.kit.tenancy import PLATFORM, scope
from services.metering.domain.budget import CounterKey
from services.metering.domain.claim import Claim
from services.metering.domain.usage_event import UsageEvent
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.confirmations import Confirmations
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.convert import event_from_proto, money_to_proto, time_to_proto
from services.metering.rpc.ledger import Ledger
from services.metering.rpc.parties import Directory
from services.metering.rpc.pipeline import Metered, Pipeline, Report
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.terms import TermsFinder
from services.metering.store import budgets
from tallystick.ledger.v1 import credit_pb2, credit_service_pb2, ledger_service_pb2
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tests.integration.metering.budget_world import a_budget
from tests.integration.metering.world import BONUS_MICROS, RUN_MICROS, World, run
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import fee, price
from tests.support.network import Gate, gate_to
from tests.support.waiting import eventually

GRANTED = 100_000_000
BASE_MICROS = RUN_MICROS - BONUS_MICROS
HOST = Principal("key_host", Role.HOST)
WELL_LATER = timedelta(hours=1)


@dataclass
class Settling:
    """A pipeline of the test's own, before the ledger of a running world, which recovers what it leaves."""

    pipeline: Pipeline
    ledger: Ledger
    writer: Database
    gate: Gate
    price_version_id: str

    async def reserve(self, reservation_id: str, amount_micros: int = 1_000_000) -> Claim:
        """A hold of cus_1, as a claim."""
        expire_time = datetime.now(UTC) + WELL_LATER
        (placed,) = await self.ledger.place_holds(
            [
                credit_service_pb2.HoldRequest(
                    customer_id="cus_1",
                    hold_id=reservation_id,
                    purpose=credit_pb2.HOLD_PURPOSE_RUN,
                    amount=money_to_proto("USD", amount_micros),
                    expire_time=time_to_proto(expire_time),
                    content_hash=bytes(32),
                )
            ]
        )
        assert not isinstance(placed, TallystickError), placed
        return Claim(reservation_id, 0, amount_micros, "USD", expire_time, self.price_version_id)

    async def settle(self, event: usage_pb2.UsageEvent, claim: Claim | None = None) -> Metered:
        (verdict,) = await self.pipeline.run([Report(_read(event), HOST, claim)])
        assert isinstance(verdict, Metered), verdict
        return verdict

    async def create_budget(self, budget_id: str, **changes: Any) -> None:
        async with self.writer.begin() as connection:
            await scope(connection, PLATFORM)
            assert await budgets.create(connection, a_budget(budget_id, **changes))


def _read(event: usage_pb2.UsageEvent) -> UsageEvent:
    copy = usage_pb2.UsageEvent()
    copy.CopyFrom(event)
    return event_from_proto(copy, datetime.now(UTC))


@pytest.fixture
async def settling(world: World, ledger: LedgerServer) -> AsyncIterator[Settling]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(gate_to(ledger.address))
        channel = await stack.enter_async_context(connect(gate.address, ledger.service.key))
        writer = Database(ledger.database_url, role="metering_writer", schema="metering")
        reader = Database(ledger.database_url, role="metering_reader", schema="metering")
        for database in (writer, reader):
            stack.push_async_callback(database.close)
        await writer.open()
        confirmations = Confirmations(writer)
        stack.push_async_callback(confirmations.close)
        client = Ledger(channel)
        ((price_version_id,),) = world.server.query("SELECT price_version_id FROM metering.price_version")
        yield Settling(
            pipeline=Pipeline(
                writer=writer,
                terms=TermsFinder(Directory(client), PriceCatalog(reader), ContractCatalog(reader)),
                budgets=BudgetCatalog(reader),
                ledger=client,
                confirmations=confirmations,
                clock=clock,
                # The world's own recovery would be first.
                recovery_delay=timedelta(hours=1),
            ),
            ledger=client,
            writer=writer,
            gate=gate,
            price_version_id=str(price_version_id),
        )


async def held(settling: Settling) -> int:
    return (await settling.ledger.get_balance("cus_1", "USD")).held.amount_micros


async def test_a_charge_is_paid_from_what_was_reserved_and_the_rest_goes_back(
    world: World, settling: Settling
) -> None:
    claim = await settling.reserve("rsv_1")
    assert await world.available() == GRANTED - 1_000_000

    metered = await settling.settle(run("run-1"), claim)

    ended = metered.posted.reservation
    assert ended.state == credit_pb2.RESERVATION_STATE_SETTLED
    assert ended.captured_credits.amount_micros == RUN_MICROS
    assert metered.event.price_charged.amount_micros == RUN_MICROS
    assert metered.event.available_balance.amount_micros == GRANTED - RUN_MICROS
    assert metered.record.is_settled_with("rsv_1")
    assert await held(settling) == 0


async def test_a_pinned_price_holds_whatever_was_published_since(world: World, settling: Settling) -> None:
    claim = await settling.reserve("rsv_1")
    newer = await world.server.publish(price(fee("9")))
    await world.server.publish(price(fee("7")), organization_id="org_a", currency_code="EUR")

    numbers = count()

    async def in_force() -> bool:
        unpinned = await settling.settle(run("unpinned", ordinal=next(numbers), currency_code="USD"))
        return unpinned.event.price_version_id == newer

    await eventually(in_force)
    pinned = await settling.settle(run("run-1"), claim)

    assert pinned.event.price_version_id == settling.price_version_id
    assert pinned.event.price_charged.amount_micros == RUN_MICROS
    assert pinned.event.price_charged.currency_code == "USD"


async def test_settling_again_with_another_reservation_does_not_use_that_one(
    world: World, settling: Settling
) -> None:
    first, second = await settling.reserve("rsv_1"), await settling.reserve("rsv_2")
    await settling.settle(run("run-1"), first)

    again = await settling.settle(run("run-1"), second)

    assert again.event.duplicate
    assert (again.record.is_settled_with("rsv_1"), again.record.is_settled_with("rsv_2")) == (True, False)
    assert await held(settling) == 1_000_000
    assert await world.available() == GRANTED - RUN_MICROS - 1_000_000


async def test_an_event_that_was_metered_before_uses_no_reservation(world: World, settling: Settling) -> None:
    await world.meter(run("run-1"))
    claim = await settling.reserve("rsv_1")

    metered = await settling.settle(run("run-1"), claim)

    assert metered.event.duplicate
    assert metered.record.charge.claim is None
    assert not metered.posted.HasField("reservation")
    assert await held(settling) == 1_000_000


async def test_in_one_batch_the_claim_of_the_first_report_stands(settling: Settling) -> None:
    claims = [await settling.reserve("rsv_1"), await settling.reserve("rsv_2")]

    verdicts = await settling.pipeline.run([Report(_read(run("run-1")), HOST, claim) for claim in claims])

    metered = [verdict for verdict in verdicts if isinstance(verdict, Metered)]
    assert [one.event.duplicate for one in metered] == [False, True]
    assert all(one.record.is_settled_with("rsv_1") for one in metered)


async def test_recovery_posts_the_same_claim(world: World, settling: Settling) -> None:
    claim = await settling.reserve("rsv_1")
    # Everybody is known from then on.
    await settling.settle(run("first"))
    await settling.gate.cut()
    (verdict,) = await settling.pipeline.run([Report(_read(run("run-1")), HOST, claim)])
    assert isinstance(verdict, TallystickError)
    assert verdict.reason == "CHARGE_PENDING"
    await settling.gate.open()
    world.server.query("UPDATE metering.pending_charge SET next_attempt_time = now() RETURNING 1")

    await eventually(world.nothing_is_pending)

    assert await world.available() == GRANTED - 2 * RUN_MICROS
    response = await world.server.ledger.operator.ledger.GetCharge(
        ledger_service_pb2.GetChargeRequest(charge_id=verdict.metadata["charge_id"])
    )
    assert response.charge.reservation_id == "rsv_1"
    assert response.charge.captured.amount_micros == RUN_MICROS


async def test_what_an_outcome_may_add_is_held_from_what_the_reservation_leaves(
    world: World, settling: Settling
) -> None:
    # All that there is.
    claim = await settling.reserve("rsv_1", GRANTED)

    metered = await settling.settle(run("run-1", outcome=usage_pb2.OUTCOME_PENDING), claim)

    assert metered.posted.outcome_hold.from_credits.amount_micros == BONUS_MICROS
    assert metered.posted.outcome_hold.hold_id == metered.event.outcome_id
    assert await held(settling) == BONUS_MICROS
    assert await world.available() == GRANTED - RUN_MICROS


async def test_budgets_count_what_is_new_and_the_verdict_says_what_they_come_to(settling: Settling) -> None:
    await settling.create_budget("bud_customer")
    await settling.create_budget("bud_workflow", per_workflow=True)
    await settling.create_budget("bud_other", customer_id="", agent_id="agt_b")
    await settling.create_budget("bud_euro", currency_code="EUR")
    await settling.create_budget("bud_key", customer_id="", api_key_id=HOST.api_key_id)

    first = await settling.settle(run("run-1"))
    second = await settling.settle(run("run-2"))
    again = await settling.settle(run("run-2"))

    def counters(spent: int, workflow_id: str) -> dict[CounterKey, int]:
        return {
            CounterKey("bud_customer", None, ""): spent,
            CounterKey("bud_workflow", None, workflow_id): RUN_MICROS,
            CounterKey("bud_key", None, ""): spent,
        }

    assert first.spent == counters(RUN_MICROS, "run-1")
    assert second.spent == counters(2 * RUN_MICROS, "run-2")
    # Counted once, and said again: Redis may have missed it.
    assert again.spent == second.spent


async def test_budgets_count_what_an_outcome_adds_when_it_is_decided(
    world: World, settling: Settling
) -> None:
    await settling.create_budget("bud_customer")
    numbers = count()

    async def is_known() -> bool:
        await world.meter(run("before", ordinal=next(numbers)))
        return bool(world.server.query("SELECT FROM metering.budget_counter"))

    def spent() -> int:
        ((spent,),) = world.server.query("SELECT spent FROM metering.budget_counter")
        assert isinstance(spent, int)
        return spent

    # A process learns of a budget that another one made within a second.
    await eventually(is_known)
    before = spent()
    metered = await world.meter(run("run-1", outcome=usage_pb2.OUTCOME_PENDING))
    assert spent() == before + BASE_MICROS

    for _ in range(2):
        await world.host.metering.ResolveOutcome(
            metering_service_pb2.ResolveOutcomeRequest(
                outcome_id=metered.outcome_id, outcome=usage_pb2.OUTCOME_SUCCESS
            )
        )
    assert spent() == before + RUN_MICROS

    await world.meter(run("run-2", outcome=usage_pb2.OUTCOME_PENDING))
    world.server.query(
        "UPDATE metering.deferred_outcome SET expire_time = now() WHERE state = 'pending' RETURNING 1"
    )

    async def expired() -> bool:
        return not world.server.query("SELECT FROM metering.deferred_outcome WHERE state = 'pending'")

    await eventually(expired)
    assert spent() == before + RUN_MICROS + BASE_MICROS
