"""The stand-in as a server: in this process until it is stopped, or in a thread of a test."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sandbox.process import SandboxError
from sandbox.stripe.app import CUT, make_app
from sandbox.stripe.client import StripeControl
from sandbox.stripe.clock import Clock
from sandbox.stripe.reading import add_endpoint
from sandbox.stripe.world import ApiKey, World

DEFAULT_KEY = "sk_test_tallystick"
START_SECONDS = 30
BACKLOG = 1024


class StripeStandIn:
    """The stand-in on a port of its own for the length of a `with` block, in a thread.

    `frozen` stops its clock, so that time passes only through `control`. Use it from any thread over HTTP: as
    Stripe by `url`, from behind by `control`.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        api_keys: Iterable[str] = (DEFAULT_KEY,),
        webhooks: Iterable[tuple[str, str]] = (),
        connect_webhooks: Iterable[tuple[str, str]] = (),
        seed: str = "tallystick",
        start: int | None = None,
        frozen: bool = False,
        latency_ms: int = 0,
    ) -> None:
        """`webhooks` and `connect_webhooks` are pairs of URL and secret; `start` is the first second.

        Every answer of the API takes `latency_ms`.

        Raises:
            OSError: the port cannot be listened on.
        """
        # asyncio switches Nagle off, which costs 40 ms a call, only where the protocol is named.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Loopback only: it accepts money orders from whoever reaches it.
        self._socket.bind(("127.0.0.1", port))
        # From here on who connects is answered, if only once `serve` runs: the address may be told.
        self._socket.listen(BACKLOG)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.control = StripeControl(self.url)
        world = World(Clock(start, frozen=frozen), seed, self.url)
        world.latency_ms = latency_ms
        world.keys |= {key: ApiKey(key) for key in api_keys}
        self.api_key = next(iter(world.keys), "")
        for connect, pairs in ((False, webhooks), (True, connect_webhooks)):
            for url, secret in pairs:
                add_endpoint(world, url, connect=connect, secret=secret)
        self._webhooks = world.webhooks
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        config = uvicorn.Config(
            make_app(world),
            http=_CuttableProtocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            # What is asked to end does so, even while a slow answer is waited for.
            timeout_graceful_shutdown=1,
            backlog=BACKLOG,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.serve, name="stripe", daemon=True)

    def serve(self) -> None:
        """Serve in this thread until stopped."""
        asyncio.run(self._serve())

    def start(self) -> None:
        """Serve in a thread; returns once calls are answered.

        Raises:
            SandboxError: it did not start.
        """
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise SandboxError("the stand-in for Stripe did not start")
            time.sleep(0.005)

    def stop(self) -> None:
        """End at once, without waiting for callers that keep their connection or wait for a slow answer."""
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(START_SECONDS)
        self._socket.close()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        tasks = [
            asyncio.create_task(self._server.serve(sockets=[self._socket])),
            asyncio.create_task(self._stopping.wait()),
            asyncio.create_task(self._webhooks.run()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for listening in getattr(self._server, "servers", ()):
                listening.close()
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _CuttableProtocol(H11Protocol):
    """Lets the application cut the connection under an answer, which HTTP itself has no word for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("extensions", {})[CUT] = transport.abort
            await inner(scope, receive, send)

        self.app = app
