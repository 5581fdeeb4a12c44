"""The HTTP server as a worker."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from services.kit import web
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


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: here\r\n"])
async def test_whoever_asks_for_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> PlainTextResponse:
        asked.set()
        await answer.wait()
        return PlainTextResponse("here")

    server = WebServer(Starlette(routes=[Route("/", slow)]), "127.0.0.1:0")
    server.start()
    host, port = server.address.split(":")
    waiting, waiter = await asyncio.open_connection(host, port)
    waiter.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" + sent)
    await asked.wait()
    monkeypatch.setattr(web, "_HEAD_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(sent)
    assert await reader.read() == b""
    # Who did ask waits for as long as it takes, and is hung up on behind the answer.
    answer.set()
    assert (await waiting.read()).endswith(b"here")
    for one in (writer, waiter):
        one.close()
    await server.stop(timedelta(seconds=5))
    server.close()


async def test_an_address_without_a_port_is_refused() -> None:
    with pytest.raises(StartupError, match="host:port"):
        WebServer(Starlette(), "unix:/tmp/x")
