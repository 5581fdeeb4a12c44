"""Webhooks of the payment processor: checked, stored, and answered at once. The inbox handles them later."""

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from prometheus_client import Counter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.kit import log
from services.kit.clock import Clock
from services.kit.errors import TallystickError
from services.payouts.domain.event import EventError
from services.payouts.intake import Intake
from services.payouts.processor.signatures import SignatureError, check_signature

PATH: Final = "/webhooks/stripe"
MAX_BODY_BYTES: Final = 1_000_000
_BODY_SECONDS: Final = 10.0

_WEBHOOKS: Final = Counter("tallystick_webhooks", "Webhooks, by what they were answered.", ["outcome"])
_log = log.get_logger()


class WebhookReceiver:
    """Serves the endpoints of the platform and of connected accounts alike: one path, several secrets."""

    def __init__(self, *, intake: Intake, secrets: Sequence[str], tolerance: timedelta, clock: Clock) -> None:
        self._intake = intake
        self._secrets = secrets
        self._tolerance = tolerance
        self._clock = clock

    def routes(self) -> list[Route]:
        """For `make_app`."""
        return [Route(PATH, self.receive, methods=["POST"])]

    async def receive(self, request: Request) -> Response:
        """200 once the event is committed. 400 and 413: it is not one, and nothing is stored. 503: send it
        again.
        """
        try:
            # Whoever sends slowly must not hold a connection for ever.
            async with asyncio.timeout(_BODY_SECONDS):
                body = await _read_body(request)
        except (TimeoutError, ClientDisconnect):
            return _refused("incomplete", "the body did not come in time", status=408)
        if body is None:
            return _refused("too_large", f"a body has at most {MAX_BODY_BYTES} bytes", status=413)
        try:
            # First of all, and on the bytes as they came: nothing is parsed for a stranger.
            check_signature(
                body,
                request.headers.get("stripe-signature", ""),
                self._secrets,
                now=self._clock.now(),
                tolerance=self._tolerance,
            )
            event = self._intake.read(json.loads(body))
        except SignatureError as error:
            return _refused("bad_signature", str(error))
        except EventError as error:
            return _refused("not_an_event", str(error))
        except (ValueError, RecursionError):
            return _refused("not_an_event", "the body is not JSON")
        try:
            await self._intake.take(event)
        except TallystickError as error:
            _WEBHOOKS.labels("unavailable").inc()
            _log.warning("webhook.not_stored", event_id=event.event_id, reason=error.reason)
            return PlainTextResponse("the event could not be stored: send it again", 503)
        _WEBHOOKS.labels("accepted").inc()
        return Response(status_code=200)


async def _read_body(request: Request) -> bytes | None:
    """The whole body; None as soon as it is known to be too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _refused(outcome: str, why: str, *, status: int = 400) -> Response:
    _WEBHOOKS.labels(outcome).inc()
    _log.warning("webhook.refused", outcome=outcome, why=why)
    return PlainTextResponse(why, status)
