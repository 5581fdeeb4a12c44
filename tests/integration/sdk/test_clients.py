"""Both clients against real services: metering with its ledger, and a network that may be cut."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tallystick import (
    AsyncClient,
    IdempotencyKeyReused,
    InvalidArgument,
    Metered,
    Money,
    NotFound,
    PermissionDenied,
    RetryPolicy,
    Unauthenticated,
    Unavailable,
    UsageEvent,
)
from tests.integration.metering.world import RUN_MICROS, World
from tests.integration.sdk.either import IMPATIENT, Open, Options
from tests.support.network import gate_to
from tests.support.waiting import eventually

RUN: Any = {
    "customer": "cus_1",
    "agent": "agt_a",
    "action": "run",
    "model": "gpt",
    "input_tokens": 1_000,
    "output_tokens": 500,
    "outcome": "success",
}
PRICE = Money("USD", RUN_MICROS)


async def test_a_run_is_charged_once_however_often_it_is_reported(world: World, opened: Open) -> None:
    async with opened() as client:
        first = await client.meter(workflow_id="run-1", **RUN)
        again = await client.meter(workflow_id="run-1", **RUN)
        balance = await client.balance("cus_1")
    assert first.price_charged == first.payment.from_credits == PRICE
    assert sum((line.amount for line in first.lines), Money("USD", 0)) == PRICE
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.charge_id == first.charge_id
    assert balance.available == again.available == Money.of("100") - PRICE
    # And by another process that does the same work again, a second later.
    async with opened() as other:
        third = await other.meter(workflow_id="run-1", **RUN)
    assert (third.duplicate, third.charge_id) == (True, first.charge_id)


async def test_a_batch_has_a_verdict_for_each(world: World, opened: Open) -> None:
    events = [
        UsageEvent(workflow_id="run-1", **RUN),
        UsageEvent(workflow_id="run-2", **RUN | {"customer": "cus_nobody"}),
        UsageEvent(workflow_id="not an id", **RUN),
        UsageEvent(workflow_id="run-1", **RUN),
    ]
    async with opened() as client:
        charged, unknown, malformed, again = await client.meter_batch(events)
    assert isinstance(charged, Metered)
    assert isinstance(unknown, NotFound)
    assert (unknown.reason, unknown.metadata) == ("CUSTOMER_NOT_FOUND", {"customer_id": "cus_nobody"})
    assert isinstance(malformed, InvalidArgument)
    assert [violation.field for violation in malformed.field_violations] == ["workflow_id"]
    assert again.charge_id == charged.charge_id
    assert world.charge_count() == 1


async def test_refusals_say_why(world: World, opened: Open) -> None:
    async with opened() as client:
        with pytest.raises(InvalidArgument) as malformed:
            await client.meter(workflow_id="not an id", **RUN)
        with pytest.raises(NotFound) as unknown:
            await client.meter(workflow_id="run-1", **RUN | {"agent": "agt_nobody"})
        await client.meter(workflow_id="run-1", **RUN)
        with pytest.raises(IdempotencyKeyReused) as reused:
            await client.meter(workflow_id="run-1", **RUN | {"input_tokens": 7})
        with pytest.raises(NotFound):
            await client.balance("cus_nobody")
    assert [violation.field for violation in malformed.value.field_violations] == ["event.workflow_id"]
    assert malformed.value.request_id
    assert unknown.value.metadata["agent_id"] == "agt_nobody"
    assert reused.value.reason == "IDEMPOTENCY_KEY_REUSED"
    async with opened(api_key="tsk_nobody_nothing") as stranger:
        with pytest.raises(Unauthenticated):
            await stranger.meter(workflow_id="run-2", **RUN)
    async with opened(api_key=world.server.ledger.operator.key) as operator:
        with pytest.raises(PermissionDenied):
            await operator.meter(workflow_id="run-2", **RUN)


async def test_a_short_outage_is_not_noticed(world: World, opened: Open) -> None:
    async with gate_to(world.server.address) as gate, opened(metering=gate.address) as client:
        await client.meter(workflow_id="run-1", **RUN)
        await gate.cut()
        during = asyncio.ensure_future(client.meter(workflow_id="run-2", **RUN))
        assert (await asyncio.wait([during], timeout=0.3))[0] == set()
        await gate.open()
        assert (await during).price_charged == PRICE


async def test_an_answer_that_is_lost_charges_once(world: World, opened: Open) -> None:
    patience = RetryPolicy(timeout=60, attempt_timeout=1, first_backoff=0.01)
    async with (
        gate_to(world.server.address) as gate,
        opened(metering=gate.address, retry=patience) as client,
    ):
        await client.meter(workflow_id="run-0", **RUN)
        gate.swallow_answers()
        during = asyncio.ensure_future(client.meter(workflow_id="run-1", **RUN))

        async def is_charged() -> bool:
            return world.charge_count() == 2

        await eventually(is_charged)
        await gate.cut()
        await gate.open()
        assert (await during).duplicate
    assert world.charge_count() == 2


async def test_a_long_outage_is_an_error_that_may_be_tried_again(world: World, opened: Open) -> None:
    async with (
        gate_to(world.server.address) as gate,
        opened(metering=gate.address, retry=IMPATIENT) as client,
    ):
        await gate.cut()
        with pytest.raises(Unavailable) as away:
            await client.meter(workflow_id="run-1", **RUN)
        verdicts = await client.meter_batch([UsageEvent(workflow_id="run-1", **RUN)])
    assert away.value.retryable
    assert isinstance(verdicts[0], Unavailable)


async def test_work_that_is_recorded_in_an_outage_is_charged_after_it(
    world: World, opened: Open, tmp_path: Path
) -> None:
    async with (
        gate_to(world.server.address) as gate,
        opened(metering=gate.address, buffer_path=tmp_path / "usage") as client,
    ):
        await gate.cut()
        for number in range(30):
            await client.record(workflow_id=f"run-{number}", **RUN)
        assert await client.flush(timeout=0.2) == 30
        assert client.client.stats.last_error is not None
        await gate.open()
        assert await client.flush(timeout=30) == 0
        stats = client.client.stats
    assert (stats.recorded, stats.delivered, stats.refused, stats.buffered) == (30, 30, 0, 0)
    assert world.charge_count() == 30
    assert await world.available() == 100_000_000 - 30 * RUN_MICROS


async def test_the_next_client_delivers_what_the_last_one_could_not(
    world: World, opened: Open, tmp_path: Path
) -> None:
    path = tmp_path / "usage"
    async with gate_to(world.server.address) as gate:
        async with opened(metering=gate.address, buffer_path=path) as client:
            await gate.cut()
            await client.record(workflow_id="run-1", **RUN)
            left = await client.close(timeout=0.2)
        assert [event.workflow_id for event in left] == ["run-1"]
    async with opened(buffer_path=path) as client:
        assert await client.flush(timeout=30) == 0
        assert client.client.stats.replayed == 1
    assert world.charge_count() == 1


async def test_metered_and_recorded_is_one_event(world: World, opened: Open) -> None:
    refused: list[Any] = []
    async with opened(on_refused=refused.append) as client:
        await client.meter(workflow_id="run-1", **RUN)
        await client.record(workflow_id="run-1", **RUN)
        await client.record(workflow_id="run-2", **RUN)
        assert await client.flush(timeout=30) == 0
        await client.record(workflow_id="run-2", **RUN)
        assert await client.flush(timeout=30) == 0
        again = await client.meter(workflow_id="run-2", **RUN)
        stats = client.client.stats
    assert again.duplicate
    assert (stats.delivered, refused) == (3, [])
    assert world.charge_count() == 2


async def test_what_is_refused_is_told_and_its_neighbours_are_charged(world: World, opened: Open) -> None:
    refused: list[Any] = []
    async with opened(on_refused=refused.append) as client:
        await client.record(workflow_id="run-1", **RUN | {"customer": "cus_nobody"})
        await client.record(workflow_id="run-2", **RUN)
        await client.record(workflow_id="run-3", **RUN, occur_time=datetime(2100, 1, 1, tzinfo=UTC))
        assert await client.flush(timeout=30) == 0
    assert {(one.event.workflow_id, type(one.error)) for one in refused} == {
        ("run-1", NotFound),
        ("run-3", InvalidArgument),
    }
    assert world.charge_count() == 1


async def test_closing_delivers_first(world: World, opened: Open) -> None:
    async with opened() as client:
        for number in range(700):
            await client.record(workflow_id=f"run-{number}", **RUN)
        assert await client.close(timeout=30) == []
    assert world.charge_count() == 700


async def test_closing_ends_calls_in_flight(world: World, opened: Open) -> None:
    async with gate_to(world.server.address) as gate, opened(metering=gate.address) as client:
        await client.meter(workflow_id="run-0", **RUN)
        gate.swallow_answers()
        during = asyncio.ensure_future(client.meter(workflow_id="run-1", **RUN))

        async def is_charged() -> bool:
            return world.charge_count() == 2

        await eventually(is_charged)
        await client.close(timeout=0)
        with pytest.raises(RuntimeError, match="closed"):
            await during


async def test_an_async_client_is_cancelled_like_anything_else(world: World, options: Options) -> None:
    async with (
        gate_to(world.server.address) as gate,
        AsyncClient(**options | {"metering": gate.address}) as client,
    ):
        await client.meter(workflow_id="run-0", **RUN)
        gate.swallow_answers()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.meter(workflow_id="run-1", **RUN)
        await gate.cut()
        await gate.open()
        assert (await client.meter(workflow_id="run-1", **RUN)).price_charged == PRICE
    assert world.charge_count() == 2
