"""What is measured, and what it is measured against: one way each of sending the same kind of work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NoReturn, Self, cast

import psycopg
from psycopg.rows import TupleRow

from bench.traffic import HOT_CUSTOMER, HOT_ORGANIZATION
from bench.world import World
from services.ledger.domain.charges import ChargeIntent
from services.ledger.rpc.convert import intent_from_proto
from services.ledger.store.charges import post_charges
from tallystick.ledger.v1.ledger_service_pb2 import PostChargeRequest, PostChargesRequest
from tallystick.metering.v1.metering_service_pb2 import (
    AuthorizeRequest,
    MeterBatchRequest,
    MeterRequest,
    SettleRequest,
)
from tallystick.metering.v1.reservation_pb2 import RESERVATION_KIND_LEASED, RESERVATION_STATE_SETTLED
from tallystick.metering.v1.usage_pb2 import UsageEvent

BATCH_SIZE: Final = 500
# Two fill two cores on either side; with more, batches only wait for each other.
BATCHES_IN_FLIGHT: Final = 2
SINGLES_IN_FLIGHT: Final = 64


class UnexpectedAnswerError(Exception):
    """A call was not answered by new work done: the figures would be of something else."""


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison.

    `prepare` makes the requests of so many calls, which is not measured; `call` sends one, and `size` is how
    many operations it is. `charges` tells which table of ours each operation leaves a row in.
    """

    name: str
    in_flight: int
    size: int
    prepare: Callable[[int], Sequence[Any]]
    call: Callable[[int, Any], Awaitable[None]]
    posts: bool = True
    meters: bool = False
    # Calls that are due in a second; None for as many as are answered.
    per_second: float | None = None


def ledger_single(world: World, name: str, *, customer_id: str = "", organization_id: str = "") -> Contestant:
    """PostCharge, one charge a call."""
    intents = world.traffic.intents(customer_id=customer_id, organization_id=organization_id)

    async def call(_caller: int, request: PostChargeRequest) -> None:
        answer = await world.ledger.PostCharge(request)
        if answer.posted.duplicate:
            raise UnexpectedAnswerError("a new charge was answered as a duplicate")

    def prepare(count: int) -> list[PostChargeRequest]:
        return [PostChargeRequest(intent=intent) for intent in islice(intents, count)]

    return Contestant(name, SINGLES_IN_FLIGHT, 1, prepare, call)


def noop_ledger(world: World, name: str) -> Contestant:
    """The messages of PostCharge to and from the no-op server."""
    intents = world.traffic.intents()

    async def call(_caller: int, request: PostChargeRequest) -> None:
        await world.noop_ledger.PostCharge(request)

    def prepare(count: int) -> list[PostChargeRequest]:
        return [PostChargeRequest(intent=intent) for intent in islice(intents, count)]

    return Contestant(name, SINGLES_IN_FLIGHT, 1, prepare, call, posts=False)


def ledger_batch(world: World, name: str) -> Contestant:
    """PostCharges, 500 charges a call."""
    intents = world.traffic.intents()

    async def call(_caller: int, request: PostChargesRequest) -> None:
        answer = await world.ledger.PostCharges(request)
        if not all(verdict.HasField("posted") for verdict in answer.verdicts):
            raise UnexpectedAnswerError("a charge of a batch was refused")

    def prepare(count: int) -> list[PostChargesRequest]:
        return [PostChargesRequest(intents=islice(intents, BATCH_SIZE)) for _ in range(count)]

    return Contestant(name, BATCHES_IN_FLIGHT, BATCH_SIZE, prepare, call)


async def bare_batch(world: World, name: str) -> Contestant:
    """The statement that the ledger sends for such a batch, from bare connections, arrays prepared."""
    intents = world.traffic.intents()
    connections = [await world.writer() for _ in range(BATCHES_IN_FLIGHT)]

    async def call(caller: int, statement: Statement) -> None:
        await connections[caller].execute(statement.text, statement.parameters)

    def prepare(count: int) -> list[Statement]:
        return [
            _statement([intent_from_proto(one) for one in islice(intents, BATCH_SIZE)]) for _ in range(count)
        ]

    return Contestant(name, BATCHES_IN_FLIGHT, BATCH_SIZE, prepare, call)


