"""An agent host sees every event through: it tries again where that can help, and only there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from sandbox import calls
from sandbox.host import BATCH_SIZE, MAX_IN_FLIGHT, AgentHost
from sandbox.replay import ReplayError, Shift
from sandbox.replies import Replies
from services.kit.errors import PermissionDenied, ResourceExhausted, Unavailable
from services.kit.status import to_grpc_status
from tallystick.common.v1.error_reason_pb2 import (
    ERROR_REASON_CHARGE_PENDING,
    ERROR_REASON_IDEMPOTENCY_KEY_REUSED,
)
from tallystick.common.v1.item_error_pb2 import ItemError
from tallystick.common.v1.money_pb2 import Money
from tallystick.metering.v1.metering_service_pb2 import (
    MeterBatchRequest,
    MeterBatchResponse,
    MeteredEvent,
    MeterVerdict,
)
from tallystick.metering.v1.metering_service_pb2_grpc import (
    MeteringServiceServicer,
    MeteringServiceStub,
    add_MeteringServiceServicer_to_server,
)
from tallystick.metering.v1.usage_pb2 import UsageEvent
from tests.unit.sandbox.work import work

# The fixture below takes it away.
WAIT = calls._wait
SHIFT = Shift(by_us=0, now_us=0)


class FakeMetering(MeteringServiceServicer):
    """Charges one micro per input token, once per workflow; `misbehave` may raise or answer instead."""

    def __init__(self, misbehave: list[grpc.Status | None]) -> None:
        self.misbehave = misbehave
        self.batches: list[list[str]] = []
        self.charged: dict[str, int] = {}
        self.pending: set[str] = set()
        self.in_flight = self.most_in_flight = 0

    async def MeterBatch(
        self, request: MeterBatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> MeterBatchResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self.batches.append([event.workflow_id for event in request.events])
            trouble = self.misbehave.pop(0) if self.misbehave else None
            if isinstance(trouble, grpc.Status):
                await context.abort_with_status(trouble)
            return MeterBatchResponse(verdicts=[self._verdict(event) for event in request.events])
        finally:
            self.in_flight -= 1

    def _verdict(self, event: UsageEvent) -> MeterVerdict:
        name, price = event.workflow_id, event.usage.input_tokens
        if name in self.pending:
            self.pending.remove(name)
            return MeterVerdict(
                error=ItemError(
                    code=14,
                    reason=ERROR_REASON_CHARGE_PENDING,
                    message="charged soon",
                    retry_delay=Duration(nanos=1),
                )
            )
        if self.charged.get(name, price) != price:
            return MeterVerdict(
                error=ItemError(
                    code=6, reason=ERROR_REASON_IDEMPOTENCY_KEY_REUSED, message="other content before"
                )
            )
        duplicate = name in self.charged
        self.charged[name] = price
        return MeterVerdict(
            metered=MeteredEvent(
                charge_id=f"ch_{name}",
                price_charged=Money(currency_code="USD", amount_micros=price),
                duplicate=duplicate,
            )
        )


@asynccontextmanager
async def served(*misbehave: grpc.Status | None) -> AsyncIterator[tuple[FakeMetering, AgentHost]]:
    metering = FakeMetering(list(misbehave))  # type: ignore[abstract]  # the host calls one method only
    server = grpc.aio.server()
    add_MeteringServiceServicer_to_server(metering, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield metering, AgentHost(MeteringServiceStub(channel))
    finally:
        await server.stop(None)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_wait", lambda attempt, asked: timedelta())


@pytest.mark.parametrize(
    ("attempt", "asked", "least", "most"),
    [
        (0, timedelta(0), timedelta(milliseconds=100), timedelta(milliseconds=125)),
        (3, timedelta(0), timedelta(milliseconds=800), timedelta(seconds=1)),
        (3, timedelta(seconds=4), timedelta(seconds=4), timedelta(seconds=5)),
        (14, timedelta(0), timedelta(seconds=5), timedelta(seconds=6.25)),
    ],
)
def test_waits_grow_to_a_bound_and_are_never_shorter_than_asked(
    attempt: int, asked: timedelta, least: timedelta, most: timedelta
) -> None:
    assert all(least <= WAIT(attempt, asked) <= most for _ in range(100))


async def test_everything_is_reported_in_bounded_batches_few_at_a_time() -> None:
    replies = Replies()
    everything = [work(f"w{number}", number) for number in range(BATCH_SIZE * 7 + 1)]

    async with served() as (metering, host):
        await host.replay(everything, SHIFT, replies.hear)

    assert sorted(map(len, metering.batches)) == [1, *[BATCH_SIZE] * 7]
    assert metering.charged.keys() == {piece.workflow_id for piece in everything}
    assert 1 <= metering.most_in_flight <= MAX_IN_FLIGHT
    assert len(replies.prices) == len(everything)
    assert replies.charges_of == {"org_azure": len(everything)}


async def test_a_busy_or_absent_service_is_asked_again_until_it_answers() -> None:
    replies = Replies()
    busy = to_grpc_status(ResourceExhausted("busy"))
    away = to_grpc_status(Unavailable("away"))

    async with served(busy, away, busy) as (metering, host):
        await host.replay([work("w1"), work("w2")], SHIFT, replies.hear)

    assert len(metering.batches) == 4
    assert len(replies.prices) == 2
    assert replies.consistent


async def test_a_refusal_that_will_not_pass_is_raised_at_once() -> None:
    async with served(to_grpc_status(PermissionDenied("no"))) as (metering, host):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await host.replay([work("w1")], SHIFT, Replies().hear)

    assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert len(metering.batches) == 1


async def test_a_service_that_stays_away_ends_the_replay_with_the_line_and_the_cause() -> None:
    away = to_grpc_status(Unavailable("database is away"))

    async with served(*[away] * calls.MAX_ATTEMPTS) as (metering, host):
        with pytest.raises(ReplayError, match=r"trace\.csv:7 .*database is away"):
            await host.replay([work("w1", 7)], SHIFT, Replies().hear)

    assert len(metering.batches) == calls.MAX_ATTEMPTS


async def test_only_the_events_that_are_not_charged_yet_are_sent_again() -> None:
    replies = Replies()

    async with served() as (metering, host):
        metering.pending = {"w2"}
        await host.replay([work("w1", 1), work("w2", 2), work("w3", 3)], SHIFT, replies.hear)

    assert metering.batches == [["w1", "w2", "w3"], ["w2"]]
    assert set(replies.prices) == {"ch_w1", "ch_w2", "ch_w3"}


async def test_a_repeated_line_is_sent_after_the_first_one_was_charged() -> None:
    replies = Replies()
    lines = [work("w1", 1), work("w1", 2), work("w1", 3, input_tokens=9), work("w2", 4)]

    async with served() as (metering, host):
        await host.replay(lines, SHIFT, replies.hear)

    assert metering.batches == [["w1", "w2"], ["w1", "w1"]]
    assert replies.duplicates == 1
    assert [(line.number, line.reason) for line in replies.bad_lines.values()] == [
        (3, "refused, ALREADY_EXISTS: other content before")
    ]
