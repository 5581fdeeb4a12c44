"""The second act: prices, tried on what was recorded. Three models side by side, a change while runs come in,
what the models cost, and the proof that every charge of the first act comes out of its prices again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import islice

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from sandbox.calls import TIMEOUT_SECONDS
from sandbox.register import CURRENCY, PRICE_BOOK, prices, token_rate
from sandbox.replay import RUN_ACTION, ReplayError, Work
from tallystick.metering.v1.metering_service_pb2 import MeterBatchRequest
from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceStub
from tallystick.metering.v1.price_book_pb2 import (
    TOKEN_KIND_INPUT,
    TOKEN_KIND_OUTPUT,
    BaseFee,
    OutcomeBonus,
    Price,
    PriceComponent,
    PriceSelector,
    UnitPrice,
)
from tallystick.metering.v1.pricing_service_pb2 import (
    CreatePriceVersionRequest,
    PublishPriceVersionRequest,
)
from tallystick.metering.v1.pricing_service_pb2_grpc import PricingServiceStub
from tallystick.metering.v1.rating_service_pb2 import PriceList, RerateRequest, RerateSummary
from tallystick.metering.v1.rating_service_pb2_grpc import RatingServiceStub
from tallystick.metering.v1.usage_pb2 import OUTCOME_PENDING, OUTCOME_SUCCESS, UsageEvent
from tallystick.reporting.v1.period_pb2 import Period
from tallystick.reporting.v1.reporting_service_pb2 import GetMarginRequest
from tallystick.reporting.v1.reporting_service_pb2_grpc import ReportingServiceStub
from tallystick.reporting.v1.revenue_pb2 import MARGIN_GROUPING_MODEL

# How many runs come in before the price changes, and as many behind it.
RUNS = 200
# Models that are shown; the others are summed up.
MODELS = 8


@dataclass(frozen=True, slots=True)
class ModelRow:
    """What the recorded runs come to by one way of pricing. Amounts are in micros."""

    name: str
    runs: int
    charged: int
    rerated: int
    # Whose sum is another one.
    customers: int


@dataclass(frozen=True, slots=True)
class VersionRow:
    """What came in under one version of the prices. Amounts are in micros."""

    version: str
    runs: int
    gross: int


@dataclass(frozen=True, slots=True)
class MarginRow:
    """What runs of a model brought in, and what the model cost. Amounts are exact, in US dollars."""

    model: str
    runs: int
    gross: Decimal
    # None where no list price is known.
    cost: Decimal | None


@dataclass(frozen=True, slots=True)
class SecondAct:
    """What was read back."""

    models: list[ModelRow]
    versions: list[VersionRow]
    margins: list[MarginRow]
    reproduced: int
    mismatched: int

    def summary(self) -> dict[str, object]:
        """What goes into the file of results."""
        return {
            "revenue": {row.name.partition(":")[0]: row.rerated for row in self.models},
            "charged": self.models[-1].charged,
            "reproduced_charges": self.reproduced,
            "mismatched_charges": self.mismatched,
            "versions": [asdict(row) for row in self.versions],
        }


class Stage:
    """Plays the second act as the operator, and as an agent host with a key of its own."""

    def __init__(
        self, metering: grpc.aio.Channel, reporting: grpc.aio.Channel, host: grpc.aio.Channel
    ) -> None:
        self._rating = RatingServiceStub(metering)
        self._pricing = PricingServiceStub(metering)
        self._reporting = ReportingServiceStub(reporting)
        self._host = MeteringServiceStub(host)

    async def play(
        self, start_us: int, end_us: int, runs: Sequence[Work], organization_ids: Sequence[str]
    ) -> SecondAct:
        """Everything, for the work of the first act (microseconds since 1970, the end exclusive).

        `runs` are done again, under other names. Raises ReplayError if one of them is not charged.
        """
        start, end = _timestamp(start_us), _timestamp(end_us)
        models = [await self._rerated(name, listed, start, end) for name, listed in _models()]
        margins = await self._margins(start, end, organization_ids)
        proof = await self._rerate(RerateRequest(start_time=start, end_time=end))
        versions = await self._change_prices(runs)
        return SecondAct(
            models, versions, margins, proof.reproduced_charge_count, proof.mismatched_charge_count
        )

    async def _rerated(self, name: str, listed: PriceList, start: Timestamp, end: Timestamp) -> ModelRow:
        summary = await self._rerate(RerateRequest(start_time=start, end_time=end, price_list=listed))
        return ModelRow(
            name=name,
            runs=summary.run_count,
            charged=sum(amount.amount_micros for amount in summary.charged),
            rerated=sum(amount.amount_micros for amount in summary.rerated),
            customers=summary.differing_customer_count,
        )

    async def _rerate(self, request: RerateRequest) -> RerateSummary:
        async for answer in self._rating.Rerate(request, timeout=TIMEOUT_SECONDS):
            if answer.HasField("summary"):
                return answer.summary
        raise ReplayError("a re-rating ended without its summary")

    async def _change_prices(self, runs: Sequence[Work]) -> list[VersionRow]:
        """Half of the runs come in; then success costs more, and the other half does."""
        half = len(runs) // 2
        before = await self._meter("before", runs[:half])
        draft = await self._pricing.CreatePriceVersion(
            CreatePriceVersionRequest(
                price_book_id=PRICE_BOOK, prices=prices(success="0.25"), idempotency_key="second-act/prices"
            )
        )
        await self._pricing.PublishPriceVersion(
            PublishPriceVersionRequest(price_version_id=draft.price_version.price_version_id)
        )
        after = await self._meter("after", runs[half:])
        sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        for version, gross in [*before, *after]:
            sums[version][0] += 1
            sums[version][1] += gross
        return [VersionRow(version, count, gross) for version, (count, gross) in sums.items()]

    async def _meter(self, part: str, runs: Sequence[Work]) -> list[tuple[str, int]]:
        """The version and the gross amount of the charge of each run."""
        if not runs:
            return []
        events = [_now(part, number, work) for number, work in enumerate(runs)]
        answer = await self._host.MeterBatch(MeterBatchRequest(events=events), timeout=TIMEOUT_SECONDS)
        for verdict in answer.verdicts:
            if verdict.HasField("error"):
                raise ReplayError(f"a run of the second act was not charged: {verdict.error.message}")
        return [
            (verdict.metered.price_version_id, verdict.metered.price_charged.amount_micros)
            for verdict in answer.verdicts
        ]

    async def _margins(
        self, start: Timestamp, end: Timestamp, organization_ids: Sequence[str]
    ) -> list[MarginRow]:
        """Each model, the one that brought in most first."""
        found: dict[str, MarginRow] = {}
        for organization_id in organization_ids:
            answer = await self._reporting.GetMargin(
                GetMarginRequest(
                    organization_id=organization_id,
                    period=Period(start_time=start, end_time=end),
                    grouping=MARGIN_GROUPING_MODEL,
                    limit=1_000,
                )
            )
            for one in answer.margins:
                known = one.known_count > 0 and one.unknown_count == 0
                row = MarginRow(
                    model=one.key,
                    runs=one.known_count + one.unknown_count,
                    gross=Decimal(one.gross.amount_micros) / 1_000_000,
                    cost=Decimal(one.model_cost_usd) if known else None,
                )
                found[one.key] = _added(found[one.key], row) if one.key in found else row
        return sorted(found.values(), key=lambda row: -row.gross)


def _models() -> Iterator[tuple[str, PriceList]]:
    """The ways of pricing that are compared, each for agents' runs; requests keep their price."""
    kept = [one for one in prices() if RUN_ACTION not in one.selector.action_types]
    bonus = OutcomeBonus(outcome=OUTCOME_SUCCESS, price=UnitPrice(amount="0.30"))
    usage = [
        PriceComponent(name="run", base_fee=BaseFee(price=UnitPrice(amount="0.01"))),
        token_rate("input-tokens", TOKEN_KIND_INPUT, "2.00"),
        token_rate("output-tokens", TOKEN_KIND_OUTPUT, "8.00"),
    ]
    for name, components in (
        ("usage: each run and token", usage),
        ("outcome: each success", [PriceComponent(name="success", outcome_bonus=bonus)]),
    ):
        price = Price(
            name="agent-run", selector=PriceSelector(action_types=[RUN_ACTION]), components=components
        )
        yield name, PriceList(currency_code=CURRENCY, prices=[price, *kept])
    yield "hybrid: as charged", PriceList(currency_code=CURRENCY, prices=prices())


def _now(part: str, number: int, work: Work) -> UsageEvent:
    """The run, done once more and just now, under a name of its own."""
    return UsageEvent(
        customer_id=work.customer_id,
        workflow_id=f"second-act/{part}-{number}",
        agent_id=work.party.agent_id,
        action_type=work.action_type,
        usage=work.usage,
        outcome=work.outcome,
    )


def decided(work: Iterator[Work]) -> list[Work]:
    """Enough runs for the change, of those that say how they ended."""
    return list(islice((one for one in work if one.outcome != OUTCOME_PENDING), 2 * RUNS))


def _added(one: MarginRow, other: MarginRow) -> MarginRow:
    known = one.cost is not None and other.cost is not None
    return MarginRow(
        one.model,
        one.runs + other.runs,
        one.gross + other.gross,
        (one.cost or Decimal(0)) + (other.cost or Decimal(0)) if known else None,
    )


def _timestamp(us: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(us)
    return stamp
