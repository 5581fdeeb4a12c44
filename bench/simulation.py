"""Long rating work: a simulation of a million runs, and the re-rating of as many charges as were written."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import psycopg

from bench.contestants import UnexpectedAnswerError
from bench.machine import Processes, parent_of
from bench.results import RERATE, SIMULATE, Result, rounded
from bench.summary import median
from bench.world import Suite
from sandbox.process import SandboxError
from sandbox.stack import Stack
from services.kit.client import connect
from services.kit.times import set_timestamp
from services.metering.domain.compiled_price import compile_price_list
from services.metering.domain.rating import rate
from services.metering.domain.workload import Workload, draw
from services.metering.rpc.convert import OUTCOMES_TO_PROTO, execution_from_proto
from services.metering.rpc.prices import price_list_from_proto
from services.metering.store.outcome_format import lines_to_json
from tallystick.metering.v1 import price_book_pb2, pricing_service_pb2, usage_pb2
from tallystick.metering.v1 import rating_service_pb2 as pb
from tallystick.metering.v1.pricing_service_pb2_grpc import PricingServiceStub
from tallystick.metering.v1.rating_service_pb2_grpc import RatingServiceStub

if TYPE_CHECKING:
    # Known to type checkers only.
    from tallystick.metering.v1.rating_service_pb2_grpc import RatingServiceAsyncStub

_RUNS: Final = 1_000_000
_CUSTOMERS: Final = 1_000
_SEED: Final = 7
_START: Final = datetime(2026, 11, 1, tzinfo=UTC)
_LENGTH: Final = timedelta(days=30)
_SECONDS: Final = 600.0
_COLUMNS: Final = (
    "customer_id, workflow_id, ordinal, organization_id, agent_id, occur_time, content, evidence_ref,"
    " evidence_hash, price_version_id, currency_code, amount_micros, lines"
)


@dataclass(frozen=True)
class RatingWorld(Suite):
    """A metering, and an operator who asks it what prices would come to."""

    rating: RatingServiceAsyncStub
    price_version_id: str


def _unit(amount: str, per_units: int = 1) -> price_book_pb2.UnitPrice:
    return price_book_pb2.UnitPrice(amount=amount, per_units=per_units)


def _hybrid(start: str) -> pb.PriceList:
    """A fee, tokens in tiers, and a bonus."""
    million = 1_000_000
    return pb.PriceList(
        currency_code="USD",
        prices=[
            price_book_pb2.Price(
                name="run",
                components=[
                    price_book_pb2.PriceComponent(
                        name="start", base_fee=price_book_pb2.BaseFee(price=_unit(start))
                    ),
                    price_book_pb2.PriceComponent(
                        name="input",
                        meter_rate=price_book_pb2.MeterRate(
                            meter="input_tokens",
                            tier_mode=price_book_pb2.TIER_MODE_GRADUATED,
                            tiers=[
                                price_book_pb2.Tier(up_to=50_000, price=_unit("3", million)),
                                price_book_pb2.Tier(price=_unit("2.5", million)),
                            ],
                        ),
                    ),
                    price_book_pb2.PriceComponent(
                        name="output",
                        meter_rate=price_book_pb2.MeterRate(
                            meter="output_tokens", tiers=[price_book_pb2.Tier(price=_unit("12", million))]
                        ),
                    ),
                    price_book_pb2.PriceComponent(
                        name="success",
                        outcome_bonus=price_book_pb2.OutcomeBonus(
                            outcome=usage_pb2.OUTCOME_SUCCESS, price=_unit("0.20")
                        ),
                    ),
                ],
            )
        ],
    )


@asynccontextmanager
async def open_rating_world(stack: Stack) -> AsyncIterator[RatingWorld]:
    """A fresh stack with one published version."""
    async with AsyncExitStack() as cleanup:
        channel = await cleanup.enter_async_context(
            connect(stack.endpoints.metering, stack.operator_key.read())
        )
        pricing = PricingServiceStub(channel)
        book = await pricing.CreatePriceBook(pricing_service_pb2.CreatePriceBookRequest(currency_code="USD"))
        draft = await pricing.CreatePriceVersion(
            pricing_service_pb2.CreatePriceVersionRequest(
                price_book_id=book.price_book.price_book_id,
                prices=_hybrid("0.005").prices,
                idempotency_key="bench",
            )
        )
        admin = await cleanup.enter_async_context(
            await psycopg.AsyncConnection.connect(stack.endpoints.database_url, autocommit=True)
        )
        metering = stack.pid("metering")
        if metering is None:
            raise SandboxError("metering ended before the run began")
        yield RatingWorld(
            processes=Processes({"metering": metering, "postgres": parent_of(admin.info.backend_pid)}),
            database_url=stack.endpoints.database_url,
            backlog="SELECT 0",
            drain_seconds=_SECONDS,
            ledger_metrics=stack.endpoints.ledger_metrics,
            admin=admin,
            rating=RatingServiceStub(channel),
            price_version_id=draft.price_version.price_version_id,
        )


async def simulate(
    world: RatingWorld, rounds: int, conditions: Mapping[str, object], say: Callable[[str], None]
) -> Result:
    """A million runs by one price list, from the call to its answer."""
    request = pb.SimulateRequest(
        books=[pb.SimulatedBook(price_version_id=world.price_version_id)],
        workload=pb.Workload(
            run_count=_RUNS, seed=_SEED, customer_count=_CUSTOMERS, customer_skew=1_000, model="gpt-4.1"
        ),
    )
    values = []
    for _ in range(rounds):
        started = time.perf_counter()
        answer = await world.rating.Simulate(request, timeout=_SECONDS)
        values.append(time.perf_counter() - started)
        if answer.workload.run_count != _RUNS or answer.books[0].unpriced_run_count:
            raise UnexpectedAnswerError("a simulation left runs out")
        say(f"{SIMULATE}: {_RUNS:,} runs in {values[-1]:.1f} s")
    about = {"runs": _RUNS, "value_by_round": [rounded(one) for one in values], **conditions}
    return Result(SIMULATE, rounded(median(values)), "s", None, None, None, None, about)


async def rerate(
    world: RatingWorld,
    charges: int,
    rounds: int,
    conditions: Mapping[str, object],
    say: Callable[[str], None],
) -> Result:
    """So many charges, proved and compared with another price list, from the call to its last message."""
    say(f"writing {charges:,} charges")
    await _write(world, charges)
    request = pb.RerateRequest(price_list=_hybrid("0.004"))
    set_timestamp(request.start_time, _START)
    set_timestamp(request.end_time, _START + _LENGTH)
    values = []
    for _ in range(rounds):
        started = time.perf_counter()
        summary = pb.RerateSummary()
        async for message in world.rating.Rerate(request, timeout=_SECONDS):
            summary = message.summary
        values.append(charges / (time.perf_counter() - started))
        if summary.reproduced_charge_count != charges or summary.mismatched_charge_count:
            raise UnexpectedAnswerError("a re-rating does not reproduce what was charged")
        if summary.charged[0].amount_micros - summary.rerated[0].amount_micros != charges * 1_000:
            raise UnexpectedAnswerError("a re-rating differs by another amount than its price list")
        say(f"{RERATE}: {values[-1]:,.0f} charges/s")
    about = {"charges": charges, "value_by_round": [rounded(one) for one in values], **conditions}
    return Result(RERATE, rounded(median(values)), "charges/s", None, None, None, None, about)


async def _write(world: RatingWorld, count: int) -> None:
    """Write usage events as the pipeline would have recorded them; nothing follows from them."""
    admin = world.admin
    await admin.execute("SET session_replication_role = replica")
    async with (
        admin.cursor() as cursor,
        cursor.copy(f"COPY metering.usage_event ({_COLUMNS}) FROM STDIN".encode()) as copied,
    ):
        for row in _rows(world.price_version_id, count):
            await copied.write_row(row)
    await admin.execute("RESET session_replication_role")
    await admin.execute("VACUUM ANALYZE metering.usage_event")


def _rows(price_version_id: str, count: int) -> Iterator[tuple[object, ...]]:
    (price,) = compile_price_list(price_list_from_proto(_hybrid("0.005")))
    workload = Workload(min(count, _RUNS), _START, _START + _LENGTH, customer_count=_CUSTOMERS, seed=_SEED)
    drawn = draw(workload)
    # Twenty times as many kinds as were recorded, as a host would have that many more agents.
    noise = random.Random(_SEED)  # noqa: S311 - not a secret
    for number in range(count):
        usage, outcome = drawn.profiles[drawn.runs[number % len(drawn.runs)]]
        event = usage_pb2.UsageEvent(
            customer_id=f"cus_{drawn.customers[number % len(drawn.customers)]}",
            workflow_id=f"wf-{number}",
            agent_id="agt_bench",
            action_type="run",
            outcome=OUTCOMES_TO_PROTO[outcome],
        )
        event.usage.model = usage.model
        event.usage.input_tokens = usage.input_tokens + noise.randrange(20)
        event.usage.output_tokens = usage.output_tokens
        event.usage.inference_calls = usage.inference_calls
        moment = _START + _LENGTH * number / count
        set_timestamp(event.occur_time, moment)
        rated = rate(price, execution_from_proto(event, moment))
        yield (
            event.customer_id,
            event.workflow_id,
            0,
            "org_bench",
            event.agent_id,
            moment,
            event.SerializeToString(deterministic=True),
            "",
            b"",
            price_version_id,
            "USD",
            rated.total_micros,
            lines_to_json(rated.lines),
        )
