"""A run with the asynchronous client, against a server of a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from services.kit import errors as server
from services.kit.status import to_status_proto
from tallystick import AsyncClient, AsyncRun, InsufficientCredits, Money, RetryPolicy, Unavailable
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tallystick.metering.v1.metering_service_pb2_grpc import (
    MeteringServiceServicer,
    add_MeteringServiceServicer_to_server,
)
from tests.support.waiting import eventually
from tests.unit.sdk.support import EVENT, KEY, authorized, charged, extended, released, settled
from tests.unit.sdk.test_run import AWAY, AgentError

RUN: Any = EVENT | {"max_cost": "0.50"}
QUICK = RetryPolicy(first_backoff=0.001, max_backoff=0.002)
Answer = Callable[[], Awaitable[object]]


class Metering(MeteringServiceServicer):
    """Answers what it is told to, else success; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.answers: dict[str, list[server.TallystickError | Answer]] = {}
        self.usual: dict[str, Any] = {
            "Authorize": authorized(end=1_000),
            "Extend": extended(number=2, end=2_000),
            "Settle": settled(),
            "Release": released(),
        }

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]

    def last(self, name: str) -> Any:
        return [request for asked, request in self.asked if asked == name][-1]

    async def _answer(self, name: str, request: Any, context: Any) -> Any:
        self.asked.append((name, request))
        waiting = self.answers.get(name)
        if waiting:
            answer = waiting.pop(0)
            if isinstance(answer, server.TallystickError):
                await context.abort_with_status(rpc_status.to_status(to_status_proto(answer)))
            else:
                await answer()
        return self.usual[name]

    async def Authorize(self, request: Any, context: Any) -> Any:
        return await self._answer("Authorize", request, context)

    async def Extend(self, request: Any, context: Any) -> Any:
        return await self._answer("Extend", request, context)

    async def Settle(self, request: Any, context: Any) -> Any:
        return await self._answer("Settle", request, context)

    async def Release(self, request: Any, context: Any) -> Any:
        return await self._answer("Release", request, context)

    async def MeterBatch(self, request: Any, context: Any) -> Any:
        self.asked.append(("MeterBatch", request))
        return metering_service_pb2.MeterBatchResponse(verdicts=[charged() for _ in request.events])


@pytest.fixture
def metering() -> Metering:
    return Metering()  # type: ignore[abstract]  # the others are not called


@pytest.fixture
async def client(metering: Metering) -> AsyncIterator[AsyncClient]:
    serving = grpc.aio.server()
    add_MeteringServiceServicer_to_server(metering, serving)
    port = serving.add_insecure_port("127.0.0.1:0")
    await serving.start()
    try:
        async with AsyncClient(KEY, metering=f"127.0.0.1:{port}", retry=QUICK) as made:
            yield made
    finally:
        await serving.stop(None)


async def test_a_run_is_authorized_and_settled(metering: Metering, client: AsyncClient) -> None:
    async with client.run(**RUN) as run:
        assert run.reservation is not None
        run.tokens(input=10, output=2, model="gpt")
        run.tool("search")
        run.succeed({"ticket": 4711})
    assert metering.names() == ["Authorize", "Settle"]
    said = metering.last("Settle")
    assert (said.token, said.event.outcome) == ("rst_1", usage_pb2.OUTCOME_SUCCESS)
    assert said.event.usage == usage_pb2.Usage(model="gpt", input_tokens=10, output_tokens=2)
    assert run.result is not None
    assert run.result.metered.price_charged == Money("USD", 7)
    assert run.settlement == run.result.settlement


async def test_a_refused_run_does_no_work(metering: Metering, client: AsyncClient) -> None:
    metering.answers["Authorize"] = [server.FailedPrecondition("no money", reason="INSUFFICIENT_CREDITS")]
    with pytest.raises(InsufficientCredits):
        async with client.run(**RUN):
            raise AssertionError
    assert metering.names() == ["Authorize"]


async def test_an_exception_gives_the_reservation_back(metering: Metering, client: AsyncClient) -> None:
    run = client.run(**RUN)

    async def agent() -> None:
        async with run:
            run.tokens(input=10)
            raise AgentError

    with pytest.raises(AgentError):
        await agent()
    assert metering.names() == ["Authorize", "Release"]
    assert run.settlement is not None
    assert run.settlement.state == "released"


async def test_a_release_that_fails_is_nobodys_business(metering: Metering, client: AsyncClient) -> None:
    metering.answers["Release"] = [AWAY]
    with pytest.raises(AgentError):
        async with client.run(**RUN):
            raise AgentError


async def test_a_cancelled_run_is_released(metering: Metering, client: AsyncClient) -> None:
    begun = asyncio.Event()

    async def agent() -> None:
        async with client.run(**RUN):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(agent())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert metering.names() == ["Authorize", "Release"]


