"""The synchronous client."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from tallystick import _operations, _requests
from tallystick._buffer import DEFAULT_CAPACITY
from tallystick._channel import METERING_ADDRESS, PAYOUTS_ADDRESS, REPORTING_ADDRESS, Caller, connect
from tallystick._delivery import DeliveryThread
from tallystick._keepalive import KeepAliveThread
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
from tallystick.run import Run

T = TypeVar("T")


class Client:
    """Asks whether agents may run, reports what they did, and learns what it cost and brought.

    `api_key` is by default taken from the environment variable TALLYSTICK_API_KEY. `metering` is an address
    (host:port), or a channel that you made, which stays yours to close; so are `payouts`, which only
    `purchase` calls, and `reporting`, which answers `usage`, `earnings`, `payouts` and `charge`. Other
    machines are reached with TLS, and trusted as `tls_ca` (a file of PEM roots) or gRPC's own roots say; this
    machine in plaintext, unless `tls_ca` is given. `insecure=True` means plaintext everywhere, for networks
    that something else encrypts.

    `record` keeps events until they are delivered, at most `buffer_capacity` of them: in memory, or, with
    `buffer_path`, in a file that survives this process and is delivered by the next client that opens it.
    An event is in the hands of the operating system when `record` returns, and so survives kill -9; with
    `buffer_fsync=True` it is on the disk itself, and survives the loss of power, which costs a disk write
    each time. One client at a time: another one gets BufferInUse. `on_refused` is called, in the
    background, with each recorded event that can never be charged as it is; it is also kept in the file
    `<buffer_path>.refused`, which `read_refused` reads, and logged if there is neither.

    Safe to use from several threads. After a fork, make another one: gRPC's connections do not survive it.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        metering: str | grpc.Channel = METERING_ADDRESS,
        payouts: str | grpc.Channel = PAYOUTS_ADDRESS,
        reporting: str | grpc.Channel = REPORTING_ADDRESS,
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
        self._closed = threading.Event()
        self._channels: list[grpc.Channel] = []
        stub = MeteringServiceStub(self._channel(metering))
        self._methods: dict[str, Any] = {method: getattr(stub, method) for method in _operations.METHODS}
        payments = PaymentServiceStub(self._channel(payouts))
        self._methods |= {method: getattr(payments, method) for method in _operations.PAYMENT_METHODS}
        reports = ReportingServiceStub(self._channel(reporting))
        self._methods |= {method: getattr(reports, method) for method in _operations.REPORT_METHODS}
        options = BufferOptions(
            path=buffer_path, capacity=buffer_capacity, fsync=buffer_fsync, on_refused=on_refused
        )
        self._outbox = Outbox(options, self._retry)
        self._delivery = DeliveryThread(self._outbox, self._call)
        self._keep_alive = KeepAliveThread(self._call)
        self._closes_at_exit = False
        if len(self._outbox):
            self._begin_delivery()

    def meter(self, *, timeout: float | None = None, **event: Unpack[EventFields]) -> Metered:
        """Charge one finished run or action, and learn what it cost, within `timeout` seconds.

        The keyword arguments are the fields of `UsageEvent`; `customer`, `agent`, `workflow_id` and
        `action` are required. `workflow_id` has to come from you, because it is the identity of the work:
        what has the same customer, workflow_id and ordinal is charged once, however often it is reported,
        also by another process after a crash. Finished work is never refused for lack of money; `payment`
        says how it was paid.

        Raises a TallystickError. When it is `retryable`, calling again with the same arguments is safe. An
        agent that must not wait calls `record`.
        """
        return self._drive(_operations.meter(UsageEvent(**event), self._retry, timeout))

    def meter_batch(
        self, events: Iterable[UsageEvent], *, timeout: float | None = None
    ) -> list[Metered | TallystickError]:
        """Charge many events, in calls of up to 500. One verdict per event, in the same order.

        A refused event is an error in the list, and never fails a neighbour. Nothing is raised for a server
        that is away: when no call succeeds for `timeout` seconds, the events that are left get its error as
        their verdict.
        """
        return self._drive(_operations.meter_batch(list(events), self._retry, timeout))

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
    ) -> Run:
        """A run of an agent: authorized on entry, settled at the end, released if it fails.

        >>> with client.run(  # doctest: +SKIP
        ...     customer="cus_ada", agent="agt_helper", action="ticket.resolve", workflow_id="ticket-4711",
        ...     max_cost="0.50",
        ... ) as run:
        ...     run.tokens(input=18_042, output=911, model="gpt-4o-mini")
        ...     run.succeed({"ticket": 4711})

        Entering reserves `max_cost` (a str, Decimal or Money, or an int of micros; never a float), or the
        price of what is `expected`, and pins the price. It raises InsufficientCredits, BudgetExceeded or
        CustomerFrozen before any work is done. If the servers are away for `timeout` seconds (30 by default),
        it raises their error; with `when_unavailable="run"` the run goes on without a reservation (after 5
        seconds by default), which no limit and no budget then bounds.

        Every call is a new attempt, unless you give it an `idempotency_key`, unique within the run: then an
        attempt whose process died is found again with its reservation; its refusal stands, and once its
        reservation has ended it raises ReservationEnded.

        The reservation ends by itself after `ttl` (5 minutes by default, at most 24 hours). It is kept alive
        in the background while the block runs, unless `keep_alive=False`.

        Leaving the block charges what `tokens` and `tool` added up, with the outcome that `succeed`, `fail`,
        `partial` or `pending` said, else "unknown". Leaving it by an exception gives the reservation back and
        charges nothing; with `on_error="settle"` what was consumed is charged, as a failure unless something
        else was said. The exception goes on in any case.

        An agent never waits long for its bill: if the servers do not answer within 5 seconds at the end,
        the usage is kept as by `record`, and delivered with its reservation (`run.recorded`). What they
        refuse for good is raised, and kept like any refused event. `run.result` says what the run cost.

        `work` says what is to be done, as in UsageEvent; `customer`, `agent`, `workflow_id` and `action` are
        required. (customer, workflow_id, ordinal) is the identity of the run: it is charged once.
        """
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
        return Run(plan, self._retry, self._keep, self._drive, self._keep_alive)

    def authorize(
        self,
        *,
        max_cost: Amount | None = None,
        expected: Usage | None = None,
        ttl: timedelta | None = None,
        idempotency_key: str = "",
        timeout: float | None = None,
        **work: Unpack[WorkFields],
    ) -> Reservation:
        """Reserve money for a run, and pin its price: what entering a `run` does, by itself.

        For runs that begin and end in different places. Keep the reservation's token with the run, and
        `settle` or `release` it. Raises InsufficientCredits, BudgetExceeded or CustomerFrozen, which stands
        for this attempt: the next one needs another `idempotency_key`. An attempt that is repeated answers
        the same reservation, or ReservationEnded.
        """
        event = _requests.planned(work, WorkFields)
        request = _requests.authorize_request(max_cost, expected, ttl, idempotency_key, event)
        return self._drive(_operations.authorize(request, self._retry, timeout))

    def extend(
        self,
        reservation: Reservation | str,
        *,
        max_cost: Amount | None = None,
        ttl: timedelta | None = None,
        timeout: float | None = None,
    ) -> Reservation:
        """Raise a reservation to `max_cost` in all, or keep it for `ttl` from now on; never less than before.

        `reservation` is what `authorize` answered, or its token. The answer's token replaces it. A
        leased one (`kind`), as those for up to 15 minutes usually are, is kept until 15 minutes from now at
        most, also with a longer `ttl`.
        Raises InsufficientCredits, BudgetExceeded, CustomerFrozen or ReservationEnded, and the reservation
        stays as it was.
        """
        request = _requests.extend_request(reservation, max_cost, ttl)
        return self._drive(_operations.extend(request, self._retry, timeout))

    def settle(
        self,
        reservation: Reservation | str,
        *,
        timeout: float | None = None,
        **event: Unpack[EventFields],
    ) -> Settled:
        """Charge a finished run and end its reservation; what the run did not cost goes back.

        The event is that of `meter`, with the identity that was authorized. Like `meter`, this is never
        refused for lack of money, may be repeated, and charges once; a reservation that has ended is no
        obstacle: the settlement says how the run was paid.
        """
        operation = _operations.settle(reservation, UsageEvent(**event), self._retry, timeout)
        return self._drive(operation)

    def release(self, reservation: Reservation | str, *, timeout: float | None = None) -> Settlement:
        """End a reservation without a charge. One that was settled stays settled, and the answer says so."""
        return self._drive(_operations.release(reservation, self._retry, timeout))

    def check_access(
        self,
        customer: str,
        agent: str,
        action: str,
        *,
        cost: Amount | None = None,
        workflow_id: str = "",
        timeout: float | None = None,
    ) -> Access:
        """Whether a customer may run an agent now, and up to what cost. Reserves nothing.

        `cost` is what the run may cost, in USD unless it is Money; when left out, at least something.
        `workflow_id` is for budgets per workflow.
        """
        request = _requests.check_access_request(customer, agent, action, cost, workflow_id)
        return self._drive(_operations.check_access(request, self._retry, timeout))

    def balance(self, customer: str = "", currency: str = "USD", *, timeout: float | None = None) -> Balance:
        """What a customer has and owes in one currency; all zero when the currency was never used.

        `customer` may be left out with a customer's own API key.
        """
        return self._drive(_operations.balance(customer, currency, self._retry, timeout))

    def purchase(
        self,
        amount: Amount,
        currency: str = "USD",
        payment_method: str | None = None,
        idempotency_key: str | None = None,
        *,
        customer: str = "",
        timeout: float | None = None,
    ) -> Purchase:
        """Buy credits with a saved payment method: the customer's default, unless one is named.

        For the API key of a customer, or an operator's with `customer`. The answer's `state` says how it
        stands; a payment that is declined is no error. "requires_action" means that the customer has to
        confirm, on `action_url`. It is "processing" if `timeout` was too short to know more.

        What is sent again with the same `idempotency_key` is bought once, however often, also by another
        process after a crash, and answers how it went on. Without one, every call buys.

        Raises PaymentMethodNotFound, or another TallystickError. After one that is `retryable`, only the same
        `idempotency_key` is safe.
        """
        request = _requests.purchase_request(amount, currency, payment_method, idempotency_key, customer)
        return self._drive(_operations.purchase(request, self._retry, timeout))

    def usage(
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
        """What agents did in a period, and what it cost: of an organization's agents, or for a customer.

        `period` ends now if it is named so ("24h", "30d", "12m"), or is "mtd" for the month to date, a year,
        month or day ("2026-11"), or a start and an end. `organization` and `customer` may be left out with
        their own API key. With `group_by` the `limit` groups that cost most come apart; with `series` also
        the usage over time, in steps that suit the period, or in hours, days or months of `time_zone`.

        The answer may be seconds behind the last event: `as_of` says what it knows.
        """
        request = _requests.usage_request(
            period, group_by, organization, customer, currency, time_zone, limit, series
        )
        return self._drive(_operations.usage(request, self._retry, timeout))

    def earnings(
        self,
        organization: str = "",
        currency: str = "USD",
        *,
        time_zone: str = "UTC",
        months: int = 12,
        timeout: float | None = None,
    ) -> Earnings:
        """What an organization earned this month and in the months before, and what of it can be paid out.

        `organization` may be left out with its own API key. `months` is how far the trend goes back, up to
        36; months begin in `time_zone`.
        """
        operation = _operations.earnings(organization, currency, time_zone, months, self._retry, timeout)
        return self._drive(operation)

    def payouts(
        self, organization: str = "", *, limit: int = 50, timeout: float | None = None
    ) -> list[Payout]:
        """The newest payouts of an organization, at most `limit`, each with how far it came.

        `organization` may be left out with its own API key.
        """
        return self._drive(_operations.payouts(organization, limit, self._retry, timeout))

    def charge(self, charge_id: str, *, timeout: float | None = None) -> ReportedCharge:
        """One charge with what it was for, once reporting has read it. Raises NotFound."""
        return self._drive(_operations.charge(charge_id, self._retry, timeout))

    def resolve_outcome(
        self,
        outcome_id: str,
        outcome: FinalOutcome,
        *,
        evidence: Mapping[str, object] | None = None,
        evidence_ref: str = "",
        result: Mapping[str, object] | None = None,
        timeout: float | None = None,
    ) -> DeferredOutcome:
        """Say how work ended that was reported as pending, and charge what that adds. May be repeated.

        `outcome_id` is that of `Metered`. The SHA-256 of `evidence` is reported, the evidence itself is
        not. `result` says what came of the work, for prices with conditions, instead of what the event said.
        Raises OutcomeAlreadyResolved if it was resolved otherwise, OutcomeExpired if it is too late.
        """
        operation = _operations.resolve_outcome(
            outcome_id, outcome, evidence, evidence_ref, result, self._retry, timeout
        )
        return self._drive(operation)

    def outcome(self, outcome_id: str, *, timeout: float | None = None) -> DeferredOutcome:
        """The outcome of an event that was reported as pending. Raises OutcomeNotFound."""
        return self._drive(_operations.outcome(outcome_id, self._retry, timeout))

    def record(self, **event: Unpack[EventFields]) -> None:
        """Take a finished run or action for later, and return at once: an agent never waits for its bill.

        The arguments are those of `meter`. The event is delivered in the background, in batches, again and
        again until it is charged or refused for good; `stats` says how that goes. What the host gave no
        `occur_time` happened now. Raises BufferFull if too many events wait: then this one was not taken,
        and none was dropped.
        """
        self._keep(UsageEvent(**event))

    def flush(self, timeout: float | None = None) -> int:
        """Wait until everything that is recorded by now is delivered; answers how many events are not."""
        return self._delivery.flush(timeout)

    @property
    def stats(self) -> BufferStats:
        """What became of the recorded events."""
        return self._outbox.stats()

    def close(self, timeout: float | None = 5.0) -> list[UsageEvent]:
        """Deliver what is recorded, for at most `timeout` seconds, close, and answer what is left.

        With `buffer_path` what is left is on disk, and delivered by the next client. Without it the answer
        is the only place that still has it. Calls in flight end with an error.
        """
        if self._closed.is_set():
            return []
        self._delivery.flush(timeout)
        self._delivery.stop()
        self._keep_alive.stop()
        self._closed.set()
        for channel in self._channels:
            channel.close()
        # Only now, when its call in flight has been ended: what it is about to write needs the file.
        self._delivery.join()
        atexit.unregister(self.close)
        return self._outbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _keep(self, event: UsageEvent, token: str = "") -> None:
        self._outbox.add(event, token)
        self._begin_delivery()

    def _begin_delivery(self) -> None:
        if not self._closes_at_exit:
            # The thread ends with the process; when nobody closes the client, what waits gets its time then.
            self._closes_at_exit = True
            atexit.register(self.close)
        self._delivery.notify()

    def _channel(self, target: str | grpc.Channel) -> grpc.Channel:
        if isinstance(target, grpc.Channel):
            return target
        channel = connect(self._caller, target)
        self._channels.append(channel)
        return channel

    def _drive(self, operation: Operation[T]) -> T:
        """Drive an operation to its end."""
        # One that is interrupted learns it, and may have something to save.
        with closing(operation):
            answer: object = None
            while True:
                if self._closed.is_set():
                    raise RuntimeError("the client is closed")
                try:
                    step = operation.send(answer)
                except StopIteration as done:
                    result: T = done.value
                    return result
                if isinstance(step, Wait):
                    # Not time.sleep: who closes the client need not wait for those who wait to try again.
                    self._closed.wait(step.seconds)
                    answer = None
                else:
                    answer = self._call(step)

    def _call(self, call: Call) -> object:
        try:
            return self._methods[call.method](
                call.request, timeout=call.timeout, metadata=self._caller.metadata(call.request_id)
            )
        except grpc.RpcError as error:
            return from_rpc_error(error, request_id=call.request_id)
        except ValueError:
            # What grpc raises on a channel that another thread has closed a moment ago.
            if not self._closed.is_set():
                raise
            return Cancelled("the client is closed", request_id=call.request_id)
