"""Cases of metering's RPCs."""

from collections.abc import Iterator

from tallystick.metering.v1 import budget_pb2, usage_pb2
from tallystick.metering.v1 import budget_service_pb2 as budgets
from tallystick.metering.v1 import contract_service_pb2 as contracts
from tallystick.metering.v1 import metering_service_pb2 as metering
from tallystick.metering.v1 import period_service_pb2 as periods
from tallystick.metering.v1 import pricing_service_pb2 as pricing
from tallystick.metering.v1 import rating_service_pb2 as rating
from tallystick.metering.v1 import reservation_service_pb2 as reservations
from tallystick.metering.v1 import subscription_service_pb2 as subscriptions
from tallystick.metering.v1 import usage_feed_service_pb2 as usage_feed
from tests.integration.security.case import (
    BUDGETS,
    CONTRACTS,
    DENIED,
    HOSTS_OF_ALPHA_FOR_ANY_CUSTOMER,
    HOSTS_OF_ANY_AGENT,
    HOSTS_OF_ANY_CUSTOMER,
    LISTED,
    METERING,
    NO_TOKEN,
    PERIODS,
    PRICING,
    RATING,
    RESERVATIONS,
    SUBSCRIPTIONS,
    TAKEN,
    UNLIMITED_HOST,
    USAGE_FEED,
    Case,
    case_of,
    one,
)
from tests.integration.security.requests import (
    authorize_request,
    book_request,
    closed_period,
    contract_request,
    publish_request,
    rerate_request,
    reservation_request,
    subscription_request,
    usage_event,
    usd,
)
from tests.integration.security.world import PLATFORM, World
from tests.support.metering_server import fee, price

# MeteringService


def _parties(world: World) -> Iterator[tuple[str, str, frozenset[str]]]:
    """A customer and an agent of which one at least is bravo's, and the hosts that reach both."""
    alpha, bravo = world.alpha, world.bravo
    yield bravo.customer, bravo.agent, UNLIMITED_HOST
    yield alpha.customer, bravo.agent, HOSTS_OF_ANY_AGENT
    yield bravo.customer, alpha.agent, HOSTS_OF_ALPHA_FOR_ANY_CUSTOMER


@case_of(METERING, "Meter")
def _(world: World) -> Iterator[Case]:
    for customer, agent, reach in _parties(world):
        event = usage_event(customer, agent, f"wf-{agent}-one")
        yield Case(metering.MeterRequest(event=event), reach)


@case_of(METERING, "MeterBatch")
def _(world: World) -> Iterator[Case]:
    for customer, agent, reach in _parties(world):
        event = usage_event(customer, agent, f"wf-{agent}-batch")
        yield Case(metering.MeterBatchRequest(events=[event]), reach)


one(
    METERING,
    "GetUsageEvent",
    lambda w: metering.GetUsageEventRequest(customer_id=w.bravo.customer, workflow_id=w.bravo.workflow),
    reach=PLATFORM | UNLIMITED_HOST,
)

one(
    METERING,
    "ResolveOutcome",
    lambda w: metering.ResolveOutcomeRequest(outcome_id=w.bravo.outcome, outcome=usage_pb2.OUTCOME_SUCCESS),
    reach=PLATFORM | UNLIMITED_HOST,
)
one(
    METERING,
    "GetOutcome",
    lambda w: metering.GetOutcomeRequest(outcome_id=w.bravo.outcome),
    reach=PLATFORM | UNLIMITED_HOST,
)


@case_of(METERING, "Authorize")
def _(world: World) -> Iterator[Case]:
    for customer, agent, reach in _parties(world):
        yield Case(authorize_request(customer, agent, f"wf-{agent}-authorized"), reach)
    # What exists already, asked for again.
    yield Case(reservation_request(world.bravo, f"{world.bravo.workflow}-first"), UNLIMITED_HOST)


@case_of(METERING, "CheckAccess")
def _(world: World) -> Iterator[Case]:
    for customer, agent, reach in _parties(world):
        request = metering.CheckAccessRequest(
            customer_id=customer, agent_id=agent, action_type="run", workflow_id="wf-any", cost=usd(1)
        )
        yield Case(request, reach)