async def test_who_is_cancelled_at_the_end_loses_nothing(metering: Metering, client: AsyncClient) -> None:
    asked = asyncio.Event()

    async def never() -> None:
        asked.set()
        await asyncio.Event().wait()

    metering.answers["Settle"] = [never]
    runs: list[AsyncRun] = []

    async def agent() -> None:
        async with client.run(**RUN) as run:
            runs.append(run)
            run.tokens(input=10)

    task = asyncio.create_task(agent())
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert runs[0].recorded
    assert await client.flush(timeout=30) == 0
    assert metering.names() == ["Authorize", "Settle", "Settle"]
    assert metering.last("Settle").event.usage.input_tokens == 10
    assert client.stats.delivered == 1


async def test_finished_work_is_settled_later_when_the_servers_are_away(
    metering: Metering, client: AsyncClient
) -> None:
    metering.answers["Settle"] = [AWAY]
    async with client.run(**RUN) as run:
        run.tokens(input=10)
    assert (run.recorded, run.result) == (True, None)
    assert await client.flush(timeout=30) == 0
    first, later = (request for name, request in metering.asked if name == "Settle")
    assert (later.token, later.event.usage) == (first.token, first.event.usage)
    assert later.event.HasField("occur_time")


async def test_without_the_servers_a_run_begins_only_if_asked_for(
    metering: Metering, client: AsyncClient
) -> None:
    metering.answers["Authorize"] = [AWAY, AWAY]
    with pytest.raises(Unavailable):
        async with client.run(**RUN):
            raise AssertionError
    async with client.run(**RUN, when_unavailable="run") as run:
        assert run.reservation is None
        await run.extend(max_cost="2")
        run.tokens(input=10)
    assert await client.flush(timeout=30) == 0
    assert metering.names() == ["Authorize", "Authorize", "MeterBatch"]
    assert metering.last("MeterBatch").events[0].usage.input_tokens == 10


async def test_a_reservation_is_raised_when_asked_for(metering: Metering, client: AsyncClient) -> None:
    async with client.run(**RUN) as run:
        await run.extend(max_cost="2", ttl=timedelta(minutes=1))
    asked = metering.last("Extend")
    assert (asked.token, asked.amount.amount_micros, asked.ttl.seconds) == ("rst_1", 2_000_000, 60)
    assert metering.last("Settle").token == "rst_2"


async def test_a_long_run_keeps_its_reservation(metering: Metering, client: AsyncClient) -> None:
    ended = server.FailedPrecondition("it has ended", reason="RESERVATION_ENDED")
    metering.answers["Extend"] = [server.Unavailable("away", retry_after=timedelta(0)), _at_once, ended]

    async def is_over() -> bool:
        return metering.names().count("Extend") == 3

    async with client.run(**RUN, ttl=timedelta(milliseconds=60)):
        await eventually(is_over)
    tokens = [request.token for name, request in metering.asked if name == "Extend"]
    assert tokens == ["rst_1", "rst_1", "rst_2"]
    assert metering.last("Settle").token == "rst_2"


async def _at_once() -> None:
    """The usual answer, at once."""


async def test_nothing_is_kept_alive_after_the_end(metering: Metering, client: AsyncClient) -> None:
    def keepers() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if task.get_name() == "tallystick-keepalive"]

    async with client.run(**RUN):
        (keeper,) = keepers()
    await asyncio.wait([keeper], timeout=30)
    assert keeper.cancelled()
    async with client.run(**RUN, keep_alive=False):
        assert keepers() == []


async def test_a_run_is_used_once(metering: Metering, client: AsyncClient) -> None:
    run = client.run(**RUN)
    with pytest.raises(RuntimeError, match="not begun"):
        run.tokens(input=1)
    async with run:
        with pytest.raises(RuntimeError, match="used once"):
            await run.__aenter__()
    with pytest.raises(RuntimeError, match="over"):
        run.tool("search")
    with pytest.raises(RuntimeError, match="over"):
        await run.extend(max_cost="1")
    with pytest.raises(RuntimeError, match="over"):
        await run.__aexit__(None, None, None)
    assert metering.names() == ["Authorize", "Settle"]


async def test_many_runs_at_once(metering: Metering, client: AsyncClient) -> None:
    async def agent(number: int) -> None:
        async with client.run(**RUN | {"workflow_id": f"run-{number}"}) as run:
            run.tokens(input=number)

    await asyncio.gather(*(agent(number) for number in range(50)))
    said = {
        (request.event.workflow_id, request.event.usage.input_tokens)
        for name, request in metering.asked
        if name == "Settle"
    }
    assert said == {(f"run-{number}", number) for number in range(50)}
