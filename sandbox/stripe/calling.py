"""One call of Stripe's API from the command line, for who plays a scenario without a library."""

from __future__ import annotations

import http.client
import json
import secrets
from urllib.parse import urlencode

from sandbox.process import SandboxError
from sandbox.stripe.values import Json

TIMEOUT_SECONDS = 120


def call(
    address: str,
    method: str,
    path: str,
    pairs: list[tuple[str, str]],
    *,
    key: str,
    idempotency_key: str = "",
    account: str = "",
) -> tuple[int, Json]:
    """Status and body. A POST without an idempotency key gets one of its own.

    Raises:
        SandboxError: the connection ended without an answer.
    """
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-www-form-urlencoded"}
    if account:
        headers["Stripe-Account"] = account
    form = urlencode(pairs)
    if method == "POST":
        headers["Idempotency-Key"] = idempotency_key or secrets.token_hex(8)
    elif form:
        path, form = f"{path}?{form}", ""
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
    try:
        connection.request(method, path, form, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SandboxError(f"no answer from {address}: {error!r}") from None
    finally:
        connection.close()
