"""The way back from Stripe's onboarding: a page that says what is still wanted, and new links for used ones.

Who holds the secret of a way back may act for its organization for some hours. So neither
page nor redirect tells it to anybody else: they send no referrer, and load nothing from third parties.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from services.payouts.accounts import Accounts
from services.payouts.domain.account import AccountState, ConnectedAccount
from services.payouts.domain.account_words import describe_all, explain
from services.payouts.processor.errors import ProcessorError, Refused

_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}")

_STYLE: Final = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 36rem; margin: 0 auto; padding: 2rem 1rem;
    color: #1b1b1b; background: #ffffff; overflow-wrap: break-word }
h1 { font-size: 1.4rem; line-height: 1.25 }
a.go { display: inline-block; margin-top: .5rem; padding: .7rem 1.2rem; border-radius: .4rem;
    color: #ffffff; background: #1d4ed8; text-decoration: none }
a.go:focus-visible { outline: 3px solid #f59e0b; outline-offset: 2px }
@media (prefers-color-scheme: dark) {
    body { color: #ececec; background: #161616 }
    a.go { color: #10182b; background: #93b4ff }
}
"""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{content}
</main>
</body>
</html>
"""
_HEADERS: Final = {
    # Nothing but our own style: no script, no picture, no frame around it.
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


def onboarding_routes(accounts: Accounts) -> list[Route]:
    """GET /connect/return/{secret} and GET /connect/refresh/{secret}. HEAD has no effect."""

    async def arrive(request: Request) -> Response:
        secret = request.path_params["secret"]
        if request.method == "HEAD":
            return _nothing()
        organization_id = await _organization(accounts, secret)
        if organization_id is None:
            return await _over(accounts, secret)
        # To be sent here does not mean to have finished.
        return await _standing(accounts, organization_id, secret)

    async def go_on(request: Request) -> Response:
        secret = request.path_params["secret"]
        # Previews of links ask so, and would use up what they are answered.
        if request.method == "HEAD":
            return _nothing()
        organization_id = await _organization(accounts, secret)
        if organization_id is None:
            return await _over(accounts, secret)
        account = await accounts.find(organization_id)
        if account is None:
            raise LookupError(f"there is a way back for {organization_id}, and no account")
        try:
            link = await accounts.go_on(account, secret)
        except Refused:
            # As after a rejection, which the page explains.
            return await _standing(accounts, organization_id)
        except ProcessorError:
            return _page(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Please try again in a moment",
                ["The payment processor did not answer."],
            )
        return RedirectResponse(link.url, HTTPStatus.SEE_OTHER, headers=_HEADERS)

    return [
        Route("/connect/return/{secret}", arrive, methods=["GET"]),
        Route("/connect/refresh/{secret}", go_on, methods=["GET"]),
    ]


async def _organization(accounts: Accounts, secret: str) -> str | None:
    return await accounts.use_way_back(secret) if _SECRET.fullmatch(secret) else None


async def _over(accounts: Accounts, secret: str) -> Response:
    known = _SECRET.fullmatch(secret) is not None and await accounts.was_way_back(secret)
    return _page(
        HTTPStatus.GONE if known else HTTPStatus.NOT_FOUND,
        "This link has ended" if known else "There is nothing here",
        ["What you have told the payment processor is not lost. Open onboarding again where you began it."],
    )


async def _standing(accounts: Accounts, organization_id: str, secret: str = "") -> Response:
    """How the account is now, with a button to go on if `secret` is given and there is something to do."""
    said = []
    try:
        account = await accounts.refresh_organization(organization_id)
    except ProcessorError:
        account = await accounts.find(organization_id)
        said.append("The payment processor did not answer: this is how it was when last read.")
    if account is None:
        raise LookupError(f"there is a way back for {organization_id}, and no account")
    wanted = describe_all(account.requirements)
    finished = account.can_be_paid and account.bank_payouts_enabled and not wanted
    if finished or account.state is AccountState.DISCONNECTED:
        secret = ""
    return _page(HTTPStatus.OK, _title(account, finished), [explain(account), *said], wanted, secret)


def _title(account: ConnectedAccount, finished: bool) -> str:
    if finished:
        return "All done"
    if account.state is AccountState.DISCONNECTED:
        return "This account cannot be paid"
    if account.state is AccountState.ONBOARDING:
        return "Onboarding is not finished"
    return "Something is still wanted" if account.requirements else "Not done yet"


def _page(
    status: HTTPStatus, title: str, said: Sequence[str], wanted: Sequence[str] = (), secret: str = ""
) -> Response:
    content = [f"<p>{escape(one)}</p>" for one in said]
    if wanted:
        items = "".join(f"<li>{escape(one)}</li>" for one in wanted)
        content.append(f"<p>Still wanted:</p>\n<ul>{items}</ul>")
    if secret:
        # Relative, so that it holds behind whatever path a proxy adds.
        content.append(f'<p><a class="go" href="../refresh/{escape(secret)}">Go on with onboarding</a></p>')
    else:
        content.append("<p>You may close this page.</p>")
    page = _PAGE.format(title=escape(title), style=_STYLE, content="\n".join(content))
    return HTMLResponse(page, status, headers=_HEADERS)


def _nothing() -> Response:
    return Response(status_code=HTTPStatus.OK, headers=_HEADERS)
