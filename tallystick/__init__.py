"""Metering, pricing and a ledger for AI agents: the client.

>>> from tallystick import Client
>>> with Client("tsk_…") as client:  # doctest: +SKIP
...     metered = client.meter(
...         customer="cus_ada", agent="agt_helper", workflow_id="ticket-4711", action="ticket.resolve"
...     )

The generated messages and stubs are in `tallystick.common.v1`, `tallystick.ledger.v1` and
`tallystick.metering.v1`, for what the client does not cover.
"""

from tallystick._outbox import BufferStats
from tallystick._refused import read_refused
from tallystick._retry import RetryPolicy
from tallystick.aio import AsyncClient
from tallystick.client import Client
from tallystick.errors import (
    Aborted,
    AlreadyExists,
    BufferFull,
    BufferInUse,
    Cancelled,
    ChargePending,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    IdempotencyKeyReused,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TallystickError,
    Unauthenticated,
    Unavailable,
)
from tallystick.models import (
    Balance,
    ChargeLine,
    EventFields,
    Metered,
    Outcome,
    Payment,
    Refused,
    UnitPrice,
    UsageEvent,
)
from tallystick.money import Money

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncClient",
    "Balance",
    "BufferFull",
    "BufferInUse",
    "BufferStats",
    "Cancelled",
    "ChargeLine",
    "ChargePending",
    "Client",
    "DeadlineExceeded",
    "EventFields",
    "FailedPrecondition",
    "FieldViolation",
    "IdempotencyKeyReused",
    "Internal",
    "InvalidArgument",
    "Metered",
    "Money",
    "NotFound",
    "Outcome",
    "Payment",
    "PermissionDenied",
    "Refused",
    "ResourceExhausted",
    "RetryPolicy",
    "TallystickError",
    "Unauthenticated",
    "Unavailable",
    "UnitPrice",
    "UsageEvent",
    "read_refused",
]