one(
    METERING,
    "GetBalance",
    lambda w: metering.GetBalanceRequest(customer_id=w.bravo.customer),
    reach=PLATFORM | HOSTS_OF_ANY_CUSTOMER,
)


# A token that was leaked: its bearer may do with it what its key may do, and no more.

case_of(METERING, "Extend")(
    lambda w: [
        Case(metering.ExtendRequest(token=w.bravo.token, amount=usd(3_000_000)), UNLIMITED_HOST, NO_TOKEN)
    ]
)


@case_of(METERING, "Settle")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    yield Case(metering.SettleRequest(token=bravo.token), UNLIMITED_HOST, NO_TOKEN)
    # Nobody pays for a run with what was reserved for another one.
    for event in (
        usage_pb2.UsageEvent(customer_id=alpha.customer),
        usage_pb2.UsageEvent(agent_id=alpha.agent),
        usage_pb2.UsageEvent(workflow_id="wf-other"),
    ):
        request = metering.SettleRequest(token=bravo.token, event=event)
        yield Case(request, frozenset(), NO_TOKEN)


case_of(METERING, "Release")(
    lambda w: [Case(metering.ReleaseRequest(token=w.bravo.second_token), UNLIMITED_HOST, NO_TOKEN)]
)


# PricingService


@case_of(PRICING, "CreatePriceBook")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    yield Case(book_request(bravo))
    yield Case(
        pricing.CreatePriceBookRequest(
            price_book_id=bravo.price_book, organization_id=alpha.organization, currency_code="JPY"
        ),
        reach=frozenset(),
        refusals=TAKEN,
    )
    yield Case(pricing.CreatePriceBookRequest(currency_code="USD"), refusals=DENIED)


@case_of(PRICING, "GetPriceBook")
def _(world: World) -> Iterator[Case]:
    for price_book_id in (world.bravo.price_book, world.platform_book):
        yield Case(pricing.GetPriceBookRequest(price_book_id=price_book_id))


case_of(PRICING, "ListPriceBooks")(lambda w: [Case(pricing.ListPriceBooksRequest(), refusals=LISTED)])


@case_of(PRICING, "CreatePriceVersion")
def _(world: World) -> Iterator[Case]:
    for price_book_id in (world.bravo.price_book, world.platform_book):
        yield Case(
            pricing.CreatePriceVersionRequest(
                price_book_id=price_book_id, prices=[price(fee("1"))], idempotency_key=price_book_id
            )
        )


one(
    PRICING,
    "UpdatePriceVersion",
    lambda w: pricing.UpdatePriceVersionRequest(price_version_id=w.bravo.draft, prices=[price(fee("0"))]),
)
one(PRICING, "PublishPriceVersion", lambda w: publish_request(w.bravo))


@case_of(PRICING, "PreviewPriceVersion")
def _(world: World) -> Iterator[Case]:
    for price_book_id in (world.bravo.price_book, world.platform_book):
        yield Case(pricing.PreviewPriceVersionRequest(price_book_id=price_book_id, prices=[price(fee("1"))]))


@case_of(PRICING, "GetPriceVersion")
def _(world: World) -> Iterator[Case]:
    for price_version_id in (world.bravo.published, world.bravo.draft):
        yield Case(pricing.GetPriceVersionRequest(price_version_id=price_version_id))


@case_of(PRICING, "ListPriceVersions")
def _(world: World) -> Iterator[Case]:
    for price_book_id in (world.bravo.price_book, world.platform_book):
        yield Case(pricing.ListPriceVersionsRequest(price_book_id=price_book_id))


# BudgetService


def _budget(customer_id: str, agent_id: str, **fields: str) -> budget_pb2.Budget:
    return budget_pb2.Budget(
        customer_id=customer_id,
        agent_id=agent_id,
        period=budget_pb2.BUDGET_PERIOD_DAY,
        limit=usd(1),
        **fields,  # type: ignore[arg-type]
    )


@case_of(BUDGETS, "CreateBudget")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    yield Case(budgets.CreateBudgetRequest(budget=_budget(bravo.customer, bravo.agent)))
    yield Case(
        budgets.CreateBudgetRequest(budget=_budget(alpha.customer, alpha.agent, budget_id=bravo.budget)),
        reach=frozenset(),
        refusals=TAKEN,
    )
    yield Case(
        budgets.CreateBudgetRequest(budget=_budget(alpha.customer, alpha.agent, api_key_id=bravo.host_key)),
        refusals=DENIED,
    )


