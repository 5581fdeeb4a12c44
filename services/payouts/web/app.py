"""The HTTP application: the routes that parts of payouts bring, and one that says that it is alive."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route


def make_app(routes: Sequence[BaseRoute]) -> Starlette:
    """The application with these routes."""
    return Starlette(routes=[Route("/healthz", _healthz, methods=["GET"]), *routes])


async def _healthz(_: Request) -> Response:
    """Alive, also while PostgreSQL is away: what cannot be stored then is answered 503 by itself."""
    return PlainTextResponse("ok")
