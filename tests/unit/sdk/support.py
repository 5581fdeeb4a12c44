"""A metering of a few lines: grpcio-testing's channel, and answers as the servers make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import grpc_testing
from google.protobuf.message import Message
from grpc_status import rpc_status

from services.kit.errors import TallystickError as ServerError
from services.kit.status import to_status_proto
from tallystick import Client, RetryPolicy
from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import (
    charge_line_pb2,
    metering_service_pb2,
    price_book_pb2,
    reservation_pb2,
)

T = TypeVar("T")

METERING = metering_service_pb2.DESCRIPTOR.services_by_name["MeteringService"]
KEY = "tsk_test_secret"
# Waits are real but short; the budget is far above what any test needs.
QUICK = RetryPolicy(timeout=30, attempt_timeout=10, first_backoff=0.001, max_backoff=0.002)
EVENT: Any = {
    "customer": "cus_1",
    "agent": "agt_a",
    "workflow_id": "run-1",
    "action": "run",
}


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


def metered(micros: int = 7, *, duplicate: bool = False) -> metering_service_pb2.MeteredEvent:
    """A charge of so many micros, paid from credits, which leave 93."""
    return metering_service_pb2.MeteredEvent(
        charge_id="ch_1",
        outcome_id="out_1",
        price_charged=usd(micros),
        lines=[
            charge_line_pb2.ChargeLine(
                component_name="input",
                quantity=10,
                unit_price=price_book_pb2.UnitPrice(amount="0.60", per_units=1_000_000),
                amount=usd(micros),
            )
        ],
        price_version_id="pv_1",
        from_credits=usd(micros),
        from_receivable=usd(0),
        unpaid=usd(0),
        available_balance=usd(93),
        duplicate=duplicate,
    )


def reservation(number: int = 1, micros: int = 500_000, end: int = 2_000) -> reservation_pb2.Reservation:
    """So many micros of cus_1 for run-1, until so many seconds after 1970, with the token of this number."""
    made = reservation_pb2.Reservation(
        reservation_id="rsv_1",
        token=f"rst_{number}",
        customer_id="cus_1",
        workflow_id="run-1",
        agent_id="agt_a",
        amount=usd(micros),
        price_version_id="pv_1",
        kind=reservation_pb2.RESERVATION_KIND_LEASED,
    )
    made.expire_time.FromSeconds(end)
    return made


def authorized(**changes: int) -> metering_service_pb2.AuthorizeResponse:
    return metering_service_pb2.AuthorizeResponse(
        reservation=reservation(**changes), available_balance=usd(500_000)
    )


def extended(**changes: int) -> metering_service_pb2.ExtendResponse:
    return metering_service_pb2.ExtendResponse(reservation=reservation(**changes))


def settlement(captured: int, reserved: int = 500_000) -> reservation_pb2.Settlement:
    return reservation_pb2.Settlement(
        reservation_id="rsv_1",
        state=reservation_pb2.RESERVATION_STATE_SETTLED
        if captured
        else reservation_pb2.RESERVATION_STATE_RELEASED,
        reserved=usd(reserved),
        captured=usd(captured),
        returned=usd(reserved - captured),
        excess=usd(0),
        excess_from_credits=usd(0),
        excess_from_receivable=usd(0),
        excess_unpaid=usd(0),
    )


def settled(micros: int = 7) -> metering_service_pb2.SettleResponse:
    return metering_service_pb2.SettleResponse(metered=metered(micros), settlement=settlement(micros))


def released() -> metering_service_pb2.ReleaseResponse:
    return metering_service_pb2.ReleaseResponse(settlement=settlement(0), available_balance=usd(1_000_000))


class Servers:
    """Metering behind a channel. The client calls from threads; the test answers."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.channel = grpc_testing.channel([METERING], grpc_testing.strict_real_time())
        self._pool = pool
        self.metadata: list[tuple[tuple[str, str], ...]] = []

    def client(self, **options: Any) -> Client:
        return Client(KEY, **{"metering": self.channel, "retry": QUICK} | options)

    def begin(self, function: Callable[[], T]) -> Future[T]:
        """Let the client work while the test answers."""
        return self._pool.submit(function)

    def answer(
        self, method: str, answer: Message | ServerError | grpc.StatusCode, *, message: str = ""
    ) -> Any:
        """Take the client's next call of this method and answer it; the request that it came with."""
        metadata, request, rpc = self.channel.take_unary_unary(METERING.methods_by_name[method])
        self.metadata.append(tuple(metadata))
        if isinstance(answer, ServerError):
            status = rpc_status.to_status(to_status_proto(answer, request_id="req-server"))
            rpc.terminate(None, status.trailing_metadata, status.code, status.details)
        elif isinstance(answer, grpc.StatusCode):
            rpc.terminate(None, (), answer, message)
        else:
            rpc.terminate(answer, (), grpc.StatusCode.OK, "")
        return request

    def answer_meter(self, answer: ServerError | grpc.StatusCode | None = None, micros: int = 7) -> Any:
        response = metering_service_pb2.MeterResponse(metered=metered(micros))
        return self.answer("Meter", response if answer is None else answer)

    def answer_batch(self, *verdicts: metering_service_pb2.MeterVerdict) -> Any:
        return self.answer("MeterBatch", metering_service_pb2.MeterBatchResponse(verdicts=verdicts))


def charged(micros: int = 7) -> metering_service_pb2.MeterVerdict:
    return metering_service_pb2.MeterVerdict(metered=metered(micros))


def workflows(request: metering_service_pb2.MeterBatchRequest) -> Sequence[str]:
    return [event.workflow_id for event in request.events]


@contextmanager
def servers() -> Iterator[Servers]:
    with ThreadPoolExecutor(4) as pool:
        yield Servers(pool)