def meter_single(world: World, name: str, in_flight: int = SINGLES_IN_FLIGHT) -> Contestant:
    """Meter, one event a call."""
    events = world.traffic.events()

    async def call(_caller: int, request: MeterRequest) -> None:
        answer = await world.metering.Meter(request)
        if answer.metered.duplicate:
            raise UnexpectedAnswerError("a new event was answered as a duplicate")

    def prepare(count: int) -> list[MeterRequest]:
        return [MeterRequest(event=event) for event in islice(events, count)]

    return Contestant(name, in_flight, 1, prepare, call, meters=True)


def noop_meter(world: World, name: str, in_flight: int = SINGLES_IN_FLIGHT) -> Contestant:
    """The messages of Meter to and from the no-op server."""
    events = world.traffic.events()

    async def call(_caller: int, request: MeterRequest) -> None:
        await world.noop_metering.Meter(request)

    def prepare(count: int) -> list[MeterRequest]:
        return [MeterRequest(event=event) for event in islice(events, count)]

    return Contestant(name, in_flight, 1, prepare, call, posts=False)


def meter_batch(world: World, name: str) -> Contestant:
    """MeterBatch, 500 events a call."""
    return _meter_batch(world, name, world.traffic.events())


def meter_batch_counters(world: World, name: str) -> Contestant:
    """MeterBatch, 500 events a call, whose price has tiers over the billing period."""
    return _meter_batch(world, name, world.traffic.counted_events())


def _meter_batch(world: World, name: str, events: Iterator[UsageEvent]) -> Contestant:
    async def call(_caller: int, request: MeterBatchRequest) -> None:
        answer = await world.metering.MeterBatch(request)
        if not all(verdict.HasField("metered") for verdict in answer.verdicts):
            raise UnexpectedAnswerError("an event of a batch was refused, or its charge is pending")

    def prepare(count: int) -> list[MeterBatchRequest]:
        return [MeterBatchRequest(events=islice(events, BATCH_SIZE)) for _ in range(count)]

    return Contestant(name, BATCHES_IN_FLIGHT, BATCH_SIZE, prepare, call, meters=True)


def reserve(
    world: World, name: str, in_flight: int = SINGLES_IN_FLIGHT, *, customer_id: str = ""
) -> Contestant:
    """Authorize, one run a call, within leases that are open. What is reserved ends with its time."""
    attempts = world.traffic.attempts(customer_id=customer_id)

    async def call(_caller: int, request: AuthorizeRequest) -> None:
        answer = await world.metering.Authorize(request)
        if answer.duplicate or answer.reservation.kind != RESERVATION_KIND_LEASED:
            raise UnexpectedAnswerError("a run was not reserved within a lease, or had been before")

    def prepare(count: int) -> list[AuthorizeRequest]:
        return list(islice(attempts, count))

    return Contestant(name, in_flight, 1, prepare, call, posts=False)


def noop_authorize(world: World, name: str, in_flight: int = SINGLES_IN_FLIGHT) -> Contestant:
    """The messages of Authorize to and from the no-op server."""
    attempts = world.traffic.attempts()

    async def call(_caller: int, request: AuthorizeRequest) -> None:
        await world.noop_metering.Authorize(request)

    def prepare(count: int) -> list[AuthorizeRequest]:
        return list(islice(attempts, count))

    return Contestant(name, in_flight, 1, prepare, call, posts=False)


