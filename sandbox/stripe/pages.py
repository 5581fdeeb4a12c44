"""The pages behind account links: used once, within their time, and with a way to leave half done."""

from __future__ import annotations

import html
from collections.abc import Callable
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from sandbox.stripe import accounts
from sandbox.stripe.errors import StripeError
from sandbox.stripe.values import Json
from sandbox.stripe.world import World

SMS_CODE = "000-000"
_PAGE = """<!doctype html><title>Stripe (stand-in)</title><h1>Set up {account}</h1>
<form method="post">Code sent by SMS: <input name="code" value="{code}">
<button name="outcome" value="complete">Complete</button>
<button name="outcome" value="leave">Leave for later</button></form>
"""


def routes(world: World) -> list[Route]:
    """GET shows and thereby uses up a link; POST ends the visit and goes to the return URL."""

    async def show(request: Request) -> Response:
        facts = _link(world, request)
        if facts is None:
            return Response("No such link\n", 404)
        if facts["used"] or facts["expires_at"] <= world.clock.now() or not _open(world, facts):
            return RedirectResponse(facts["refresh_url"], 302)
        facts["used"] = True
        return HTMLResponse(_PAGE.format(account=html.escape(facts["account"]), code=SMS_CODE))

    async def finish(request: Request) -> Response:
        facts = _link(world, request)
        if facts is None or not facts["used"]:
            return Response("No such visit\n", 404)
        form = await _form(request)
        if form.get("outcome") == "complete":
            if form.get("code") != SMS_CODE:
                return Response("Wrong code\n", 400)
            accounts.complete_onboarding(world, world.account(facts["account"]))
        return RedirectResponse(facts["return_url"], 303)

    path = "/setup/s/{account}/{link}"
    return [_route(path, show, "GET"), _route(path, finish, "POST")]


def _link(world: World, request: Request) -> Json | None:
    facts = world.hidden.get(request.path_params["link"])
    return facts if facts and facts.get("account") == request.path_params["account"] else None


def _open(world: World, facts: Json) -> bool:
    try:
        world.account(facts["account"])
    except StripeError:
        return False
    return not world.secret(facts["account"]).get("disabled")


async def _form(request: Request) -> dict[str, str]:
    # Starlette's own form needs a package for uploads.
    return dict(parse_qsl((await request.body()).decode()))


def _route(path: str, endpoint: Callable[..., object], method: str) -> Route:
    return Route(path, endpoint, methods=[method])
