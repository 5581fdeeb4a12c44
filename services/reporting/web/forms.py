"""What browsers send: forms of a few short fields, and whether it was a page of ours that sent them."""

import asyncio
import hmac
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import ClientDisconnect, Request

from services.kit.money import MAX_AMOUNT_MICROS, MICROS_PER_UNIT, MINOR_UNIT_DIGITS

CSRF_FIELD: Final = "csrf"

_MAX_BODY_BYTES: Final = 16 * 1024
_BODY_SECONDS: Final = 10.0
_MAX_FIELDS: Final = 20
_AMOUNT: Final = re.compile(r"(\d{1,9})(?:\.(\d{1,6}))?", re.ASCII)
_HERE: Final = frozenset({"same-origin", "none"})


class FormError(Exception):
    """The request is not a form of ours; the message says why, in words for a person."""


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form, each at most once. Raises FormError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise FormError("This was not sent by a form of these pages.")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_BODY_BYTES:
                    raise FormError("That is more than a form of these pages holds.")
    except (TimeoutError, ClientDisconnect):
        raise FormError("The form did not arrive in time.") from None
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict"
        )
    except ValueError:
        raise FormError("The form is damaged.") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise FormError("The form is damaged.")
    return fields


def is_from_here(request: Request, public_url: str) -> bool:
    """Whether a page of ours sent the request, as browsers tell it. Whoever tells nothing did not."""
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in _HERE:
        return False
    origin = request.headers.get("origin")
    if origin is None:
        return site is not None
    told, ours = urlsplit(origin), urlsplit(public_url)
    if (told.scheme, told.netloc) == (ours.scheme, ours.netloc):
        return True
    # Reached by another name of this machine than the configured one.
    return told.scheme in ("http", "https") and told.netloc == request.headers.get("host")


def has_token(fields: Mapping[str, str], expected: str) -> bool:
    """Whether the form carries the token of its session."""
    return hmac.compare_digest(fields.get(CSRF_FIELD, "").encode(), expected.encode())


def parse_amount(text: str, currency_code: str) -> int:
    """An amount in micros, as people type it. Raises FormError, with what to type instead."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise FormError("Write the amount as a plain number, such as 25 or 12.50.")
    micros = int(match[1]) * MICROS_PER_UNIT + int((match[2] or "").ljust(6, "0"))
    if micros == 0:
        raise FormError("The amount must be more than zero.")
    if micros > MAX_AMOUNT_MICROS:
        raise FormError("The amount is too large.")
    if micros % _minor_unit(currency_code):
        digits = MINOR_UNIT_DIGITS[currency_code]
        fraction = f"at most {digits} digits behind the point" if digits else "whole units only"
        raise FormError(f"{currency_code} is moved with {fraction}.")
    return micros


def type_amount(micros: int, currency_code: str) -> str:
    """What a person would type for as much as can be moved of an amount: rounded down to minor units."""
    digits = MINOR_UNIT_DIGITS[currency_code]
    units, fraction = divmod(max(0, micros), MICROS_PER_UNIT)
    return f"{units}.{f'{fraction:06d}'[:digits]}" if digits else str(units)


def _minor_unit(currency_code: str) -> int:
    unit: int = MICROS_PER_UNIT // 10 ** MINOR_UNIT_DIGITS[currency_code]
    return unit