def reserve_settle(world: World, name: str) -> Contestant:
    """Authorize, then Settle with what the run did: one operation."""
    attempts, completed = world.traffic.attempts(), world.traffic.completed()

    async def call(_caller: int, run: tuple[AuthorizeRequest, UsageEvent]) -> None:
        attempt, event = run
        token = (await world.metering.Authorize(attempt)).reservation.token
        answer = await world.metering.Settle(SettleRequest(token=token, event=event))
        if answer.metered.duplicate or answer.settlement.state != RESERVATION_STATE_SETTLED:
            raise UnexpectedAnswerError("a new run was not settled with its reservation")

    def prepare(count: int) -> list[tuple[AuthorizeRequest, UsageEvent]]:
        return list(islice(zip(attempts, completed, strict=False), count))

    return Contestant(name, SINGLES_IN_FLIGHT, 1, prepare, call, meters=True)


def noop_cycle(world: World, name: str) -> Contestant:
    """The messages of Authorize and Settle to and from the no-op server, one after the other."""
    attempts, completed = world.traffic.attempts(), world.traffic.completed()

    async def call(_caller: int, run: tuple[AuthorizeRequest, UsageEvent]) -> None:
        attempt, event = run
        token = (await world.noop_metering.Authorize(attempt)).reservation.token
        await world.noop_metering.Settle(SettleRequest(token=token, event=event))

    def prepare(count: int) -> list[tuple[AuthorizeRequest, UsageEvent]]:
        return list(islice(zip(attempts, completed, strict=False), count))

    return Contestant(name, SINGLES_IN_FLIGHT, 1, prepare, call, posts=False)


async def contestants(world: World) -> dict[str, Contestant]:
    """All of them, by name; those that are compared with each other stand together."""
    found = [
        await bare_batch(world, "bare_batch"),
        ledger_batch(world, "ledger_batch"),
        meter_batch(world, "meter_batch"),
        meter_batch_counters(world, "meter_batch_counters"),
        noop_ledger(world, "noop_ledger"),
        ledger_single(world, "ledger_single"),
        ledger_single(world, "ledger_hot_payer", customer_id=HOT_CUSTOMER),
        ledger_single(world, "ledger_hot_org", organization_id=HOT_ORGANIZATION),
        noop_meter(world, "noop_meter"),
        meter_single(world, "meter_unary"),
        noop_meter(world, "noop_meter_alone", in_flight=1),
        meter_single(world, "meter_unary_alone", in_flight=1),
        noop_authorize(world, "noop_authorize"),
        reserve(world, "reserve"),
        reserve(world, "reserve_contended", customer_id=HOT_CUSTOMER),
        noop_authorize(world, "noop_authorize_alone", in_flight=1),
        reserve(world, "reserve_alone", in_flight=1),
        noop_cycle(world, "noop_cycle"),
        reserve_settle(world, "reserve_settle"),
    ]
    return {one.name: one for one in found}


@dataclass(frozen=True, slots=True)
class Statement:
    """What a service sends to PostgreSQL."""

    text: Any
    parameters: Any


class _RecordedError(Exception):
    """Carries a statement out of the ledger's own code, instead of sending it."""

    def __init__(self, statement: Statement) -> None:
        super().__init__()
        self.statement = statement


class _Recorder:
    """Stands in for a connection, so that the floor is the ledger's very statement, whatever that becomes."""

    def cursor(self, **_options: Any) -> Self:
        return self

    def execute(self, text: Any, parameters: Any) -> NoReturn:
        raise _RecordedError(Statement(text, parameters))


def _statement(intents: Sequence[ChargeIntent]) -> Statement:
    return recorded(lambda connection: post_charges(connection, intents, "key_bench"))


def recorded(
    send: Callable[[psycopg.AsyncConnection[TupleRow]], Coroutine[Any, Any, object]],
) -> Statement:
    """The statement that the ledger's own code sends first, instead of sending it."""
    sending = send(cast("psycopg.AsyncConnection[TupleRow]", _Recorder()))
    try:
        sending.send(None)
    except _RecordedError as error:
        return error.statement
    finally:
        sending.close()
    raise TypeError("no statement was sent at first")