one(BUDGETS, "GetBudget", lambda w: budgets.GetBudgetRequest(budget_id=w.bravo.budget))
case_of(BUDGETS, "ListBudgets")(lambda w: [Case(budgets.ListBudgetsRequest(), refusals=LISTED)])
one(
    BUDGETS,
    "UpdateBudget",
    lambda w: budgets.UpdateBudgetRequest(budget_id=w.bravo.budget, limit=usd(2), hard=False),
)
# Its second one: the other cases need the first.
one(BUDGETS, "DeleteBudget", lambda w: budgets.DeleteBudgetRequest(budget_id=f"{w.bravo.budget}_2"))


@case_of(BUDGETS, "ListBudgetAlerts")
def _(world: World) -> Iterator[Case]:
    yield Case(budgets.ListBudgetAlertsRequest(), refusals=LISTED)
    yield Case(budgets.ListBudgetAlertsRequest(budget_id=world.bravo.budget))


# ReservationService

one(
    RESERVATIONS,
    "ListReservations",
    lambda w: reservations.ListReservationsRequest(customer_id=w.bravo.customer),
)


@case_of(RESERVATIONS, "Reconcile")
def _(world: World) -> Iterator[Case]:
    for dry_run in (True, False):
        yield Case(reservations.ReconcileRequest(customer_id=world.bravo.customer, dry_run=dry_run))


# UsageFeedService

one(USAGE_FEED, "ReadUsage", lambda w: usage_feed.ReadUsageRequest())


# ContractService


@case_of(CONTRACTS, "CreateContract")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    yield Case(contract_request(bravo, bravo.contract))
    taken = contract_request(alpha, bravo.contract)
    yield Case(taken, reach=frozenset(), refusals=TAKEN)
    for_all = contract_request(bravo, f"{bravo.contract}_all")
    for_all.contract.organization_id = ""
    yield Case(for_all, refusals=DENIED)


one(
    CONTRACTS,
    "UpdateContract",
    lambda w: contracts.UpdateContractRequest(contract_id=f"{w.bravo.contract}_2", replaced_version_number=1),
)
one(CONTRACTS, "EndContract", lambda w: contracts.EndContractRequest(contract_id=f"{w.bravo.contract}_3"))
one(CONTRACTS, "GetContract", lambda w: contracts.GetContractRequest(contract_id=w.bravo.contract))


@case_of(CONTRACTS, "ListContracts")
def _(world: World) -> Iterator[Case]:
    yield Case(contracts.ListContractsRequest(), refusals=LISTED)
    yield Case(contracts.ListContractsRequest(customer_id=world.bravo.customer), refusals=LISTED)


one(
    CONTRACTS,
    "ListContractVersions",
    lambda w: contracts.ListContractVersionsRequest(contract_id=f"{w.bravo.contract}_2"),
)


@case_of(CONTRACTS, "ExplainPrice")
def _(world: World) -> Iterator[Case]:
    yield Case(
        contracts.ExplainPriceRequest(
            customer_id=world.bravo.customer, agent_id=world.bravo.agent, action_type="run"
        )
    )


# RatingService


@case_of(RATING, "Quote")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    for price_version_id in (bravo.draft, bravo.published):
        yield Case(
            rating.QuoteRequest(agent_id=alpha.agent, action_type="run", price_version_id=price_version_id)
        )
    yield Case(
        rating.QuoteRequest(customer_id=bravo.customer, agent_id=bravo.agent, action_type="run"),
    )


@case_of(RATING, "Simulate")
def _(world: World) -> Iterator[Case]:
    for price_version_id in (world.bravo.draft, world.bravo.published):
        yield Case(
            rating.SimulateRequest(
                books=[rating.SimulatedBook(price_version_id=price_version_id)],
                workload=rating.Workload(run_count=10),
            )
        )


@case_of(RATING, "Rerate")
def _(world: World) -> Iterator[Case]:
    yield Case(rerate_request(organization_id=world.bravo.organization))
    yield Case(rerate_request(price_version_id=world.bravo.draft))
    # Of all that the caller may see, which is none of bravo's.
    yield Case(rerate_request(), refusals=LISTED)
    yield Case(rerate_request(customer_id=world.bravo.customer), refusals=LISTED)


