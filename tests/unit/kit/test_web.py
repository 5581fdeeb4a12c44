"""The HTTP server as a worker."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from services.kit.server import StartupError
from services.kit.web import WebServer


async def test_it_serves_until_it_is_stopped_and_lets_go_of_its_address() -> None:
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])
    server = WebServer(app, "127.0.0.1:0")
    with pytest.raises(StartupError, match="cannot listen"):
        WebServer(app, server.address)
    server.start()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://{server.address}/")).text == "here"
    await server.stop(timedelta(seconds=5))
    server.close()
    again = WebServer(app, server.address)
    again.close()


async def test_an_address_without_a_port_is_refused() -> None:
    with pytest.raises(StartupError, match="host:port"):
        WebServer(Starlette(), "unix:/tmp/x")
