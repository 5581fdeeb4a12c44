"""Signing in with an API key, and out."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from services.kit import log
from services.kit.auth import Role
from services.kit.errors import TallystickError, Unauthenticated
from services.kit.zones import is_zone
from services.reporting.web.attempts import FailedAttempts
from services.reporting.web.forms import FormError, is_from_here, read_form
from services.reporting.web.rendering import path
from services.reporting.web.site import ROLES, SIGN_IN, Site, Visit

_MAX_KEY_LENGTH: Final = 256
_MAX_NEXT_LENGTH: Final = 512
_log = log.get_logger()


class SignIn:
    """The way in."""

    def __init__(self, site: Site, attempts: FailedAttempts) -> None:
        self._site = site
        self._attempts = attempts

    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route("/", self._site.page(self._home), methods=["GET"]),
            Route(SIGN_IN, self.show, methods=["GET"]),
            Route(SIGN_IN, self.sign_in, methods=["POST"]),
            Route("/sign-out", self._site.form(self._sign_out), methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """The form."""
        ended = "ended" in request.query_params
        return self._form(request, request.query_params.get("next", ""), ended=ended)

    async def sign_in(self, request: Request) -> Response:
        """Exchange a key for a session."""
        if not is_from_here(request, self._site.public_url):
            return self._site.problem(
                request, None, HTTPStatus.FORBIDDEN, "This form was not sent by a page of this site."
            )
        address = request.client.host if request.client else ""
        wait = self._attempts.wait(address)
        if wait is not None:
            minutes = -(-int(wait.total_seconds()) // 60)
            response = self._form(
                request,
                "",
                problem=f"Too many keys that are none. Please wait {minutes} minutes.",
                status=HTTPStatus.TOO_MANY_REQUESTS,
            )
            response.headers["Retry-After"] = str(max(1, int(wait.total_seconds())))
            return response
        # Right behind the look, with nothing to wait for in between.
        self._attempts.fail(address)
        try:
            fields = await read_form(request)
        except FormError as error:
            self._attempts.excuse(address)
            return self._form(request, "", problem=str(error), status=HTTPStatus.BAD_REQUEST)
        return await self._try(request, fields, address)

    async def _try(self, request: Request, fields: Mapping[str, str], address: str) -> Response:
        key = fields.get("api_key", "").strip()[:_MAX_KEY_LENGTH]
        wanted = fields.get("next", "")
        try:
            principal = await self._site.find_principal(key)
        except Unauthenticated:
            _log.warning("session.refused")
            return self._form(
                request,
                wanted,
                problem="This key is unknown, revoked or expired.",
                status=HTTPStatus.UNAUTHORIZED,
            )
        except TallystickError as error:
            self._attempts.excuse(address)
            _log.warning("session.not_decided", reason=error.reason)
            return self._form(
                request,
                wanted,
                problem="The ledger, which knows the keys, does not answer. Please try again in a moment.",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
            )
        self._attempts.excuse(address)
        if principal.role not in ROLES:
            return self._form(
                request,
                wanted,
                problem="This key is for a program. Sign in with the key of an owner, billing admin, member,"
                " customer or operator.",
                status=HTTPStatus.FORBIDDEN,
            )
        zone = fields.get("time_zone", "")
        session = self._site.sealer.begin(key, zone if is_zone(zone) else "UTC")
        _log.info("session.begun", api_key_id=principal.api_key_id, role=principal.role.value)
        target = wanted if _is_ours(wanted) else "/"
        return self._site.keep_session(RedirectResponse(target, HTTPStatus.SEE_OTHER), session)

    async def _home(self, visit: Visit) -> Response:
        principal = visit.principal
        if principal.role is Role.OPERATOR:
            target = "/operator"
        elif principal.customer_id is not None:
            target = f"/customers/{path(principal.customer_id)}"
        else:
            target = f"/organizations/{path(principal.organization_id or '')}"
        return RedirectResponse(target, HTTPStatus.SEE_OTHER)

    async def _sign_out(self, visit: Visit, _: Mapping[str, str]) -> Response:
        _log.info("session.ended", api_key_id=visit.principal.api_key_id)
        return self._site.end_session(RedirectResponse(SIGN_IN, HTTPStatus.SEE_OTHER))

    def _form(
        self,
        request: Request,
        wanted: str,
        *,
        problem: str = "",
        ended: bool = False,
        status: int = HTTPStatus.OK,
    ) -> Response:
        return self._site.render(
            request,
            "sign_in.html",
            status=status,
            title="Sign in",
            problem=problem,
            ended=ended,
            next=wanted if _is_ours(wanted) else "",
        )


def _is_ours(address: str) -> bool:
    """Whether an address leads to a page of this site and nowhere else, however a browser reads it."""
    return (
        len(address) <= _MAX_NEXT_LENGTH
        and address.startswith("/")
        and not address.startswith("//")
        and "\\" not in address
        and address.isascii()
        and address.isprintable()
    )
