"""What an operator does before traffic comes: says who takes part, and what things cost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from itertools import islice

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from sandbox.replay import (
    CAPPED_CUSTOMER,
    CUSTOMERS,
    REQUEST_ACTION,
    RUN_ACTION,
    Party,
)
from tallystick.common.v1.access_pb2 import ROLE_CUSTOMER, ROLE_HOST, ROLE_OWNER
from tallystick.common.v1.money_pb2 import Money
from tallystick.ledger.v1.directory_service_pb2 import (
    CreateAgentRequest,
    CreateApiKeyRequest,
    CreateCustomerRequest,
    CreateOrganizationRequest,
)
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub
from tallystick.metering.v1.budget_pb2 import BUDGET_PERIOD_TOTAL, Budget
from tallystick.metering.v1.budget_service_pb2 import (
    CreateBudgetRequest,
    GetBudgetRequest,
    GetBudgetResponse,
)
from tallystick.metering.v1.budget_service_pb2_grpc import BudgetServiceStub
from tallystick.metering.v1.price_book_pb2 import (
    TOKEN_KIND_INPUT,
    TOKEN_KIND_OUTPUT,
    BaseFee,
    OutcomeBonus,
    Price,
    PriceComponent,
    PriceSelector,
    TokenKind,
    TokenRate,
    UnitPrice,
)
from tallystick.metering.v1.pricing_service_pb2 import (
    CreatePriceBookRequest,
    CreatePriceVersionRequest,
    PublishPriceVersionRequest,
)
from tallystick.metering.v1.pricing_service_pb2_grpc import PricingServiceStub
from tallystick.metering.v1.usage_pb2 import OUTCOME_SUCCESS

CURRENCY = "USD"
PRICE_BOOK = "pb_replay"
PLATFORM_FEE_BPS = 1500
PROCESSING_FEE_BPS = 290

BUDGET = "bud_replay"

ONE_DOLLAR = 1_000_000
_BUDGET_LIMIT = 2 * ONE_DOLLAR

_CALLS_IN_FLIGHT = 16


class Operator:
    """The platform's operator, over the channels of its key to ledger and metering."""

    def __init__(self, ledger: grpc.aio.Channel, metering: grpc.aio.Channel) -> None:
        self._directory = DirectoryServiceStub(ledger)
        self._pricing = PricingServiceStub(metering)
        self._budgets = BudgetServiceStub(metering)

    async def register(self, parties: Iterable[Party]) -> None:
        """Organizations and their agents, and the customers."""
        parties = list(parties)
        publishers = {party.organization_id: party.publisher for party in parties}
        await _all(
            self._directory.CreateOrganization(
                CreateOrganizationRequest(
                    organization_id=organization_id,
                    display_name=publisher,
                    platform_fee_bps=PLATFORM_FEE_BPS,
                    processing_fee_bps=PROCESSING_FEE_BPS,
                )
            )
            for organization_id, publisher in publishers.items()
        )
        await _all(
            self._directory.CreateAgent(
                CreateAgentRequest(
                    agent_id=party.agent_id,
                    organization_id=party.organization_id,
                    display_name=party.product,
                )
            )
            for party in parties
        )
        # No credit limit: whoever has no credits left owes nothing, and what it uses stays unpaid.
        await _all(
            self._directory.CreateCustomer(CreateCustomerRequest(customer_id=customer_id))
            for customer_id in CUSTOMERS
        )

    async def create_budget(self) -> None:
        """A hard limit of what one customer may spend."""
        await self._budgets.CreateBudget(
            CreateBudgetRequest(
                budget=Budget(
                    budget_id=BUDGET,
                    display_name="Budget of the replay",
                    customer_id=CAPPED_CUSTOMER,
                    # Not per day: a recording's days lie far apart, and each would have a budget of its own.
                    period=BUDGET_PERIOD_TOTAL,
                    limit=Money(currency_code=CURRENCY, amount_micros=_BUDGET_LIMIT),
                    hard=True,
                )
            )
        )

    async def budget(self) -> GetBudgetResponse:
        """That budget, and what it has counted."""
        return await self._budgets.GetBudget(GetBudgetRequest(budget_id=BUDGET))

    async def publish_prices(self, effective_us: int) -> None:
        """The platform's price book, in force from `effective_us` (microseconds since 1970) on."""
        await self._pricing.CreatePriceBook(
            CreatePriceBookRequest(
                price_book_id=PRICE_BOOK, currency_code=CURRENCY, display_name="Prices of the replay"
            )
        )
        draft = await self._pricing.CreatePriceVersion(
            CreatePriceVersionRequest(
                price_book_id=PRICE_BOOK, prices=prices(), idempotency_key="replay/prices"
            )
        )
        effective_time = Timestamp()
        effective_time.FromMicroseconds(effective_us)
        await self._pricing.PublishPriceVersion(
            PublishPriceVersionRequest(
                price_version_id=draft.price_version.price_version_id, effective_time=effective_time
            )
        )

    async def create_host_key(self) -> str:
        """The secret of an API key of the platform's agent host."""
        created = await self._directory.CreateApiKey(
            CreateApiKeyRequest(
                role=ROLE_HOST, description="Agent host of the replay", idempotency_key="replay/host"
            )
        )
        return created.secret

    async def create_owner_key(self, organization_id: str) -> str:
        """The secret of an API key of an organization's owner."""
        created = await self._directory.CreateApiKey(
            CreateApiKeyRequest(
                role=ROLE_OWNER,
                organization_id=organization_id,
                description="Owner in the replay",
                idempotency_key=f"replay/owner/{organization_id}",
            )
        )
        return created.secret

    async def create_customer_key(self, customer_id: str) -> str:
        """The secret of an API key of a customer."""
        created = await self._directory.CreateApiKey(
            CreateApiKeyRequest(
                role=ROLE_CUSTOMER,
                customer_id=customer_id,
                description="Customer in the replay",
                idempotency_key=f"replay/customer/{customer_id}",
            )
        )
        return created.secret


def prices(success: str = "0.20") -> list[Price]:
    """The prices of the replay, with so many dollars for a run that succeeds."""
    return [
        Price(
            name="agent-run",
            selector=PriceSelector(action_types=[RUN_ACTION]),
            components=[
                PriceComponent(name="run", base_fee=BaseFee(price=UnitPrice(amount="0.005"))),
                token_rate("input-tokens", TOKEN_KIND_INPUT, "0.60"),
                token_rate("output-tokens", TOKEN_KIND_OUTPUT, "2.40"),
                PriceComponent(
                    name="success",
                    outcome_bonus=OutcomeBonus(outcome=OUTCOME_SUCCESS, price=UnitPrice(amount=success)),
                ),
            ],
        ),
        Price(
            name="llm-request",
            selector=PriceSelector(action_types=[REQUEST_ACTION]),
            components=[
                token_rate("input-tokens", TOKEN_KIND_INPUT, "0.50"),
                token_rate("output-tokens", TOKEN_KIND_OUTPUT, "1.50"),
            ],
        ),
    ]


def token_rate(name: str, kind: TokenKind.ValueType, amount: str) -> PriceComponent:
    """So many dollars per million tokens of a kind."""
    price = UnitPrice(amount=amount, per_units=1_000_000)
    return PriceComponent(name=name, token_rate=TokenRate(token_kind=kind, price=price))


async def _all(calls: Iterable[Awaitable[object]]) -> None:
    """Make every call, a few at a time: taking one from `calls` is what starts it."""
    left = iter(calls)
    while batch := list(islice(left, _CALLS_IN_FLIGHT)):
        await asyncio.gather(*batch)
