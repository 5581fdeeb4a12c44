"""What all pages have in common: who is looking, and what they see when something is not as it should be."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import grpc
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.kit import log
from services.kit.auth import Authenticator, Principal, Role
from services.kit.clock import Clock
from services.kit.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    TallystickError,
    Unauthenticated,
)
from services.kit.money import MINOR_UNIT_DIGITS
from services.kit.status import translate
from services.kit.zones import zone
from services.reporting.web.backend import Asker, Backend
from services.reporting.web.forms import FormError, has_token, is_from_here, read_form
from services.reporting.web.rendering import make_environment, render
from services.reporting.web.session import LIFETIME, Session, SessionSealer
from services.reporting.web.statics import StaticFiles

SIGN_IN: Final = "/sign-in"
# Other keys are for programs: there is no page for them, so their secrets are not taken either.
ROLES: Final = frozenset({Role.OWNER, Role.BILLING_ADMIN, Role.MEMBER, Role.CUSTOMER, Role.OPERATOR})

_log = log.get_logger()


@dataclass(frozen=True, slots=True)
class Subject:
    """The organization or customer that a page is about, as its head shows it."""

    kind: str
    subject_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of somebody who is signed in."""

    request: Request
    session: Session
    principal: Principal
    asker: Asker
    now: datetime

    @property
    def zone(self) -> tzinfo:
        return zone(self.session.time_zone)

    @property
    def is_operator(self) -> bool:
        return self.principal.role is Role.OPERATOR

    @property
    def may_request_payouts(self) -> bool:
        return self.principal.role in (Role.OWNER, Role.BILLING_ADMIN)

    @property
    def is_customer(self) -> bool:
        return self.principal.role is Role.CUSTOMER

    def currency(self) -> str:
        """The currency that the page is to show. Raises NotFound for what is none."""
        code = self.request.query_params.get("currency", "USD")
        if code not in MINOR_UNIT_DIGITS:
            raise NotFound("there is no such currency", reason="INVALID_FIELD")
        return code