@case_of(RATING, "StartShadow")
def _(world: World) -> Iterator[Case]:
    for price_version_id in (world.bravo.draft, world.bravo.published):
        yield Case(
            rating.StartShadowRequest(price_version_id=price_version_id, idempotency_key=price_version_id)
        )


one(RATING, "GetShadow", lambda w: rating.GetShadowRequest(shadow_id=w.bravo.shadow))
case_of(RATING, "ListShadows")(lambda w: [Case(rating.ListShadowsRequest(), refusals=LISTED)])
one(
    RATING,
    "ListShadowDivergences",
    lambda w: rating.ListShadowDivergencesRequest(shadow_id=w.bravo.shadow),
)
one(RATING, "StopShadow", lambda w: rating.StopShadowRequest(shadow_id=w.bravo.shadow))


# SubscriptionService


@case_of(SUBSCRIPTIONS, "CreateSubscription")
def _(world: World) -> Iterator[Case]:
    yield Case(subscription_request(world.bravo, 0))
    # One's own agent, with the book of another organization.
    mine = subscription_request(world.alpha, 0)
    mine.price_book_id = f"{world.bravo.plans}_0"
    mine.idempotency_key = "of another"
    yield Case(mine, reach=frozenset())


one(
    SUBSCRIPTIONS,
    "PreviewSubscriptionChange",
    lambda w: subscriptions.PreviewSubscriptionChangeRequest(
        subscription_id=w.bravo.subscriptions[0], plan_name="other", seats=1
    ),
)
one(
    SUBSCRIPTIONS,
    "ChangeSubscription",
    lambda w: subscriptions.ChangeSubscriptionRequest(
        subscription_id=w.bravo.subscriptions[1], plan_name="other", idempotency_key="change"
    ),
)
one(
    SUBSCRIPTIONS,
    "CancelSubscription",
    lambda w: subscriptions.CancelSubscriptionRequest(subscription_id=w.bravo.subscriptions[2], now=True),
)
one(
    SUBSCRIPTIONS,
    "ResumeSubscription",
    lambda w: subscriptions.ResumeSubscriptionRequest(subscription_id=w.bravo.subscriptions[1]),
)
one(
    SUBSCRIPTIONS,
    "GetSubscription",
    lambda w: subscriptions.GetSubscriptionRequest(subscription_id=w.bravo.subscriptions[0]),
)


@case_of(SUBSCRIPTIONS, "ListSubscriptions")
def _(world: World) -> Iterator[Case]:
    yield Case(subscriptions.ListSubscriptionsRequest(), refusals=LISTED)
    yield Case(subscriptions.ListSubscriptionsRequest(customer_id=world.bravo.customer), refusals=LISTED)


one(
    SUBSCRIPTIONS,
    "ListSubscriptionFees",
    lambda w: subscriptions.ListSubscriptionFeesRequest(subscription_id=w.bravo.subscriptions[0]),
)


# PeriodService


@case_of(PERIODS, "PreviewPeriodClose")
def _(world: World) -> Iterator[Case]:
    yield Case(periods.PreviewPeriodCloseRequest(**closed_period(world.bravo)))
    # One's own customer or organization helps nobody to what others agreed.
    mine = periods.PreviewPeriodCloseRequest(**closed_period(world.bravo))
    mine.organization_id = world.alpha.organization
    yield Case(mine, reach=frozenset())


one(PERIODS, "ClosePeriod", lambda w: periods.ClosePeriodRequest(**closed_period(w.bravo), now=True))
one(
    PERIODS,
    "GetPeriodClosing",
    lambda w: periods.GetPeriodClosingRequest(period_closing_id=w.bravo.closing),
)


@case_of(PERIODS, "ListPeriodClosings")
def _(world: World) -> Iterator[Case]:
    bravo = world.bravo
    yield Case(periods.ListPeriodClosingsRequest(), refusals=LISTED)
    yield Case(periods.ListPeriodClosingsRequest(customer_id=bravo.customer), refusals=LISTED)
    yield Case(periods.ListPeriodClosingsRequest(organization_id=bravo.organization), refusals=LISTED)
