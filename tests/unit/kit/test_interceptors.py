"""What happens around an RPC, seen from outside: a real server, a real channel."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.kit import interceptors, log
from services.kit.auth import current_principal
from services.kit.errors import InvalidArgument, NotFound
from tests.support.waiting import eventually
from tests.unit.kit.support import (
    HOST,
    HOST_KEY,
    MEMBER_KEY,
    REQUESTS,
    RESPONSES,
    UNARY,
    UNKNOWN_KEY,
    EchoServicer,
    running,
)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def read_all(call: Any) -> list[str]:
    return [message.value async for message in call]


async def error_info(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    """The reason and the metadata of an error."""
    status = rpc_status.from_call(Trailers(error))
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == "tallystick"
    return info.reason, dict(info.metadata)


class Trailers:
    """An error, as grpc_status reads calls."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.details, self.trailing_metadata = error.code, error.details, error.trailing_metadata


def finished(logs: list[Any]) -> dict[str, Any]:
    """The one line that says how an RPC ended."""
    [line] = [dict(entry) for entry in logs if entry["event"] == "rpc.finished"]
    return line


async def test_all_four_shapes_are_served() -> None:
    async with running(EchoServicer()) as server:
        client = server.client()
        assert (await client.echo("a")).value == "a"
        assert await read_all(client.repeat("b")) == ["b", "b", "b"]
        assert (await client.join("c", "d")).value == "cd"
        assert await read_all(client.chat("e", "f")) == ["E", "F"]