Handler = Callable[[Visit], Awaitable[Response]]
FormHandler = Callable[[Visit, Mapping[str, str]], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


class Site:
    """Lets in who is signed in, and renders."""

    def __init__(
        self,
        *,
        backend: Backend,
        authenticator: Authenticator,
        session_secrets: Sequence[str],
        statics: StaticFiles,
        clock: Clock,
        public_url: str,
    ) -> None:
        self.backend = backend
        self.authenticator = authenticator
        self.sealer = SessionSealer(session_secrets, clock)
        self.clock = clock
        self.public_url = public_url
        self.https: Final = urlsplit(public_url).scheme == "https"
        # With the prefix, browsers take it from this very host over https only.
        self.cookie: Final = "__Host-tallystick" if self.https else "tallystick"
        self._templates = make_environment(statics)

    def page(self, handler: Handler) -> Endpoint:
        """A page for whoever is signed in."""

        async def endpoint(request: Request) -> Response:
            return await self._serve(request, handler)

        return endpoint

    def form(self, handler: FormHandler) -> Endpoint:
        """What a form of a page is sent to. A form that is not ours is refused, and nothing is done."""

        async def checked(visit: Visit) -> Response:
            if not is_from_here(visit.request, self.public_url):
                raise HTTPException(HTTPStatus.FORBIDDEN, "This form was not sent by a page of this site.")
            try:
                fields = await read_form(visit.request)
            except FormError as error:
                raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None
            if not has_token(fields, visit.session.csrf_token):
                raise HTTPException(
                    HTTPStatus.FORBIDDEN,
                    "This form belongs to another session. Open the page again, then send it.",
                )
            return await handler(visit, fields)

        return self.page(checked)

    async def find_principal(self, api_key: str) -> Principal:
        """Whose key it is. Raises Unauthenticated, or what keeps the ledger from answering."""
        try:
            return await self.authenticator.authenticate(api_key)
        except grpc.aio.AioRpcError as error:
            raise translate(error) from None

    def session_of(self, request: Request) -> Session | None:
        """The session of a request, whose key may have been revoked since."""
        return self.sealer.open(request.cookies.get(self.cookie, ""))

    def keep_session(self, response: Response, session: Session) -> Response:
        """Give the browser its session."""
        response.set_cookie(
            self.cookie,
            self.sealer.seal(session),
            max_age=int(LIFETIME.total_seconds()),
            path="/",
            secure=self.https,
            httponly=True,
            samesite="strict",
        )
        return response

    def end_session(self, response: Response) -> Response:
        """Take the session away from the browser."""
        response.delete_cookie(self.cookie, path="/", secure=self.https, httponly=True, samesite="strict")
        return response

    def render(
        self, request: Request, name: str, *, status: int = 200, visit: Visit | None = None, **context: Any
    ) -> Response:
        """A page of a template. `subject` is what it is about, `title` what its tab is called."""
        text = render(
            self._templates,
            name,
            {
                "visit": visit,
                "zone": visit.zone if visit else UTC,
                "here": request.url.path,
                "subject": None,
                **context,
            },
        )
        return HTMLResponse(text, status)

    async def _serve(self, request: Request, handler: Handler) -> Response:
        request_id = os.urandom(8).hex()
        token = log.request_id.set(request_id)
        visit = None
        try:
            session = self.session_of(request)
            if session is None:
                return self._begin(request)
            principal = await self.find_principal(session.api_key)
            if principal.role not in ROLES:
                raise Unauthenticated("the key is not one of a person")
            visit = Visit(request, session, principal, Asker(session.api_key), self.clock.now())
            return await handler(visit)
        except Unauthenticated:
            return self.end_session(self._to_sign_in(request, ended=True))
        except HTTPException as error:
            return self.problem(request, visit, error.status_code, error.detail)
        except TallystickError as error:
            return self._explain(request, visit, error, request_id)
        except Exception as error:  # noqa: BLE001 - what a person sees must not depend on what went wrong
            _log.error("page.failed", path=request.url.path, exc_info=error)
            return self.problem(request, visit, 500, "This is a defect of ours.", reference=request_id)
        finally:
            log.request_id.reset(token)

    def _begin(self, request: Request) -> Response:
        """What somebody sees who brought no session."""
        came_from_elsewhere = request.headers.get("sec-fetch-site") == "cross-site"
        if (
            came_from_elsewhere
            and request.method == "GET"
            and request.headers.get("sec-fetch-mode") == "navigate"
        ):
            # Whoever follows a link from another site, as back from a bank, brings no strict cookie with that
            # request. This page opens the same address again, as ours.
            address = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return self.render(request, "again.html", title="One moment", address=address)
        return self._to_sign_in(request, ended=bool(request.cookies.get(self.cookie)))

    def _to_sign_in(self, request: Request, *, ended: bool) -> Response:
        query = {"next": request.url.path} if request.method == "GET" and request.url.path != "/" else {}
        if ended:
            query["ended"] = "1"
        address = f"{SIGN_IN}?{urlencode(query)}" if query else SIGN_IN
        if request.headers.get("hx-request"):
            # A redirect would be followed within the page; this is for all of it.
            return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": SIGN_IN})
        return RedirectResponse(address, HTTPStatus.SEE_OTHER)

    def _explain(
        self, request: Request, visit: Visit | None, error: TallystickError, reference: str
    ) -> Response:
        if isinstance(error, NotFound | InvalidArgument):
            # Ids of others are answered like ids of nobody; so is what cannot be an id at all.
            return self.problem(request, visit, 404, "")
        if isinstance(error, PermissionDenied):
            return self.problem(request, visit, 403, "")
        _log.warning("page.unavailable", path=request.url.path, reason=error.reason)
        return self.problem(request, visit, 503, "", reference=reference)

    def problem(
        self, request: Request, visit: Visit | None, status: int, detail: str, *, reference: str = ""
    ) -> Response:
        """The page for what went wrong."""
        title, text = _PROBLEMS.get(status, _PROBLEMS[500 if status >= 500 else 400])
        return self.render(
            request,
            "problem.html",
            status=status,
            visit=visit,
            title=title,
            text=detail or text,
            reference=reference,
        )


_PROBLEMS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("That could not be read", "Go back, and try once more."),
    403: ("Not yours to see", "The key that you are signed in with may not see this."),
    404: ("There is nothing here", "It does not exist, or it belongs to somebody else."),
    405: ("There is nothing here", "This address takes no such request."),
    500: ("Something broke", "This is a defect of ours."),
    503: (
        "Not answering just now",
        "A service that this page needs did not answer. Please try again in a moment.",
    ),
}
