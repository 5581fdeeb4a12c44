"""The HTTP surface: Stripe's API, the control API, and the pages that a link leads to."""

from __future__ import annotations

import os
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.stripe import control, pages
from sandbox.stripe.gateway import CutError, Gateway, Incoming
from sandbox.stripe.world import World

# Where the connection's `abort` is found in a request's scope, put there by the server.
CUT = "tallystick.cut"
# Answers as soon as calls are answered, and who it is; needs no key and is not on record.
HEALTH = "/_health"
MAX_BODY_BYTES = 1_000_000


def make_app(world: World) -> Starlette:
    """The application. Webhooks are delivered beside it, by `world.webhooks.run`."""
    gateway = Gateway(world)

    async def api(request: Request) -> Response:
        body = await request.body()
        if len(body) > MAX_BODY_BYTES:
            return Response(status_code=413)
        incoming = Incoming(request.method, request.url.path, request.url.query, request.headers, body)
        try:
            done = await gateway.answer(incoming)
        except CutError:
            cut: Callable[[], None] = request.scope["extensions"][CUT]
            cut()
            # Never sent: there is no connection any more.
            return Response(status_code=499)
        return Response(done.body, done.status, {**done.headers, "Content-Type": "application/json"})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "serving", "pid": os.getpid()})

    return Starlette(
        routes=[
            Route(HEALTH, health, methods=["GET"]),
            *control.routes(world),
            *pages.routes(world),
            Route("/{path:path}", api, methods=["GET", "POST", "DELETE", "PUT", "PATCH"]),
        ]
    )
