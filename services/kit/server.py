"""Server bootstrap: from handlers to a process that serves, and that stops without dropping a call."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from services.kit import log
from services.kit.access import AccessPolicies
from services.kit.auth import Authenticator
from services.kit.client import MAX_MESSAGE_BYTES
from services.kit.config import ServerConfig
from services.kit.health import HealthServicer, SchemaHealth
from services.kit.interceptors import RpcInterceptor
from services.kit.net import parse_address
from services.kit.worker import Worker

S = TypeVar("S")
_log = log.get_logger()

# Streams get this much of the grace to come to their end by themselves.
STREAM_GRACE: Final = timedelta(seconds=1)

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024

_OPTIONS: Final = (
    # By default two servers may share a port, each getting some of the calls: never what is meant.
    ("grpc.so_reuseport", 0),
    # A burst reaches our own bound, which answers with a reason and a time to retry. gRPC's, of 1,000 calls
    # that wait for a handler, answers a bare CANCELLED.
    ("grpc.server.max_pending_requests", 5_000),
    ("grpc.server.max_pending_requests_hard_limit", 5_000),
    # What more one connection asks for waits on its own side.
    ("grpc.max_concurrent_streams", 1_000),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A request is received whole before anybody looks at its key; the largest allowed has some 2.5 MB.
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # Our clients ping every 30 seconds (client.py); by default a server hangs up on that.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class _WithoutHeaders(logging.Filter):
    """gRPC logs a header that is not UTF-8 with its value, and that may be an API key."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Invalid encoding" not in record.getMessage()


logging.getLogger("grpc._cython.cygrpc").addFilter(_WithoutHeaders())


class StartupError(Exception):
    """The server cannot start; the message says why, to a person."""


@dataclass(frozen=True, slots=True)
class ServiceBinding:
    """A gRPC service and what serves it. Made by `bind`."""

    descriptor: ServiceDescriptor
    register: Callable[[grpc.aio.Server], None]


def bind(
    descriptor: ServiceDescriptor, add_to_server: Callable[[S, grpc.aio.Server], None], servicer: S
) -> ServiceBinding:
    """Bind `servicer` to `pb2.DESCRIPTOR.services_by_name[...]` by the generated `add_..._to_server`."""
    return ServiceBinding(descriptor, lambda server: add_to_server(servicer, server))


class RpcServer:
    """A gRPC server with health, reflection and the interceptor.

    Made by `build_server`, within an event loop.
    """

    def __init__(
        self, server: grpc.aio.Server, health_servicer: Any, interceptor: RpcInterceptor, names: Sequence[str]
    ) -> None:
        self._server = server
        self._health = health_servicer
        self._interceptor = interceptor
        self._names = names

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
        """Bind `address`, in plaintext unless there are credentials. Answers the address with its real port.

        Raises StartupError if the address is taken or not ours.
        """
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise StartupError(
                f"cannot listen on {address}: another process has it, or it is not an address of this machine"
            ) from None
        is_unix = parse_address(address).port is None
        return address if is_unix else f"{address.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Serve, and say so to health checks."""
        await self._server.start()
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace: timedelta) -> None:
        """Take no more calls, let those in flight finish within `grace`, and cancel the rest.

        Streams, which may never end by themselves, are ended with UNAVAILABLE early in the grace.
        """
        await self._health.enter_graceful_shutdown()
        stopped = asyncio.create_task(self._server.stop(grace.total_seconds()))
        await asyncio.wait([stopped], timeout=min(STREAM_GRACE, grace).total_seconds())
        self._interceptor.end_streams()
        await stopped

    async def wait_for_termination(self) -> None:
        """Wait until the server has stopped. Raises what made it crash, if it did."""
        await self._server.wait_for_termination()


def build_server(
    *,
    services: Sequence[ServiceBinding],
    authenticator: Authenticator,
    max_in_flight: int = 2048,
    schema: SchemaHealth | None = None,
) -> RpcServer:
    """A server of these services. It neither listens nor runs yet: `listen`, then `start`.

    With `schema` its health also tells whether that was migrated.
    """
    descriptors = [service.descriptor for service in services]
    interceptor = RpcInterceptor(
        policies=AccessPolicies(descriptors), authenticator=authenticator, max_in_flight=max_in_flight
    )
    server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
    for service in services:
        service.register(server)
    names = [descriptor.full_name for descriptor in descriptors]
    health_servicer = HealthServicer(schema)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return RpcServer(server, health_servicer, interceptor, names)


async def serve(
    *,
    config: ServerConfig,
    services: Sequence[ServiceBinding],
    authenticator: Authenticator,
    workers: Sequence[Worker] = (),
    on_stop: Sequence[Callable[[], Awaitable[None]]] = (),
    schema: SchemaHealth | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then stop in order: health, calls in flight, workers, `on_stop`.

    `on_stop` closes what the handlers use, and runs however this ends. Raises StartupError if the server
    cannot start.
    """
    stopping = asyncio.Event()
    async with AsyncExitStack() as cleanup:
        # Unwound from the last to the first, each whether or not another one fails.
        for close in reversed(on_stop):
            cleanup.push_async_callback(close)
        if problems := config.problems():
            raise StartupError("; ".join(problems))
        _stop_on_signals(stopping)
        server = build_server(
            services=services,
            authenticator=authenticator,
            max_in_flight=config.max_in_flight,
            schema=schema,
        )
        address = server.listen(config.listen_address, _credentials(config))
        cleanup.push_async_callback(asyncio.to_thread, _serve_metrics(config.metrics_address))
        # After the server: calls in flight may wait for what a worker does.
        cleanup.push_async_callback(_stop_workers, workers, config.grace)
        cleanup.push_async_callback(server.stop, config.grace)
        await server.start()
        for worker in workers:
            worker.start()
        _spare_the_garbage_collector()
        _log.info("server.listening", address=address, metrics_address=config.metrics_address)
        # Not cancelled when a signal comes first: that would cancel the server's own future of its end.
        terminated = asyncio.create_task(server.wait_for_termination())
        terminated.add_done_callback(lambda _: stopping.set())
        await stopping.wait()
        _log.info("server.stopping", grace_seconds=config.grace.total_seconds())
    await terminated
    _log.info("server.stopped")


def _spare_the_garbage_collector() -> None:
    """Messages live for a call and go by reference counting; what a server was built of stays for ever.

    Looking through all of it for cycles every 700 objects took a tenth of a busy server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a server's main coroutine. A StartupError ends the process with its message and status 1."""
    try:
        asyncio.run(main)
    except StartupError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None


async def _stop_workers(workers: Sequence[Worker], grace: timedelta) -> None:
    await asyncio.gather(*(worker.stop(grace) for worker in workers))


def _stop_on_signals(stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        # A second signal finds the default again, and ends the process at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def _credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    if config.tls_cert_file is None or config.tls_key_file is None:
        return None
    pair = (config.tls_key_file.read_bytes(), config.tls_cert_file.read_bytes())
    return grpc.ssl_server_credentials([pair])


def _serve_metrics(address: str) -> Callable[[], None]:
    """Serve Prometheus metrics from a thread. Answers what stops it."""
    wanted = parse_address(address)
    if wanted.port is None:
        raise StartupError(f"metrics need host:port, not {address}")
    try:
        server, thread = start_http_server(wanted.port, wanted.host)
    except OSError as error:
        raise StartupError(f"cannot serve metrics on {address}: {error.strerror}") from None

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
