"""The services, as a page asks them: with the API key of whoever looks at it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.client import authorization
from services.kit.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    TallystickError,
    Unauthenticated,
)
from services.kit.status import from_rpc_error
from tallystick.ledger.v1 import (
    audit_service_pb2_grpc,
    directory_service_pb2_grpc,
    ledger_service_pb2_grpc,
)
from tallystick.metering.v1 import (
    metering_service_pb2_grpc,
    period_service_pb2_grpc,
    pricing_service_pb2_grpc,
    rating_service_pb2_grpc,
    subscription_service_pb2_grpc,
)
from tallystick.payouts.v1 import (
    connect_service_pb2_grpc,
    payment_service_pb2_grpc,
    payout_service_pb2_grpc,
    reconciliation_service_pb2_grpc,
)
from tallystick.reporting.v1 import projection_service_pb2_grpc, reporting_service_pb2_grpc

# A person waits: better a page that says what is away than one that does not come.
_READ_SECONDS: Final = 8.0
# Payouts asks the payment processor, which may take its time; the outcome is worth the wait.
_WRITE_SECONDS: Final = 30.0
_HEALTH_SECONDS: Final = 2.0

# What these say is true of the whole page, not of one part of it.
_DECISIVE: Final = (InvalidArgument, NotFound, PermissionDenied, Unauthenticated)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Channels:
    """A channel to each service, none with a key of its own (`connect(address, None)`)."""

    ledger: grpc.aio.Channel
    metering: grpc.aio.Channel
    payouts: grpc.aio.Channel
    reporting: grpc.aio.Channel


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered for a part of a page, or why it could not."""

    # Templates and handlers look at it only if `ok`.
    value: Any
    error: TallystickError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


class Backend:
    """The stubs of all services."""

    def __init__(self, channels: Channels) -> None:
        self.channels: Final = {
            "ledger": channels.ledger,
            "metering": channels.metering,
            "payouts": channels.payouts,
            "reporting": channels.reporting,
        }
        self.directory: Final = directory_service_pb2_grpc.DirectoryServiceStub(channels.ledger)
        self.audits: Final = audit_service_pb2_grpc.AuditServiceStub(channels.ledger)
        self.ledger: Final = ledger_service_pb2_grpc.LedgerServiceStub(channels.ledger)
        self.metering: Final = metering_service_pb2_grpc.MeteringServiceStub(channels.metering)
        self.pricing: Final = pricing_service_pb2_grpc.PricingServiceStub(channels.metering)
        self.periods: Final = period_service_pb2_grpc.PeriodServiceStub(channels.metering)
        self.subscriptions: Final = subscription_service_pb2_grpc.SubscriptionServiceStub(channels.metering)
        self.rating: Final = rating_service_pb2_grpc.RatingServiceStub(channels.metering)
        self.payouts: Final = payout_service_pb2_grpc.PayoutServiceStub(channels.payouts)
        self.connect: Final = connect_service_pb2_grpc.ConnectServiceStub(channels.payouts)
        self.payments: Final = payment_service_pb2_grpc.PaymentServiceStub(channels.payouts)
        self.reconciliation: Final = reconciliation_service_pb2_grpc.ReconciliationServiceStub(
            channels.payouts
        )
        self.reporting: Final = reporting_service_pb2_grpc.ReportingServiceStub(channels.reporting)
        self.projections: Final = projection_service_pb2_grpc.ProjectionServiceStub(channels.reporting)

    async def health(self) -> dict[str, bool]:
        """Which services answer that they serve. Asked without a key, as probes do."""
        answers = await asyncio.gather(*(_serves(channel) for channel in self.channels.values()))
        return dict(zip(self.channels, answers, strict=True))


class Asker:
    """Asks with one API key."""

    def __init__(self, api_key: str) -> None:
        self._metadata = authorization(api_key)

    async def ask(self, method: Callable[..., Awaitable[T]], request: Message) -> T:
        """The answer to a question. Raises TallystickError."""
        return await self._call(method, request, _READ_SECONDS)

    async def tell(self, method: Callable[..., Awaitable[T]], request: Message) -> T:
        """The answer to a request that changes something. Raises TallystickError."""
        return await self._call(method, request, _WRITE_SECONDS)

    async def stream(
        self, method: Callable[..., AsyncIterable[T]], request: Message
    ) -> AsyncGenerator[T, None]:
        """The messages of a stream. Close it (`aclosing`) to read no more. Raises TallystickError."""
        call: Any = method(request, metadata=self._metadata, timeout=_READ_SECONDS)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, callers_key=True) from None
        finally:
            call.cancel()

    async def _call(self, method: Callable[..., Awaitable[T]], request: Message, seconds: float) -> T:
        try:
            return await method(request, metadata=self._metadata, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, callers_key=True) from None


async def answers(**questions: Awaitable[Any]) -> dict[str, Answer]:
    """The answers to all parts of a page, asked at once.

    Raises TallystickError if one says something about the whole page: that there is no such thing, or that
    the caller may not see it. That a service is away is an answer like any other.
    """
    results = await asyncio.gather(*questions.values(), return_exceptions=True)
    found: dict[str, Answer] = {}
    for name, result in zip(questions, results, strict=True):
        if isinstance(result, BaseException):
            if not isinstance(result, TallystickError) or isinstance(result, _DECISIVE):
                raise result
            found[name] = Answer(None, result)
        else:
            found[name] = Answer(result)
    return found


async def _serves(channel: grpc.aio.Channel) -> bool:
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS
        )
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
