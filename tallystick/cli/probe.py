"""What anybody may ask a server without a key: its health, that of its schema, and what time it is there.

`grpc.health.v1` has two messages of one field each. They are written by hand here: nothing else needs the
package that has them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc

SCHEMA_SERVICE: Final = "tallystick.schema"
SERVING: Final = "SERVING"
NOT_SERVING: Final = "NOT_SERVING"
UNKNOWN: Final = "UNKNOWN"

_CHECK = "/grpc.health.v1.Health/Check"
_SERVER_TIME = "x-server-time"
# HealthCheckResponse: field 1, an enum; nothing at all when it is zero.
_STATUSES = {b"": UNKNOWN, b"\x08\x01": SERVING, b"\x08\x02": NOT_SERVING}


@dataclass(frozen=True, slots=True)
class Health:
    """What a server answered."""

    status: str
    round_trip: timedelta
    # How far its clock is ahead of ours; None if it does not tell the time.
    ahead: timedelta | None


def check(channel: grpc.Channel, service: str, timeout: float) -> Health:
    """Ask for the health of a service by its full name. Raises grpc.RpcError."""
    method: Any = channel.unary_unary(_CHECK)
    started_at, started = datetime.now(UTC), time.perf_counter()
    answer, call = method.with_call(_request(service), timeout=timeout)
    round_trip = timedelta(seconds=time.perf_counter() - started)
    return Health(
        status=_STATUSES.get(answer, UNKNOWN),
        round_trip=round_trip,
        # Half of the way went by when it looked at its clock; that is known to half of the way.
        ahead=_ahead(call.trailing_metadata() or (), started_at + round_trip / 2),
    )


def _request(service: str) -> bytes:
    """HealthCheckRequest: field 1, a string."""
    name = service.encode()
    return b"\x0a" + bytes([len(name)]) + name


def _ahead(trailers: Any, ours: datetime) -> timedelta | None:
    told = dict(trailers).get(_SERVER_TIME)
    try:
        return datetime.fromisoformat(told) - ours if isinstance(told, str) else None
    except (ValueError, TypeError):
        return None
