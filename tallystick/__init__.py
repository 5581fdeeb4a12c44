"""Metering, pricing and a ledger for AI agents: the client.

>>> from tallystick import Client
>>> client = Client("tsk_…")  # doctest: +SKIP
>>> with client.run(  # doctest: +SKIP
...     customer="cus_ada", agent="agt_helper", action="ticket.resolve", workflow_id="ticket-4711",
...     max_cost="0.50",
... ) as run:
...     run.tokens(input=18_042, output=911, model="gpt-4o-mini")
...     run.succeed()

The generated messages and stubs are in `tallystick.common.v1`, `tallystick.ledger.v1`,
`tallystick.metering.v1` and `tallystick.payouts.v1`, for what the client does not cover.
"""

from tallystick._evidence import evidence_hash
from tallystick._outbox import BufferStats
from tallystick._refused import read_refused
from tallystick._retry import RetryPolicy
from tallystick.aio import AsyncClient
from tallystick.client import Client
from tallystick.errors import (
    Aborted,
    AlreadyExists,
    BudgetExceeded,
    BufferFull,
    BufferInUse,
    Cancelled,
    ChargePending,
    CustomerFrozen,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    IdempotencyKeyReused,
    InsufficientCredits,
    Internal,
    InvalidArgument,
    NotFound,
    OutcomeAlreadyResolved,
    OutcomeExpired,
    OutcomeNotFound,
    PaymentMethodNotFound,
    PermissionDenied,
    ReservationEnded,
    ReservationTokenInvalid,
    ResourceExhausted,
    TallystickError,
    Unauthenticated,
    Unavailable,
)
from tallystick.models import (
    Access,
    Balance,
    ChargeLine,
    DeferredOutcome,
    EventFields,
    FinalOutcome,
    Metered,
    Outcome,
    Payment,
    Purchase,
    PurchaseState,
    Refused,
    Reservation,
    RunFields,
    Settled,
    Settlement,
    UnitPrice,
    Usage,
    UsageEvent,
    WorkFields,
)
from tallystick.money import Money
from tallystick.run import AsyncRun, Run

__all__ = [
    "Aborted",
    "Access",
    "AlreadyExists",
    "AsyncClient",
    "AsyncRun",
    "Balance",
    "BudgetExceeded",
    "BufferFull",
    "BufferInUse",
    "BufferStats",
    "Cancelled",
    "ChargeLine",
    "ChargePending",
    "Client",
    "CustomerFrozen",
    "DeadlineExceeded",
    "DeferredOutcome",
    "EventFields",
    "FailedPrecondition",
    "FieldViolation",
    "FinalOutcome",
    "IdempotencyKeyReused",
    "InsufficientCredits",
    "Internal",
    "InvalidArgument",
    "Metered",
    "Money",
    "NotFound",
    "Outcome",
    "OutcomeAlreadyResolved",
    "OutcomeExpired",
    "OutcomeNotFound",
    "Payment",
    "PaymentMethodNotFound",
    "PermissionDenied",
    "Purchase",
    "PurchaseState",
    "Refused",
    "Reservation",
    "ReservationEnded",
    "ReservationTokenInvalid",
    "ResourceExhausted",
    "RetryPolicy",
    "Run",
    "RunFields",
    "Settled",
    "Settlement",
    "TallystickError",
    "Unauthenticated",
    "Unavailable",
    "UnitPrice",
    "Usage",
    "UsageEvent",
    "WorkFields",
    "evidence_hash",
    "read_refused",
]
