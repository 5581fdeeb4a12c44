"""Reservation tokens: a reservation, signed, so that nobody has to look it up.

A token is `rst_<content>.<signature>`: the JSON array of the reservation's fields, and its HMAC-SHA256, both
in URL-safe base64. Whoever holds the token holds the reservation, within what its API key may do.
"""

import base64
import binascii
import hmac
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from services.kit.errors import FieldViolation, InvalidArgument
from services.metering.domain.budget import CounterKey
from services.metering.domain.reservation import Reservation

MIN_KEY_LENGTH: Final = 32
_PREFIX: Final = "rst_"
# The first field of the content: what the others are and mean.
_VERSION: Final = 1
# Some 100 characters for each counter: a run has few, but all who may keep budgets could make it some 200.
_MAX_LENGTH: Final = 32_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
# Made once: json.dumps would make an encoder for every call.
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


class TokenSigner:
    """Signs with the first key; accepts what any of the keys signed, so that keys can be changed."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) < MIN_KEY_LENGTH for key in keys):
            raise ValueError(f"needs keys of at least {MIN_KEY_LENGTH} bytes")
        self._keys = tuple(keys)

    def sign(self, reservation: Reservation) -> str:
        """The token of a reservation: the same reservation, the same token."""
        content = _encode(_to_json(_fields(reservation)).encode())
        return f"{_PREFIX}{content}.{_encode(_signature(self._keys[0], content))}"

    def read(self, token: str) -> Reservation:
        """The reservation of a token. Raises InvalidArgument for one that was not signed here."""
        # Nothing is taken apart before the signature is found right.
        content, _, signature = token.removeprefix(_PREFIX).partition(".")
        if (
            token.startswith(_PREFIX)
            and token.isascii()
            and len(token) <= _MAX_LENGTH
            and any(hmac.compare_digest(_encode(_signature(key, content)), signature) for key in self._keys)
        ):
            try:
                version, *fields = json.loads(_decode(content))
            except (binascii.Error, ValueError):
                raise invalid_token("is damaged") from None
            if version == _VERSION:
                return _reservation(fields)
        raise invalid_token("is damaged, or was not issued here")


def invalid_token(description: str, field: str = "token") -> InvalidArgument:
    """The error for a token that cannot be used for this."""
    return InvalidArgument(
        f"{field}: {description}",
        reason="RESERVATION_TOKEN_INVALID",
        field_violations=[FieldViolation(field, description)],
    )


def microseconds(moment: datetime) -> int:
    """Whole microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(count: int) -> datetime:
    """The moment that many microseconds after 1970."""
    return _EPOCH + count * _MICROSECOND


def _fields(reservation: Reservation) -> list[object]:
    return [
        _VERSION,
        *reservation._replace(
            expire_time=microseconds(reservation.expire_time),  # type: ignore[arg-type]
            counters=[  # type: ignore[arg-type]
                # The workflow can only be the reservation's own.
                (budget_id, None if start is None else microseconds(start), workflow_id != "")
                for budget_id, start, workflow_id in reservation.counters
            ],
        ),
    ]


def _reservation(fields: list[object]) -> Reservation:
    # Signed by us: its shape needs no checking.
    read = Reservation(*fields)  # type: ignore[arg-type]
    return read._replace(
        expire_time=from_microseconds(read.expire_time),  # type: ignore[arg-type]
        counters=tuple(
            CounterKey(
                budget_id,
                None if start is None else from_microseconds(start),  # type: ignore[arg-type]
                read.workflow_id if is_per_workflow else "",
            )
            for budget_id, start, is_per_workflow in read.counters
        ),
    )


def _signature(key: bytes, content: str) -> bytes:
    return hmac.digest(key, content.encode(), "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