async def test_an_unheard_method_is_unimplemented() -> None:
    async with running(EchoServicer()) as server:
        call: Any = server.channel.unary_unary("/tallystick.testing.v1.EchoService/Unheard")
        assert (await failure(call(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("key", "code", "reason"),
    [
        (None, grpc.StatusCode.UNAUTHENTICATED, "API_KEY_MISSING"),
        (UNKNOWN_KEY, grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID"),
        (MEMBER_KEY, grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED"),
    ],
)
async def test_who_may_not_is_refused_in_every_shape(
    key: str | None, code: grpc.StatusCode, reason: str
) -> None:
    async with running(EchoServicer()) as server:
        client = server.client(key)
        for call in (client.echo(), client.join("x"), read_all(client.repeat()), read_all(client.chat("x"))):
            error = await failure(call)
            assert error.code() is code
            assert (await error_info(error))[0] == reason


async def test_the_refusal_names_role_and_method() -> None:
    async with running(EchoServicer()) as server:
        _, metadata = await error_info(await failure(server.client(MEMBER_KEY).echo()))
        assert (metadata["role"], metadata["method"]) == ("member", UNARY)


@pytest.mark.parametrize("value", ["", "Basic abc", "Bearer", HOST_KEY])
async def test_only_bearer_keys_count(value: str) -> None:
    async with running(EchoServicer()) as server:
        client = server.client()
        client.metadata = (("authorization", value),)
        assert (await failure(client.echo())).code() is grpc.StatusCode.UNAUTHENTICATED
        client.metadata = (("authorization", f"bEARER {HOST_KEY}"),)
        assert (await client.echo()).value == "x"


async def test_a_method_without_a_declaration_is_nobodys() -> None:
    async with running(EchoServicer()) as server:
        error = await failure(server.client().forgotten())
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_handlers_know_their_caller_and_calls_do_not_mix() -> None:
    class Asking(EchoServicer):
        async def Echo(self, request: StringValue, context: Any) -> StringValue:
            await asyncio.sleep(0)
            assert current_principal() is HOST
            return StringValue(value=f"{request.value} {log.request_id.get()}")

        async def Repeat(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
            yield StringValue(value=current_principal().api_key_id)

    async with running(Asking()) as server:
        client = server.client()
        answers = await asyncio.gather(*(client.echo(str(number)) for number in range(20)))
        assert len({answer.value.split()[1] for answer in answers}) == 20
        assert await read_all(client.repeat()) == ["key_host"]


async def test_the_callers_request_id_is_kept_if_it_is_one() -> None:
    class Telling(EchoServicer):
        async def Echo(self, request: StringValue, context: Any) -> StringValue:
            return StringValue(value=log.request_id.get())

    async with running(Telling()) as server:
        client = server.client()
        authorization = client.metadata
        client.metadata = (*authorization, ("x-request-id", "run:7"))
        assert (await client.echo()).value == "run:7"
        client.metadata = (*authorization, ("x-request-id", 'x" injected'))
        assert len((await client.echo()).value) == 32


async def test_a_typed_error_arrives_with_its_details() -> None:
    class Refusing(EchoServicer):
        async def Echo(self, request: StringValue, context: Any) -> StringValue:
            raise InvalidArgument.of("value", "is not to our taste")

        async def Repeat(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
            yield request
            raise NotFound("no more", reason="CHARGE_NOT_FOUND", metadata={"charge_id": "ch_1"})

    async with running(Refusing()) as server:
        client = server.client()
        error = await failure(client.echo())
        assert (error.code(), error.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "value: is not to our taste",
        )
        status = rpc_status.from_call(Trailers(error))
        bad_request = error_details_pb2.BadRequest()
        assert any(detail.Unpack(bad_request) for detail in status.details)
        assert [one.field for one in bad_request.field_violations] == ["value"]

        call = client.repeat()
        assert (await call.read()).value == "x"
        error = await failure(call.read())
        assert error.code() is grpc.StatusCode.NOT_FOUND
        reason, metadata = await error_info(error)
        assert (reason, metadata["charge_id"]) == ("CHARGE_NOT_FOUND", "ch_1")


@pytest.mark.parametrize(
    "raised", [ValueError("secret"), psycopg.errors.UndefinedTable("secret"), NotImplementedError("secret")]
)
async def test_a_defect_tells_the_log_and_not_the_caller(raised: Exception) -> None:
    class Broken(EchoServicer):
        async def Echo(self, request: StringValue, context: Any) -> StringValue:
            raise raised

        async def Repeat(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
            if request.value:
                raise raised
            yield request

    async with running(Broken()) as server:
        client = server.client()
        for call in (client.echo, lambda: read_all(client.repeat())):
            with capture_logs() as logs:
                error = await failure(call())
            assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
            assert "secret" not in str(error.trailing_metadata())
            reason, metadata = await error_info(error)
            assert reason == "INTERNAL"
            assert len(metadata["request_id"]) == 32
            [line] = [entry for entry in logs if entry["event"] == "rpc.failed"]
            assert line["exc_info"] is raised
            assert finished(logs)["code"] == "INTERNAL"


async def test_a_dependency_that_is_away_is_unavailable() -> None:
    class Lonely(EchoServicer):
        async def Echo(self, request: StringValue, context: Any) -> StringValue:
            raise psycopg.OperationalError("secret")

    async with running(Lonely()) as server:
        with capture_logs() as logs:
            error = await failure(server.client().echo())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        status = rpc_status.from_call(Trailers(error))
        assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
        assert "secret" not in str(error)
        assert [entry["detail"] for entry in logs if entry["event"] == "rpc.dependency_failed"] == ["secret"]


async def test_a_handler_may_abort_by_itself() -> None:
    class Aborting(EchoServicer):
        async def Echo(self, request: StringValue, context: Any) -> StringValue:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "mine")
            raise AssertionError

    async with running(Aborting()) as server:
        with capture_logs() as logs:
            error = await failure(server.client().echo())

            async def recorded() -> bool:
                return any(entry["event"] == "rpc.finished" for entry in logs)

            # Its own abort has answered before we know how it ended.
            await eventually(recorded)
        assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "mine")
        assert finished(logs)["code"] == "OUT_OF_RANGE"


async def test_what_is_no_message_is_an_invalid_argument() -> None:
    async with running(EchoServicer()) as server:
        metadata = (("authorization", f"Bearer {HOST_KEY}"),)
        unary: Any = server.channel.unary_unary(UNARY)
        stream: Any = server.channel.unary_stream(RESPONSES)
        for call in (
            unary(b"\xff\xff", metadata=metadata),
            read_all(stream(b"\xff\xff", metadata=metadata)),
        ):
            assert (await failure(call)).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_strangers_request_is_not_parsed() -> None:
    async with running(EchoServicer()) as server:
        call: Any = server.channel.unary_unary(UNARY)
        assert (await failure(call(b"\xff\xff"))).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_response_of_the_wrong_type_is_a_defect() -> None:
    class Confused(EchoServicer):
        async def Echo(self, request: StringValue, context: Any) -> Any:
            return 5

    async with running(Confused()) as server:
        error = await failure(server.client().echo())
        assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")


class Waiting(EchoServicer):
    """Handlers that wait until they are let go, and say what became of them."""

    def __init__(self) -> None:
        self.entered = asyncio.Semaphore(0)
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def _wait(self) -> None:
        self.entered.release()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Echo(self, request: StringValue, context: Any) -> StringValue:
        await self._wait()
        return request

    async def Repeat(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield request
        await self._wait()


async def test_calls_in_flight_are_bounded_in_every_shape() -> None:
    servicer = Waiting()
    async with running(servicer, max_in_flight=2) as server:
        client = server.client()
        unary = asyncio.ensure_future(client.echo("unary"))
        stream = asyncio.ensure_future(read_all(client.repeat("stream")))
        for _ in range(2):
            await servicer.entered.acquire()
        for call in (client.echo(), read_all(client.repeat()), client.join("x"), read_all(client.chat("x"))):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await error_info(error))[0] == "TOO_MANY_IN_FLIGHT"
            status = rpc_status.from_call(Trailers(error))
            assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
        # Strangers are bounded too, before anything is looked up for them.
        assert (await failure(server.client(None).echo())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # A full server is still healthy.
        health: Any = server.channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await health(b"") == b"\x08\x01"
        servicer.release.set()
        assert (await unary).value == "unary"
        assert await stream == ["stream"]
        assert (await client.echo("room again")).value == "room again"


async def test_a_call_that_ends_badly_makes_room_again() -> None:
    class Broken(EchoServicer):
        async def Echo(self, request: StringValue, context: Any) -> StringValue:
            raise ValueError

    async with running(Broken(), max_in_flight=1) as server:
        for key in (HOST_KEY, None, MEMBER_KEY, HOST_KEY):
            error = await failure(server.client(key).echo())
            assert error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await read_all(server.client().repeat()) == ["x", "x", "x"]


@pytest.mark.parametrize("shape", ["echo", "repeat"])
async def test_a_cancelled_call_is_cancelled_in_the_handler_and_makes_room(shape: str) -> None:
    servicer = Waiting()
    async with running(servicer, max_in_flight=1) as server:
        client = server.client()
        with capture_logs() as logs:
            call = getattr(client, shape)()
            await servicer.entered.acquire()
            call.cancel()
            async with asyncio.timeout(10):
                await servicer.cancelled.wait()
        assert finished(logs)["code"] == "CANCELLED"
        servicer.release.set()
        assert (await client.echo("next")).value == "next"


async def test_the_callers_deadline_cancels_the_handler() -> None:
    servicer = Waiting()
    async with running(servicer) as server:
        with capture_logs() as logs:
            error = await failure(server.client().echo(timeout=0.05))
            async with asyncio.timeout(10):
                await servicer.cancelled.wait()
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert finished(logs)["code"] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(("limit", "timeout"), [("DEFAULT_DEADLINE", None), ("MAX_DEADLINE", 1000.0)])
async def test_every_unary_call_has_a_deadline(
    limit: str, timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, limit, getattr(interceptors, limit) / 3000)
    servicer = Waiting()
    async with running(servicer) as server:
        error = await failure(server.client().echo(timeout=timeout))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await error_info(error))[0] == "DEADLINE_EXCEEDED"
        assert servicer.cancelled.is_set()


async def test_streams_have_no_deadline_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptors, "DEFAULT_DEADLINE", interceptors.DEFAULT_DEADLINE / 3000)
    monkeypatch.setattr(interceptors, "MAX_DEADLINE", interceptors.MAX_DEADLINE / 300_000)
    servicer = Waiting()
    async with running(servicer) as server:
        stream = asyncio.ensure_future(read_all(server.client().repeat()))
        await servicer.entered.acquire()
        # A unary call that comes after it, and is ended by the deadline, proves that the deadline has passed.
        assert (await failure(server.client().echo())).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not stream.done()
        servicer.release.set()
        assert await stream == ["x"]


async def test_a_timeout_inside_a_handler_is_not_taken_for_the_deadline() -> None:
    class Impatient(EchoServicer):
        async def Echo(self, request: StringValue, context: Any) -> StringValue:
            raise TimeoutError("secret")

        async def Repeat(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
            if request.value:
                raise TimeoutError("secret")
            yield request

    async with running(Impatient()) as server:
        for call in (server.client().echo(), read_all(server.client().repeat())):
            assert (await failure(call)).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_generator_is_closed_with_its_call() -> None:
    closed = asyncio.Event()

    class Holding(EchoServicer):
        async def Repeat(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
            try:
                while True:
                    yield request
                    await asyncio.sleep(0)
            finally:
                closed.set()

    async with running(Holding()) as server:
        call = server.client().repeat()
        await call.read()
        call.cancel()
        async with asyncio.timeout(10):
            await closed.wait()


async def test_one_line_says_how_a_call_ended_and_no_secret() -> None:
    async with running(EchoServicer()) as server:
        with capture_logs() as logs:
            await server.client().echo("payload")
        line = finished(logs)
        assert isinstance(line.pop("duration_ms"), float)
        assert line == {
            "event": "rpc.finished",
            "log_level": "info",
            "method": UNARY,
            "code": "OK",
            "reason": "",
            "api_key_id": "key_host",
        }
        with capture_logs() as logs:
            await failure(server.client(MEMBER_KEY).echo("payload"))
        line = finished(logs)
        assert (line["code"], line["reason"]) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
        assert MEMBER_KEY not in str(logs)


async def test_a_stream_that_had_nothing_to_say_is_no_news() -> None:
    class Idle(EchoServicer):
        async def Repeat(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
            for value in request.value:
                yield StringValue(value=value)

    async with running(Idle()) as server:
        for asked, level in (("", "debug"), ("a", "info")):
            with capture_logs() as logs:
                await read_all(server.client().repeat(asked))
            assert finished(logs)["log_level"] == level
        with capture_logs() as logs:
            await failure(read_all(server.client(MEMBER_KEY).repeat("")))
        assert finished(logs)["log_level"] == "info"


def count(method: str, code: str) -> float:
    labels = {"method": method, "code": code}
    counted = REGISTRY.get_sample_value("tallystick_rpcs_total", labels) or 0.0
    timed = REGISTRY.get_sample_value("tallystick_rpc_duration_seconds_count", labels) or 0.0
    assert counted == timed
    return counted


async def test_calls_are_counted_by_method_and_code() -> None:
    before = count(UNARY, "OK"), count(REQUESTS, "OK"), count(UNARY, "UNAUTHENTICATED")
    async with running(EchoServicer()) as server:
        await server.client().echo()
        await server.client().join("x")
        await failure(server.client(None).echo())
    after = count(UNARY, "OK"), count(REQUESTS, "OK"), count(UNARY, "UNAUTHENTICATED")
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1]
    assert REGISTRY.get_sample_value("tallystick_rpcs_in_flight") == 0
