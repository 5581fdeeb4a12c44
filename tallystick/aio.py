"""The asynchronous client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from tallystick import _operations, _requests
from tallystick._buffer import DEFAULT_CAPACITY
from tallystick._channel import (
    METERING_ADDRESS,
    OPTIONS,
    PAYOUTS_ADDRESS,
    PLAINTEXT_OPTIONS,
    REPORTING_ADDRESS,
    Caller,
)
from tallystick._delivery import DeliveryTask
from tallystick._operations import Call, Operation, Wait
from tallystick._outbox import BufferOptions, BufferStats, Outbox
from tallystick._requests import Amount
from tallystick._retry import RetryPolicy
from tallystick._run import OnError, Plan, WhenUnavailable
from tallystick._status import from_rpc_error
from tallystick.errors import Cancelled, TallystickError
from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceStub
from tallystick.models import (
    Access,
    Balance,
    DeferredOutcome,
    EventFields,
    FinalOutcome,
    Metered,
    Purchase,
    Refused,
    Reservation,
    RunFields,
    Settled,
    Settlement,
    Usage,
    UsageEvent,
    WorkFields,
)
from tallystick.payouts.v1.payment_service_pb2_grpc import PaymentServiceStub
from tallystick.reporting.v1.reporting_service_pb2_grpc import ReportingServiceStub
from tallystick.reports import (
    Earnings,
    Interval,
    Payout,
    Period,
    ReportedCharge,
    UsageGrouping,
    UsageReport,
)
from tallystick.run import AsyncRun

T = TypeVar("T")


class AsyncClient:
    """`tallystick.Client` for asyncio: the same arguments, methods and errors, to be awaited.

    May be made anywhere; it belongs to the event loop that it is first used in. Close it, best with `async
    with`: when the loop ends, nothing can be delivered any more. What an earlier process left in
    `buffer_path` is delivered from the beginning of the `async with`, or from the first `record` or
    `flush`.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        metering: str | grpc.aio.Channel = METERING_ADDRESS,
        payouts: str | grpc.aio.Channel = PAYOUTS_ADDRESS,
        reporting: str | grpc.aio.Channel = REPORTING_ADDRESS,
        tls_ca: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        retry: RetryPolicy | None = None,
        buffer_path: str | os.PathLike[str] | None = None,
        buffer_capacity: int = DEFAULT_CAPACITY,
        buffer_fsync: bool = False,
        on_refused: Callable[[Refused], object] | None = None,
    ) -> None:
        self._caller = Caller.of(api_key, tls_ca, insecure)
        self._retry = retry or RetryPolicy()
        self._target = metering
        self._payouts_target = payouts
        self._reporting_target = reporting
        self._closed = False
        self._channels: list[grpc.aio.Channel] = []
        # Filled at the first call: channels belong to the event loop that is running when they are made.
        self._methods: dict[str, Any] = {}
        options = BufferOptions(
            path=buffer_path, capacity=buffer_capacity, fsync=buffer_fsync, on_refused=on_refused
        )
        self._outbox = Outbox(options, self._retry)
        self._delivery = DeliveryTask(self._outbox, self._call)

    async def meter(self, *, timeout: float | None = None, **event: Unpack[EventFields]) -> Metered:
        """As `Client.meter`: charge one finished run or action, and learn what it cost."""
        return await self._drive(_operations.meter(UsageEvent(**event), self._retry, timeout))

    async def meter_batch(
        self, events: Iterable[UsageEvent], *, timeout: float | None = None
    ) -> list[Metered | TallystickError]:
        """As `Client.meter_batch`: charge many events, with a verdict for each."""
        return await self._drive(_operations.meter_batch(list(events), self._retry, timeout))

    def run(
        self,
        *,
        max_cost: Amount | None = None,
        expected: Usage | None = None,
        ttl: timedelta | None = None,
        idempotency_key: str | None = None,
        when_unavailable: WhenUnavailable = "raise",
        on_error: OnError = "release",
        keep_alive: bool = True,
        timeout: float | None = None,
        **work: Unpack[RunFields],
    ) -> AsyncRun:
        """As `Client.run`; used with `async with`. Its `extend` is awaited, the rest is not."""
        plan = Plan.of(
            work,
            max_cost=max_cost,
            expected=expected,
            ttl=ttl,
            idempotency_key=idempotency_key,
            when_unavailable=when_unavailable,
            on_error=on_error,
            keep_alive=keep_alive,
            timeout=timeout,
        )
        return AsyncRun(plan, self._retry, self._keep, self._drive)

    async def authorize(
        self,
        *,
        max_cost: Amount | None = None,
        expected: Usage | None = None,
        ttl: timedelta | None = None,
        idempotency_key: str = "",
        timeout: float | None = None,
        **work: Unpack[WorkFields],
    ) -> Reservation:
        """As `Client.authorize`: reserve money for a run, and pin its price."""
        event = _requests.planned(work, WorkFields)
        request = _requests.authorize_request(max_cost, expected, ttl, idempotency_key, event)
        return await self._drive(_operations.authorize(request, self._retry, timeout))

    async def extend(
        self,
        reservation: Reservation | str,
        *,
        max_cost: Amount | None = None,
        ttl: timedelta | None = None,
        timeout: float | None = None,
    ) -> Reservation:
        """As `Client.extend`: raise a reservation, or keep it for longer."""
        request = _requests.extend_request(reservation, max_cost, ttl)
        return await self._drive(_operations.extend(request, self._retry, timeout))

    async def settle(
        self,
        reservation: Reservation | str,
        *,
        timeout: float | None = None,
        **event: Unpack[EventFields],
    ) -> Settled:
        """As `Client.settle`: charge a finished run and end its reservation."""
        operation = _operations.settle(reservation, UsageEvent(**event), self._retry, timeout)
        return await self._drive(operation)

    async def release(self, reservation: Reservation | str, *, timeout: float | None = None) -> Settlement:
        """As `Client.release`: end a reservation without a charge."""
        return await self._drive(_operations.release(reservation, self._retry, timeout))

    async def check_access(
        self,
        customer: str,
        agent: str,
        action: str,
        *,
        cost: Amount | None = None,
        workflow_id: str = "",
        timeout: float | None = None,
    ) -> Access:
        """As `Client.check_access`: whether a customer may run an agent now, and up to what cost."""
        request = _requests.check_access_request(customer, agent, action, cost, workflow_id)
        return await self._drive(_operations.check_access(request, self._retry, timeout))

    async def balance(
        self, customer: str = "", currency: str = "USD", *, timeout: float | None = None
    ) -> Balance:
        """As `Client.balance`: what a customer has and owes in one currency."""
        return await self._drive(_operations.balance(customer, currency, self._retry, timeout))

    async def purchase(
        self,
        amount: Amount,
        currency: str = "USD",
        payment_method: str | None = None,
        idempotency_key: str | None = None,
        *,
        customer: str = "",
        timeout: float | None = None,
    ) -> Purchase:
        """As `Client.purchase`: buy credits with a saved payment method."""
        request = _requests.purchase_request(amount, currency, payment_method, idempotency_key, customer)
        return await self._drive(_operations.purchase(request, self._retry, timeout))

    async def usage(
        self,
        period: Period = "30d",
        group_by: UsageGrouping | None = None,
        *,
        organization: str = "",
        customer: str = "",
        currency: str = "USD",
        time_zone: str = "UTC",
        limit: int = 100,
        series: Interval | bool = False,
        timeout: float | None = None,
    ) -> UsageReport:
        """As `Client.usage`: what agents did in a period, and what it cost."""
        request = _requests.usage_request(
            period, group_by, organization, customer, currency, time_zone, limit, series
        )
        return await self._drive(_operations.usage(request, self._retry, timeout))

    async def earnings(
        self,
        organization: str = "",
        currency: str = "USD",
        *,
        time_zone: str = "UTC",
        months: int = 12,
        timeout: float | None = None,
    ) -> Earnings:
        """As `Client.earnings`: what an organization earned, and what of it can be paid out."""
        operation = _operations.earnings(organization, currency, time_zone, months, self._retry, timeout)
        return await self._drive(operation)

    async def payouts(
        self, organization: str = "", *, limit: int = 50, timeout: float | None = None
    ) -> list[Payout]:
        """As `Client.payouts`: the newest payouts of an organization."""
        return await self._drive(_operations.payouts(organization, limit, self._retry, timeout))

    async def charge(self, charge_id: str, *, timeout: float | None = None) -> ReportedCharge:
        """As `Client.charge`: one charge with what it was for."""
        return await self._drive(_operations.charge(charge_id, self._retry, timeout))

    async def resolve_outcome(
        self,
        outcome_id: str,
        outcome: FinalOutcome,
        *,
        evidence: Mapping[str, object] | None = None,
        evidence_ref: str = "",
        result: Mapping[str, object] | None = None,
        timeout: float | None = None,
    ) -> DeferredOutcome:
        """As `Client.resolve_outcome`: say how work ended that was reported as pending."""
        operation = _operations.resolve_outcome(
            outcome_id, outcome, evidence, evidence_ref, result, self._retry, timeout
        )
        return await self._drive(operation)

    async def outcome(self, outcome_id: str, *, timeout: float | None = None) -> DeferredOutcome:
        """As `Client.outcome`: the outcome of an event that was reported as pending."""
        return await self._drive(_operations.outcome(outcome_id, self._retry, timeout))

    def record(self, **event: Unpack[EventFields]) -> None:
        """As `Client.record`: take finished work for later. Nothing to await; call it in the event loop."""
        self._keep(UsageEvent(**event))

    async def flush(self, timeout: float | None = None) -> int:
        """As `Client.flush`: wait for what is recorded by now; answers how many events are not delivered."""
        return await self._delivery.flush(timeout)

    @property
    def stats(self) -> BufferStats:
        """What became of the recorded events."""
        return self._outbox.stats()

    async def close(self, timeout: float | None = 5.0) -> list[UsageEvent]:
        """As `Client.close`: deliver what is recorded, then close, and answer what is left."""
        if self._closed:
            return []
        await self._delivery.flush(timeout)
        await self._delivery.stop()
        self._closed = True
        for channel in self._channels:
            await channel.close()
        return self._outbox.close()

    async def __aenter__(self) -> Self:
        if len(self._outbox):
            self._delivery.notify()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _keep(self, event: UsageEvent, token: str = "") -> None:
        self._outbox.add(event, token)
        self._delivery.notify()

    def _connect(self) -> None:
        stub = MeteringServiceStub(self._channel(self._target))
        self._methods = {method: getattr(stub, method) for method in _operations.METHODS}
        payments = PaymentServiceStub(self._channel(self._payouts_target))
        self._methods |= {method: getattr(payments, method) for method in _operations.PAYMENT_METHODS}
        reports = ReportingServiceStub(self._channel(self._reporting_target))
        self._methods |= {method: getattr(reports, method) for method in _operations.REPORT_METHODS}

    def _channel(self, target: str | grpc.aio.Channel) -> grpc.aio.Channel:
        if isinstance(target, grpc.aio.Channel):
            return target
        credentials = self._caller.credentials(target)
        channel = (
            grpc.aio.insecure_channel(target, options=PLAINTEXT_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options=OPTIONS)
        )
        self._channels.append(channel)
        return channel

    async def _drive(self, operation: Operation[T]) -> T:
        """Drive an operation to its end."""
        # One that is interrupted learns it, and may have something to save.
        with closing(operation):
            answer: object = None
            while True:
                if self._closed:
                    raise RuntimeError("the client is closed")
                try:
                    step = operation.send(answer)
                except StopIteration as done:
                    result: T = done.value
                    return result
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    answer = None
                else:
                    answer = await self._call(step)

    async def _call(self, call: Call) -> object:
        if not self._methods:
            self._connect()
        try:
            return await self._methods[call.method](
                call.request, timeout=call.timeout, metadata=self._caller.metadata(call.request_id)
            )
        except grpc.RpcError as error:
            return from_rpc_error(error, request_id=call.request_id)
        except asyncio.CancelledError:
            # What grpc raises when the channel is closed meanwhile, though nobody cancelled this task.
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            return Cancelled("the client is closed", request_id=call.request_id)
