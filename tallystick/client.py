"""The synchronous client."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from tallystick import _operations
from tallystick._buffer import DEFAULT_CAPACITY
from tallystick._channel import LEDGER_ADDRESS, METERING_ADDRESS, OPTIONS, PLAINTEXT_OPTIONS, Access
from tallystick._delivery import DeliveryThread
from tallystick._operations import Call, Operation, Wait
from tallystick._outbox import BufferOptions, BufferStats, Outbox
from tallystick._retry import RetryPolicy
from tallystick._status import from_rpc_error
from tallystick.errors import Cancelled, TallystickError
from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceStub
from tallystick.models import Balance, EventFields, Metered, Refused, UsageEvent

T = TypeVar("T")


class Client:
    """Reports what agents did, and learns what it cost.

    `api_key` is by default taken from the environment variable TALLYSTICK_API_KEY. `metering` and `ledger`
    are addresses (host:port), or channels that you made, which stay yours to close. Other machines are
    reached with TLS, and trusted as `tls_ca` (a file of PEM roots) or gRPC's own roots say; this machine in
    plaintext, unless `tls_ca` is given. `insecure=True` means plaintext everywhere, for networks that
    something else encrypts.

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
        ledger: str | grpc.Channel = LEDGER_ADDRESS,
        tls_ca: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        retry: RetryPolicy | None = None,
        buffer_path: str | os.PathLike[str] | None = None,
        buffer_capacity: int = DEFAULT_CAPACITY,
        buffer_fsync: bool = False,
        on_refused: Callable[[Refused], object] | None = None,
    ) -> None:
        self._access = Access.of(api_key, tls_ca, insecure)
        self._retry = retry or RetryPolicy()
        self._closed = threading.Event()
        self._channels: list[grpc.Channel] = []
        metering_stub = MeteringServiceStub(self._channel(metering))
        ledger_stub = LedgerServiceStub(self._channel(ledger))
        self._methods: dict[str, Any] = {
            **{method: getattr(metering_stub, method) for method in _operations.METERING_METHODS},
            **{method: getattr(ledger_stub, method) for method in _operations.LEDGER_METHODS},
        }
        options = BufferOptions(
            path=buffer_path, capacity=buffer_capacity, fsync=buffer_fsync, on_refused=on_refused
        )
        self._outbox = Outbox(options, self._retry)
        self._delivery = DeliveryThread(self._outbox, self._call)
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
        return self._run(_operations.meter(UsageEvent(**event), self._retry, timeout))

    def meter_batch(
        self, events: Iterable[UsageEvent], *, timeout: float | None = None
    ) -> list[Metered | TallystickError]:
        """Charge many events, in calls of up to 500. One verdict per event, in the same order.

        A refused event is an error in the list, and never fails a neighbour. Nothing is raised for a server
        that is away: when no call succeeds for `timeout` seconds, the events that are left get its error as
        their verdict.
        """
        return self._run(_operations.meter_batch(list(events), self._retry, timeout))

    def balance(self, customer: str, currency: str = "USD", *, timeout: float | None = None) -> Balance:
        """What a customer has and owes in one currency; all zero when the currency was never used."""
        return self._run(_operations.balance(customer, currency, self._retry, timeout))

    def record(self, **event: Unpack[EventFields]) -> None:
        """Take a finished run or action for later, and return at once: an agent never waits for its bill.

        The arguments are those of `meter`. The event is delivered in the background, in batches, again and
        again until it is charged or refused for good; `stats` says how that goes. What the host gave no
        `occur_time` happened now. Raises BufferFull if too many events wait: then this one was not taken,
        and none was dropped.
        """
        self._outbox.add(UsageEvent(**event))
        self._begin_delivery()

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

    def _begin_delivery(self) -> None:
        if not self._closes_at_exit:
            # The thread ends with the process; when nobody closes the client, what waits gets its time then.
            self._closes_at_exit = True
            atexit.register(self.close)
        self._delivery.notify()

    def _channel(self, target: str | grpc.Channel) -> grpc.Channel:
        if isinstance(target, grpc.Channel):
            return target
        credentials = self._access.credentials(target)
        channel = (
            grpc.insecure_channel(target, options=PLAINTEXT_OPTIONS)
            if credentials is None
            else grpc.secure_channel(target, credentials, options=OPTIONS)
        )
        self._channels.append(channel)
        return channel

    def _run(self, operation: Operation[T]) -> T:
        """Drive an operation to its end."""
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
                call.request, timeout=call.timeout, metadata=self._access.metadata(call.request_id)
            )
        except grpc.RpcError as error:
            return from_rpc_error(error, request_id=call.request_id)
        except ValueError:
            # What grpc raises on a channel that another thread has closed a moment ago.
            if not self._closed.is_set():
                raise
            return Cancelled("the client is closed", request_id=call.request_id)
