"""What pages of organizations and customers share."""

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from services.kit.net import is_loopback
from services.reporting.web.backend import Answer


def currencies(accounts: Answer, shown: str) -> list[str]:
    """All currencies in which there is an account, and the one that is shown."""
    known = accounts.value.accounts if accounts.value is not None else ()
    return sorted({shown, *(one.account.currency_code for one in known)})


def page_status(found: Mapping[str, Answer]) -> int:
    """A page of which nothing could be had is no success to whoever watches over it."""
    return HTTPStatus.OK if any(one.ok for one in found.values()) else HTTPStatus.SERVICE_UNAVAILABLE


def leads_away(url: str) -> str:
    """An address that payouts gave, if a browser may be sent there: https, or the stand-in on this machine.

    Raises ValueError.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.netloc)):
        return url
    raise ValueError(f"payouts named an address of scheme {parts.scheme!r}")
