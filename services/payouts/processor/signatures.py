"""Signatures of webhooks: whether a body comes from who knows one of our secrets, and when it was sent."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import stripe


class SignatureError(Exception):
    """The body cannot be trusted; the message says why, and nothing of its content."""


def check_signature(
    body: bytes, header: str, secrets: Sequence[str], *, now: datetime, tolerance: timedelta
) -> None:
    """Raises SignatureError unless `header` (Stripe-Signature) signs exactly these bytes with one of the
    secrets, at a time that differs from `now` by `tolerance` at most.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise SignatureError("the body is not UTF-8") from None
    # The library compares texts in constant time, which Python does for ASCII only.
    if not header.isascii() or not any(_signs(text, header, secret) for secret in secrets):
        raise SignatureError("there is no signature by a secret of ours")
    # The library knows no clock but the machine's, and lets any future time pass: a signature that will be
    # good for years is one that can be replayed for years.
    if abs(int(now.timestamp()) - _signed_time(header)) > tolerance.total_seconds():
        raise SignatureError("the signature is too old, or of the future")


def _signs(text: str, header: str, secret: str) -> bool:
    try:
        return bool(stripe.WebhookSignature.verify_header(text, header, secret))
    except stripe.SignatureVerificationError:
        return False


def _signed_time(header: str) -> int:
    """The `t` of a header that was verified: the first one, which is the one that was signed."""
    parts = (item.split("=", 2) for item in header.split(","))
    return int(next(part[1] for part in parts if part[0] == "t"))
