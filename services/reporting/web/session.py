"""The session of whoever is signed in: their API key, sealed into a cookie. Nothing of it is kept here.

A session ends by itself, when its key is revoked, and when the secret that sealed it is taken away.
"""

import base64
import binascii
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.kit.clock import Clock
from services.reporting.config import MIN_SECRET_LENGTH

LIFETIME: Final = timedelta(hours=12)

# Bound into every cookie, so that nothing else which the secret may seal one day is taken for a session.
_CONTEXT: Final = b"tallystick dashboard session, 1"
_NONCE_BYTES: Final = 12
_MAX_COOKIE_LENGTH: Final = 1024


@dataclass(frozen=True, slots=True)
class Session:
    """Who is signed in, until when, and how they want times shown. The key does not show in its repr."""

    api_key: str
    csrf_token: str
    expires_at: datetime
    time_zone: str

    def __repr__(self) -> str:
        return f"Session(expires_at={self.expires_at.isoformat()}, time_zone={self.time_zone!r})"


class SessionSealer:
    """Makes sessions, and cookies of them. The first secret seals, all are accepted."""

    def __init__(self, session_secrets: Sequence[str], clock: Clock) -> None:
        if not session_secrets or any(len(one) < MIN_SECRET_LENGTH for one in session_secrets):
            raise ValueError(f"session secrets need {MIN_SECRET_LENGTH} characters or more")
        self._ciphers = [AESGCM(_derive(one)) for one in session_secrets]
        self._clock = clock

    def begin(self, api_key: str, time_zone: str) -> Session:
        """A new session, which lasts for `LIFETIME`."""
        return Session(
            api_key=api_key,
            csrf_token=secrets.token_urlsafe(24),
            expires_at=self._clock.now() + LIFETIME,
            time_zone=time_zone,
        )

    def seal(self, session: Session) -> str:
        """The value of a cookie, which tells its bearer nothing."""
        content = json.dumps(
            {
                "key": session.api_key,
                "csrf": session.csrf_token,
                "end": int(session.expires_at.timestamp()),
                "zone": session.time_zone,
            }
        )
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[0].encrypt(nonce, content.encode(), _CONTEXT)
        return base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("=")

    def open(self, cookie: str) -> Session | None:
        """The session of a cookie; None if it is not one of ours, or over."""
        if not cookie or len(cookie) > _MAX_COOKIE_LENGTH or not cookie.isascii():
            return None
        try:
            raw = base64.b64decode(cookie + "=" * (-len(cookie) % 4), altchars=b"-_", validate=True)
        except binascii.Error:
            return None
        for cipher in self._ciphers:
            try:
                content = json.loads(cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _CONTEXT))
            except (InvalidTag, ValueError):
                continue
            return self._session(content)
        return None

    def _session(self, content: dict[str, str | int]) -> Session | None:
        expires_at = datetime.fromtimestamp(int(content["end"]), UTC)
        if expires_at <= self._clock.now():
            return None
        return Session(
            api_key=str(content["key"]),
            csrf_token=str(content["csrf"]),
            expires_at=expires_at,
            time_zone=str(content["zone"]),
        )


def _derive(secret: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_CONTEXT).derive(secret.encode())
