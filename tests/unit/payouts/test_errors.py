"""What may be done after each answer of Stripe."""

import json

import pytest
import stripe

from services.payouts.processor.errors import (
    InDoubt,
    KeyConflict,
    KeyRefused,
    ProcessorError,
    Refused,
    Throttled,
    translate,
)
from services.payouts.processor.pace import Pace


def _raised(kind: type[stripe.StripeError], status: int | None, **body: object) -> stripe.StripeError:
    content = {"error": body}
    return kind(
        str(body.get("message", "")),
        http_body=json.dumps(content),
        http_status=status,
        json_body=content,
        code=str(body["code"]) if "code" in body else None,
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            _raised(stripe.StripeError, 400, type="invalid_request_error", code="balance_insufficient"),
            Refused,
        ),
        (_raised(stripe.StripeError, 402, type="card_error", code="card_declined"), Refused),
        (_raised(stripe.StripeError, 404, type="invalid_request_error", code="resource_missing"), Refused),
        (_raised(stripe.IdempotencyError, 400, type="idempotency_error"), KeyConflict),
        (_raised(stripe.StripeError, 400, type="idempotency_error"), KeyConflict),
        (_raised(stripe.IdempotencyError, 409, type="idempotency_error"), InDoubt),
        (_raised(stripe.StripeError, 409, type="invalid_request_error"), InDoubt),
        (_raised(stripe.AuthenticationError, 401, type="invalid_request_error"), KeyRefused),
        (_raised(stripe.PermissionError, 403, type="invalid_request_error"), KeyRefused),
        (_raised(stripe.RateLimitError, 429, type="invalid_request_error", code="lock_timeout"), Throttled),
        (_raised(stripe.APIError, 500, type="api_error"), InDoubt),
        (_raised(stripe.APIError, 503, type="api_error"), InDoubt),
        (_raised(stripe.APIConnectionError, None), InDoubt),
        # A status that nobody documents is no certainty.
        (_raised(stripe.StripeError, 418), InDoubt),
    ],
)
def test_only_what_is_certain_counts_as_refused(
    error: stripe.StripeError, expected: type[ProcessorError]
) -> None:
    assert type(translate(error)) is expected


def test_the_code_is_found_where_the_library_leaves_it_out() -> None:
    body = {"error": {"type": "invalid_request_error", "code": "lock_timeout", "message": "later"}}
    error = stripe.RateLimitError("later", json.dumps(body), 429, body)
    assert translate(error).code == "lock_timeout"


async def test_calls_are_paced_and_a_429_pauses_everybody() -> None:
    now = 100.0
    pace = Pace(10, monotonic=lambda: now)
    begun = [pace._next]
    for _ in range(3):
        await pace.turn()
        begun.append(pace._next)
    assert begun[-1] - begun[0] == pytest.approx(0.3)
    first = pace.throttled().total_seconds()
    second = pace.throttled().total_seconds()
    assert 0.5 <= first <= 1.0 <= second <= 2.0
    pace.answered()
    assert pace.throttled().total_seconds() <= 1.0
