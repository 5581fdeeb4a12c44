"""Webhook signatures as Stripe makes them, and the wrong ones that a receiver must refuse."""

from __future__ import annotations

import hashlib
import hmac

# What can be wrong with a delivery.
TAMPERINGS = {
    "wrong_signature": "signed with another secret",
    "no_signature": "without the header",
    "altered_body": "a body other than the signed one",
    "stale": "signed an hour ago",
    "future": "signed an hour ahead",
}
_SKEW_SECONDS = 3_600


def signature(secret: str, timestamp: int, body: bytes) -> str:
    signed = str(timestamp).encode() + b"." + body
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def header(secrets: list[str], timestamp: int, body: bytes) -> str:
    """`Stripe-Signature`: one v1 for each secret, several while a secret is being rolled."""
    signed = "".join(f",v1={signature(secret, timestamp, body)}" for secret in secrets)
    return f"t={timestamp}{signed}"


def tampered(kind: str, secrets: list[str], now: int, body: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of a delivery with something wrong with it."""
    match kind:
        case "no_signature":
            return {}, body
        case "wrong_signature":
            secrets = ["whsec_of_somebody_else"]
        case "stale":
            now -= _SKEW_SECONDS
        case "future":
            now += _SKEW_SECONDS
    signed = {"Stripe-Signature": header(secrets, now, body)}
    return signed, body.replace(b'"id": "evt_', b'"id": "evt_x') if kind == "altered_body" else body
