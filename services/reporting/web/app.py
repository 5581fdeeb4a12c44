"""The dashboard put together."""

from collections.abc import Sequence
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.kit import log
from services.kit.auth import Authenticator
from services.kit.clock import Clock, SystemClock
from services.reporting.web.attempts import FailedAttempts
from services.reporting.web.backend import Backend, Channels
from services.reporting.web.charge import ChargePage
from services.reporting.web.customer import CustomerPages
from services.reporting.web.headers import SecuredStarlette
from services.reporting.web.operator import OperatorPages
from services.reporting.web.organization import OrganizationPages
from services.reporting.web.prices import PricePages
from services.reporting.web.signin import SignIn
from services.reporting.web.simulator import SimulatorPage
from services.reporting.web.site import Site
from services.reporting.web.statics import static_files

_log = log.get_logger()


def make_dashboard(
    *,
    channels: Channels,
    authenticator: Authenticator,
    session_secrets: Sequence[str],
    public_url: str,
    clock: Clock | None = None,
) -> SecuredStarlette:
    """The web application, for a `services.kit.web.WebServer`.

    `channels` have no keys of their own: pages ask with the key of whoever is signed in. `authenticator`
    tells whose a key is, as it does for RPCs. `session_secrets` have 32 characters or more; the first seals
    cookies, all are accepted. Cookies are for https only if `public_url`, where browsers reach this, is.
    """
    clock = clock or SystemClock()
    statics = static_files()
    site = Site(
        backend=Backend(channels),
        authenticator=authenticator,
        session_secrets=session_secrets,
        statics=statics,
        clock=clock,
        public_url=public_url,
    )

    async def on_http_error(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
        return site.problem(request, None, status, "")

    async def on_defect(request: Request, error: Exception) -> Response:
        _log.error("page.failed", path=request.url.path, exc_info=error)
        return site.problem(request, None, HTTPStatus.INTERNAL_SERVER_ERROR, "")

    app = SecuredStarlette(
        routes=[
            Route("/healthz", _healthz, methods=["GET"]),
            *statics.routes(),
            *SignIn(site, FailedAttempts(clock)).routes(),
            *OrganizationPages(site).routes(),
            *PricePages(site).routes(),
            *SimulatorPage(site).routes(),
            *CustomerPages(site).routes(),
            *ChargePage(site).routes(),
            *OperatorPages(site).routes(),
        ],
        exception_handlers={HTTPException: on_http_error, Exception: on_defect},
    )
    app.https = site.https
    return app


async def _healthz(_: Request) -> Response:
    """Alive, also while services are away: pages say so themselves."""
    return PlainTextResponse("ok")
