import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.kit.client import connect
from services.kit.config import ServerConfig
from services.kit.server import StartupError, build_server, serve
from tests.unit.kit.support import HOST_KEY, SERVICE, EchoClient, EchoServicer, KnownKeys, bind_echo, running

ROOT = Path(__file__).parents[3]
LONG = timedelta(seconds=30)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_is_answered_to_anybody_for_each_service() -> None:
    async with running(EchoServicer()) as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        for name in ("", SERVICE):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(health_pb2.HealthCheckRequest(service="unheard"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_shows_services_and_their_files_to_anybody() -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    async with running(EchoServicer()) as server:
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        listed, file = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    assert {service.name for service in listed.list_services_response.service} == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    names = [
        FileDescriptorProto.FromString(one).name
        for one in file.file_descriptor_response.file_descriptor_proto
    ]
    assert "tallystick/testing/v1/echo.proto" in names


class Waiting(EchoServicer):
    def __init__(self) -> None:
        self.entered = asyncio.Semaphore(0)
        self.release = asyncio.Event()

    async def Echo(self, request: StringValue, context: Any) -> StringValue:
        self.entered.release()
        await self.release.wait()
        return request

    async def Repeat(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield request
        self.entered.release()
        await self.release.wait()


async def test_stopping_says_so_to_health_and_finishes_what_is_in_flight() -> None:
    servicer = Waiting()
    async with running(servicer) as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == SERVING
        call = asyncio.ensure_future(server.client().echo("in flight"))
        await servicer.entered.acquire()
        stopping = asyncio.create_task(server.server.stop(LONG))
        assert (await watch.read()).status == NOT_SERVING
        servicer.release.set()
        assert (await call).value == "in flight"
        async with asyncio.timeout(10):
            await stopping


async def test_a_stream_without_end_does_not_hold_up_a_stop() -> None:
    servicer = Waiting()
    async with running(servicer) as server:
        stream = server.client().repeat()
        await stream.read()
        await servicer.entered.acquire()
        async with asyncio.timeout(10):
            await server.server.stop(LONG)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert raised.value.details() == "the server is stopping"


async def test_what_does_not_finish_within_the_grace_is_cancelled() -> None:
    servicer = Waiting()
    async with running(servicer) as server:
        call = asyncio.ensure_future(server.client().echo())
        await servicer.entered.acquire()
        async with asyncio.timeout(10):
            await server.server.stop(timedelta(milliseconds=10))
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_a_taken_port_is_refused() -> None:
    async with running(EchoServicer()) as server:
        second = build_server(services=[bind_echo(EchoServicer())], authenticator=KnownKeys())
        with pytest.raises(StartupError, match=f"cannot listen on {server.address}"):
            second.listen(server.address)
        with pytest.raises(StartupError, match="cannot listen on unix:/nonexistent/socket"):
            second.listen("unix:/nonexistent/socket")


async def test_an_unsafe_configuration_does_not_start() -> None:
    closed = []

    async def close() -> None:
        closed.append("closed")

    config = ServerConfig(listen_address="0.0.0.0:0")
    with pytest.raises(StartupError, match="can be reached from other machines"):
        await serve(config=config, services=[], authenticator=KnownKeys(), on_stop=[close])
    assert closed == ["closed"]


async def test_what_the_handlers_use_is_closed_even_when_the_start_fails() -> None:
    closed = []

    async def fails() -> None:
        closed.append("first")
        raise RuntimeError("stuck")

    async def close() -> None:
        closed.append("second")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = ServerConfig(
            listen_address="127.0.0.1:0", metrics_address=f"127.0.0.1:{taken.getsockname()[1]}"
        )
        with pytest.raises(RuntimeError, match="stuck") as raised:
            await serve(
                config=config,
                services=[bind_echo(EchoServicer())],
                authenticator=KnownKeys(),
                on_stop=[fails, close],
            )
    assert "cannot serve metrics" in str(raised.value.__context__)
    assert closed == ["first", "second"]


class Process:
    """The echo server as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self, event: str) -> dict[str, Any]:
        """The next log line of this event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(30):
            while line := await self.process.stderr.readline():
                if line.startswith(b"{") and json.loads(line)["event"] == event:
                    return dict(json.loads(line))
        raise AssertionError(f"the process ended without {event}")

    async def status(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def started(
    *flags: str, listen: str = "127.0.0.1:0", metrics: str = "127.0.0.1:0"
) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.unit.kit.echo_server"),
        *(f"--listen-address={listen}", f"--metrics-address={metrics}", *flags),
        cwd=ROOT,
        env={**os.environ, "ECHO_KEY": HOST_KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def refusal(client: EchoClient) -> grpc.aio.AioRpcError:
    """The error of the first call that is not taken any more."""
    async with asyncio.timeout(10):
        while True:
            try:
                await client.echo("0")
            except grpc.aio.AioRpcError as error:
                return error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_finishes_the_call_in_flight_and_then_the_process(number: signal.Signals) -> None:
    async with started() as server:
        address = (await server.line("server.listening"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            client = EchoClient(channel)
            call = asyncio.ensure_future(client.echo("0.5"))
            await server.line("echo.begun")
            server.process.send_signal(number)
            await server.line("server.stopping")
            # Soon no new call is taken any more. CANCELLED is gRPC's answer to one that was on its way.
            refused = await refusal(client)
            assert refused.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            # The old one is still answered.
            assert (await call).value == "0.5"
        finished = await server.line("rpc.finished")
        assert (finished["code"], finished["api_key_id"]) == ("OK", "key_host")
        assert len(finished["request_id"]) == 32
        await server.line("echo.closed")
        await server.line("server.stopped")
        assert await server.status() == 0


async def test_a_second_signal_does_not_wait() -> None:
    async with started("--grace=600") as server:
        address = (await server.line("server.listening"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            call = asyncio.ensure_future(EchoClient(channel).echo("600"))
            await server.line("echo.begun")
            server.process.terminate()
            await server.line("server.stopping")
            server.process.terminate()
            assert await server.status() == -signal.SIGTERM
            with pytest.raises(grpc.aio.AioRpcError):
                await call


async def test_a_process_on_a_taken_port_says_so_and_exits_with_1() -> None:
    async with started() as first:
        address = (await first.line("server.listening"))["address"]
        async with started(listen=address) as second:
            assert second.process.stderr is not None
            said = await second.process.stderr.read()
            assert await second.status() == 1
    assert f"error: cannot listen on {address}: another process has it" in said.decode()
    assert b"Traceback" not in said


async def test_metrics_are_served_and_count_calls() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    async with started(metrics=metrics) as server:
        address = (await server.line("server.listening"))["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            await EchoClient(channel).echo("0")
        await server.line("rpc.finished")
        page = await asyncio.to_thread(lambda: urlopen(f"http://{metrics}/metrics").read().decode())
    assert f'tallystick_rpcs_total{{code="OK",method="/{SERVICE}/Echo"}} 1.0' in page
    assert 'tallystick_worker_steps_total{outcome="done",worker="idle"} 1.0' in page


async def test_a_process_checks_its_configuration() -> None:
    async with started("--check-config", "--grace=5") as server:
        out, _ = await server.process.communicate()
        assert await server.status() == 0
    shown = json.loads(out)
    assert (shown["grace"], shown["key"]) == (5.0, "***")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_with_a_certificate_the_traffic_is_encrypted(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", key, "-out", certificate, "-days", "2"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await make.wait() == 0
    async with started(
        f"--tls-cert-file={certificate}", f"--tls-key-file={key}", listen="0.0.0.0:0"
    ) as server:
        address = (await server.line("server.listening"))["address"]
        port = address.rpartition(":")[2]
        async with connect(f"localhost:{port}", HOST_KEY, tls_ca=certificate) as channel:
            assert (await EchoClient(channel, None).echo("0")).value == "0"
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await EchoClient(channel).echo("0")
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
