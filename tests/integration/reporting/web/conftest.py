"""The dashboard before services of a made-up world, and browsers that know nothing of each other."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from html import unescape

import httpx
import pytest

from tests.support.dashboard_agreements import agreed
from tests.support.dashboard_server import Served, dashboard
from tests.support.dashboard_world import PUBLIC_URL, World, key_of


@dataclass
class Browser:
    """As much of a browser as pages without scripts need: cookies, and where it comes from."""

    client: httpx.AsyncClient

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.client.get(path, headers=headers)

    async def post(self, path: str, fields: dict[str, str], **headers: str) -> httpx.Response:
        """Send a form as a page of the site does."""
        sent = {"origin": PUBLIC_URL, "sec-fetch-site": "same-origin", **headers}
        return await self.client.post(path, data=fields, headers=sent)

    async def sign_in(self, name: str) -> httpx.Response:
        return await self.post("/sign-in", {"api_key": key_of(name)})

    async def submit(self, page: str, action: str, **fields: str) -> httpx.Response:
        """Open a page, fill in the form that goes to `action`, and send it."""
        return await self.post(action, hidden_fields((await self.get(page)).text, action) | fields)


def hidden_fields(html: str, action: str) -> dict[str, str]:
    """What a form would send by itself."""
    found = re.search(rf'<form[^>]*action="{re.escape(action)}".*?</form>', html, re.DOTALL)
    assert found is not None, f"no form goes to {action}"
    inputs = re.findall(r'<input[^>]*name="([^"]+)"[^>]*value="([^"]*)"', found[0])
    return {name: unescape(value) for name, value in inputs}


def browser_of(served: Served, address: str = "203.0.113.7") -> Browser:
    transport = httpx.ASGITransport(served.app, raise_app_exceptions=False, client=(address, 4711))
    return Browser(httpx.AsyncClient(transport=transport, base_url=PUBLIC_URL))


@pytest.fixture
def world() -> World:
    return agreed()


@pytest.fixture
async def served(world: World) -> AsyncIterator[Served]:
    async with dashboard(world) as found:
        yield found


@pytest.fixture
async def browser(served: Served) -> AsyncIterator[Browser]:
    found = browser_of(served)
    async with found.client:
        yield found
