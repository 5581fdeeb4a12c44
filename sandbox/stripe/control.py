"""The control API: every command as a POST of JSON to /_control/GROUP/VERB, or a GET if it needs nothing."""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.stripe.commands import money, objects, traffic
from sandbox.stripe.commands.registry import COMMANDS, perform
from sandbox.stripe.errors import StripeError, invalid
from sandbox.stripe.world import World

__all__ = ["COMMANDS", "money", "objects", "routes", "traffic"]


def routes(world: World) -> list[Route]:
    async def run(request: Request) -> Response:
        path = request.path_params["path"]
        try:
            found = COMMANDS.get(path)
            if found is None:
                raise StripeError(404, f"No such command: {path}", known=sorted(COMMANDS))
            body = await request.body()
            try:
                given = json.loads(body) if body else {}
            except ValueError:
                raise invalid("The body is not JSON") from None
            if not isinstance(given, dict):
                raise invalid("The body is not a JSON object")
            return JSONResponse(await perform(world, found, given))
        except StripeError as error:
            return JSONResponse(error.body(), error.status)

    return [Route("/_control/{path:path}", run, methods=["GET", "POST"])]
