"""An HTTP server, as a worker of the process that also serves gRPC."""

import asyncio
import contextvars
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.kit import log
from services.kit.net import parse_address
from services.kit.server import StartupError

# Connections at once; more are answered 503 by uvicorn.
_MAX_CONNECTIONS: Final = 1024
# Until the head of a request is there.
_HEAD_SECONDS = 10.0
_log = log.get_logger()


class WebServer:
    """Serves an application on `address`, which is taken at once and answered with its real port.

    Raises StartupError if the address is taken or not ours.
    """

    def __init__(self, app: ASGIApp, address: str) -> None:
        self._socket = _listening(address)
        host, port = self._socket.getsockname()[:2]
        self.address: Final = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                # Logging is set up by the kit, for all libraries.
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_MAX_CONNECTIONS,
            )
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is not None:
            raise RuntimeError("the web server was started before")
        # An empty context: the server is nobody's request.
        self._task = asyncio.create_task(
            self._server.serve(sockets=[self._socket]), name="web", context=contextvars.Context()
        )
        _log.info("web.listening", address=self.address)

    async def stop(self, grace: timedelta) -> None:
        if self._task is None:
            return
        self._server.should_exit = True
        _, late = await asyncio.wait([self._task], timeout=grace.total_seconds())
        if late:
            _log.warning("web.cancelled")
            self._server.force_exit = True
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            await asyncio.wait(late)

    def close(self) -> None:
        """Let go of the address, also of a server that was never started."""
        self._socket.close()


class _Protocol(H11Protocol):
    """Ends connections on which no request comes to be, which uvicorn does only behind an answer: whoever
    opened enough of them and said nothing would keep all others out.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Begin to wait for a request, or go on; no longer if there is one."""
        # uvicorn says that there always is one.
        answered = self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]
        if self.transport.is_closing() or not answered:
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Server(uvicorn.Server):
    """Leaves signals alone: the process stops in its own order."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _listening(address: str) -> socket.socket:
    wanted = parse_address(address)
    if wanted.port is None:
        raise StartupError(f"an HTTP server needs host:port, not {address}")
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    # asyncio switches Nagle's algorithm off, which costs 40 ms a call, only where the protocol is named.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((wanted.host, wanted.port))
        # From here on callers wait in the queue of the socket instead of being refused.
        made.listen()
    except OSError as error:
        made.close()
        raise StartupError(f"cannot listen on {address}: {error.strerror or error}") from None
    return made
