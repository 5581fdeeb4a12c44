"""A host that asks before it runs: what is refused is not settled, and what is done is seen through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count, islice
from typing import Any

import grpc
import pytest

from sandbox import calls
from sandbox import runs as runs_module
from sandbox.replay import (
    CAPPED_CUSTOMER,
    ONE_DOLLAR_CUSTOMER,
    RUN_ACTION,
    ReplayError,
    Shift,
    Work,
    customer_of,
)
from sandbox.replies import INSUFFICIENT_CREDITS, REFUSALS, Replies
from sandbox.runs import MAX_IN_FLIGHT, RunHost
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    TallystickError,
    Unavailable,
)
from services.kit.status import to_grpc_status
from tallystick.common.v1.money_pb2 import Money
from tallystick.metering.v1 import metering_service_pb2 as pb
from tallystick.metering.v1.metering_service_pb2_grpc import (
    MeteringServiceServicer,
    MeteringServiceStub,
    add_MeteringServiceServicer_to_server,
)
from tallystick.metering.v1.outcome_pb2 import DEFERRED_OUTCOME_STATE_PENDING, DeferredOutcome
from tallystick.metering.v1.reservation_pb2 import Balance, Reservation, Settlement
from tallystick.metering.v1.usage_pb2 import OUTCOME_PENDING, OUTCOME_SUCCESS, UsageEvent
from tests.unit.sandbox.work import work

SHIFT = Shift(by_us=0, now_us=0)
Context = grpc.aio.ServicerContext[Any, Any]


def usd(micros: int) -> Money:
    return Money(currency_code="USD", amount_micros=micros)


def of_customer(customer_id: str, number: int) -> list[str]:
    """So many workflows of a customer."""
    named = (f"run-{customer_id}-{each}" for each in count())
    return list(islice((name for name in named if customer_of(name) == customer_id), number))


# Workflows of customers who are never refused.
OTHERS = [name for name in (f"run-{number}" for number in range(500)) if "replay-0" in customer_of(name)]


def run(workflow_id: str, number: int = 1, tokens: int = 1, *, pending: bool = False) -> Work:
    return work(
        workflow_id,
        number,
        tokens,
        outcome=OUTCOME_PENDING if pending else OUTCOME_SUCCESS,
        action_type=RUN_ACTION,
    )


class FakeMetering(MeteringServiceServicer):
    """A token costs a micro, and an open outcome holds another. `credits` bounds a customer; others have all.

    `misbehave` holds, by method, what its next calls answer instead; None is no misbehaviour.
    """

    def __init__(self) -> None:
        self.misbehave: dict[str, list[TallystickError | None]] = {}
        self.credits: dict[str, int] = {}
        self.calls: list[tuple[str, str]] = []
        self.held: dict[str, int] = {}
        # How often somebody has to look before what is held is back.
        self.looks = 0
        self.charged: dict[str, int] = {}
        self.refused: set[str] = set()
        self.in_flight = self.most_in_flight = 0
        # The first calls are answered when so many have come.
        self.wanted_in_flight = 1
        self.are_in_flight = asyncio.Event()

    async def Authorize(self, request: pb.AuthorizeRequest, context: Context) -> pb.AuthorizeResponse:
        name, customer_id = request.workflow_id, request.customer_id
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.in_flight >= self.wanted_in_flight:
            self.are_in_flight.set()
        try:
            await asyncio.wait_for(self.are_in_flight.wait(), timeout=10)
            await self._begin("Authorize", name, context)
            if name in self.charged:
                error = FailedPrecondition("is settled", reason="RESERVATION_ENDED")
                await context.abort_with_status(to_grpc_status(error))
            free = self.credits.get(customer_id, 10**6) - self.held.get(customer_id, 0)
            if name in self.refused or request.usage.input_tokens > free:
                self.refused.add(name)
                error = FailedPrecondition("is short", reason=INSUFFICIENT_CREDITS)
                await context.abort_with_status(to_grpc_status(error))
        finally:
            self.in_flight -= 1
        return pb.AuthorizeResponse(reservation=Reservation(token=name))

    async def Settle(self, request: pb.SettleRequest, context: Context) -> pb.SettleResponse:
        await self._begin("Settle", request.token, context)
        return pb.SettleResponse(metered=self._charge(request.event), settlement=Settlement())

    async def Meter(self, request: pb.MeterRequest, context: Context) -> pb.MeterResponse:
        await self._begin("Meter", request.event.workflow_id, context)
        return pb.MeterResponse(metered=self._charge(request.event))

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        await self._begin("Release", request.token, context)
        return pb.ReleaseResponse()

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> pb.GetBalanceResponse:
        held = self.held.get(request.customer_id, 0)
        self.looks -= 1
        if self.looks <= 0:
            self.held.clear()
        return pb.GetBalanceResponse(balance=Balance(held=usd(held)))

    def names(self, method: str) -> list[str]:
        return [name for called, name in self.calls if called == method]

    async def _begin(self, method: str, name: str, context: Context) -> None:
        self.calls.append((method, name))
        trouble = self.misbehave.get(method, [])
        error = trouble.pop(0) if trouble else None
        if error is not None:
            await context.abort_with_status(to_grpc_status(error))

    def _charge(self, event: UsageEvent) -> pb.MeteredEvent:
        name, customer_id, price = event.workflow_id, event.customer_id, event.usage.input_tokens
        duplicate = name in self.charged
        answer = pb.MeteredEvent(charge_id=f"ch_{name}", price_charged=usd(price), duplicate=duplicate)
        if not duplicate:
            self.charged[name] = price
            if customer_id in self.credits:
                self.credits[customer_id] -= price
            if event.outcome == OUTCOME_PENDING:
                self.held[customer_id] = 1
                answer.outcome_id = f"out_{name}"
                answer.deferred_outcome.CopyFrom(DeferredOutcome(state=DEFERRED_OUTCOME_STATE_PENDING))
        return answer


@asynccontextmanager
async def served() -> AsyncIterator[tuple[FakeMetering, RunHost]]:
    metering = FakeMetering()  # type: ignore[abstract]  # the host calls these methods only
    server = grpc.aio.server()
    add_MeteringServiceServicer_to_server(metering, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield metering, RunHost(MeteringServiceStub(channel))
    finally:
        await server.stop(None)


async def replay(host: RunHost, replies: Replies, pieces: Iterable[Work]) -> None:
    await host.replay(pieces, SHIFT, replies.hear)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_wait", lambda attempt, asked: timedelta())
    monkeypatch.setattr(runs_module, "_POLL_SECONDS", 0.0)


async def test_many_runs_go_at_once_and_each_is_settled() -> None:
    replies = Replies()
    names = OTHERS[: 2 * MAX_IN_FLIGHT]

    async with served() as (metering, host):
        metering.wanted_in_flight = MAX_IN_FLIGHT
        await replay(host, replies, [run(name, number) for number, name in enumerate(names)])

    assert metering.charged.keys() == replies.settled == set(names)
    assert sorted(metering.names("Authorize")) == sorted(metering.names("Settle")) == sorted(names)
    assert metering.most_in_flight == MAX_IN_FLIGHT


@pytest.mark.parametrize("customer_id", [ONE_DOLLAR_CUSTOMER, CAPPED_CUSTOMER])
async def test_runs_of_who_may_be_refused_go_one_after_the_other_in_order(customer_id: str) -> None:
    replies = Replies()
    names = of_customer(customer_id, 40)

    async with served() as (metering, host):
        metering.credits = {customer_id: 100}
        # The 6th and 7th find no room, and the last ones none at all.
        tokens = [15] * 5 + [30, 26, 25] + [1] * 32
        mixed = [run(OTHERS[0])]
        for number, (name, each) in enumerate(zip(names, tokens, strict=True), start=2):
            mixed += [run(name, number, each), run(OTHERS[number], number)]
        await replay(host, replies, mixed)

    order = [call for call in metering.calls if call[1] in set(names)]
    expected: list[tuple[str, str]] = []
    for name in names:
        expected.append(("Authorize", name))
        if name in metering.charged:
            expected.append(("Settle", name))
    assert order == expected
    assert replies.refused_runs(*REFUSALS) == names[5:7] + names[8:]
    assert set(OTHERS[2:42]) <= metering.charged.keys()


async def test_a_refused_run_is_neither_settled_nor_asked_for_again() -> None:
    replies = Replies()

    async with served() as (metering, host):
        metering.credits = {customer_of("run-1"): 0}
        await replay(host, replies, [run("run-1")])

    assert metering.calls == [("Authorize", "run-1")]
    assert replies.refused_runs(INSUFFICIENT_CREDITS) == ["run-1"]


async def test_a_second_replay_hears_the_same() -> None:
    replies = Replies()
    pieces = [run("run-1", 1, 5), run("run-2", 2, 7)]

    async with served() as (metering, host):
        metering.credits = {customer_of("run-2"): 6}
        await replay(host, replies, pieces)
        await replay(host, replies, pieces)

    # It was authorized and settled before, so it is reported as what it is: done.
    assert metering.names("Meter") == ["run-1"]
    assert (replies.duplicates, replies.refusals, replies.answers) == (1, 2, 4)
    assert replies.refused_runs(*REFUSALS) == ["run-2"]
    assert replies.consistent


async def test_a_repeated_line_goes_after_the_first_was_settled() -> None:
    replies = Replies()

    async with served() as (metering, host):
        await replay(host, replies, [run("run-1", 1), run("run-1", 2), run("run-2", 3)])

    assert metering.calls[-2:] == [("Authorize", "run-1"), ("Meter", "run-1")]
    assert (replies.duplicates, len(replies.prices)) == (1, 2)


async def test_every_call_is_made_again_until_it_is_answered() -> None:
    replies = Replies()
    away = Unavailable("away")

    async with served() as (metering, host):
        metering.misbehave = {"Authorize": [away, away], "Settle": [away, InvalidArgument.of("event", "bad")]}
        metering.misbehave["Release"] = [away]
        await replay(host, replies, [run("run-1")])

    assert [method for method, _ in metering.calls] == ["Authorize"] * 3 + ["Settle"] * 2 + ["Release"] * 2


async def test_what_metering_does_not_take_is_a_bad_line_and_nothing_stays_reserved() -> None:
    replies = Replies()

    async with served() as (metering, host):
        metering.misbehave = {
            "Authorize": [InvalidArgument.of("usage", "too much"), None],
            "Settle": [AlreadyExists("other content", reason="IDEMPOTENCY_KEY_REUSED")],
        }
        await replay(host, replies, [run("run-1", 1)])
        await replay(host, replies, [run("run-2", 2)])

    assert [line.reason for line in replies.bad_lines.values()] == [
        "refused, INVALID_ARGUMENT: usage: too much",
        "refused, ALREADY_EXISTS: other content",
    ]
    assert metering.calls[1:] == [("Authorize", "run-2"), ("Settle", "run-2"), ("Release", "run-2")]
    assert not replies.refused


@pytest.mark.parametrize("method", ["Authorize", "Settle"])
async def test_what_is_not_about_the_run_ends_the_replay(method: str) -> None:
    async with served() as (metering, host):
        metering.misbehave = {method: [Internal("defect")]}
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await replay(host, Replies(), [run("run-1")])

    assert raised.value.code() == grpc.StatusCode.INTERNAL
    assert "Release" not in dict(metering.calls)


async def test_a_service_that_stays_away_ends_the_replay_with_the_line() -> None:
    async with served() as (metering, host):
        metering.misbehave = {"Authorize": [Unavailable("database is away")] * calls.MAX_ATTEMPTS}
        with pytest.raises(ReplayError, match=r"trace\.csv:7 .*database is away"):
            await replay(host, Replies(), [run("run-1", 7)])


async def test_who_is_short_waits_for_what_an_open_outcome_holds() -> None:
    replies = Replies()
    names = of_customer(ONE_DOLLAR_CUSTOMER, 3)

    async with served() as (metering, host):
        metering.credits = {ONE_DOLLAR_CUSTOMER: 10}
        metering.looks = 3
        # What is held for the first run would be missing to the second.
        pieces = [run(names[0], 1, 4, pending=True), run(names[1], 2, 6), run(names[2], 3, 1)]
        await replay(host, replies, pieces)

    assert metering.charged.keys() == set(names[:2])
    assert replies.refused_runs(*REFUSALS) == names[2:]


async def test_an_outcome_that_never_expires_ends_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "HELD_SECONDS", 0.05)
    (name,) = of_customer(ONE_DOLLAR_CUSTOMER, 1)

    async with served() as (metering, host):
        metering.looks = 10**9
        with pytest.raises(ReplayError, match=r"trace\.csv:4: what is held .* does not come back"):
            await replay(host, Replies(), [run(name, 4, pending=True)])
