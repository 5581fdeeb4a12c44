"""Requests that the world is made by, and that the cases send."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import (
    account_pb2,
    charge_pb2,
    earnings_service_pb2,
    funding_service_pb2,
    ledger_service_pb2,
    purchase_reversal_pb2,
)
from tallystick.metering.v1 import (
    budget_pb2,
    budget_service_pb2,
    contract_pb2,
    contract_service_pb2,
    metering_service_pb2,
    pricing_service_pb2,
    rating_service_pb2,
    subscription_service_pb2,
    usage_pb2,
)
from tests.integration.security.world import BRAVO_GRANT, BRAVO_LIMIT, BRAVO_RESERVED, Things

# Some time after the agreements began, and before now.
OCCURRED = Timestamp(seconds=int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()))


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


def grant_request(things: Things) -> ledger_service_pb2.GrantCreditsRequest:
    return ledger_service_pb2.GrantCreditsRequest(
        customer_id=things.customer,
        amount=usd(BRAVO_GRANT if things.tenant == "bravo" else 50_000_000),
        source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
        idempotency_key="first",
    )


def debit_request(things: Things, payout_id: str) -> earnings_service_pb2.DebitPayoutRequest:
    return earnings_service_pb2.DebitPayoutRequest(
        organization_id=things.organization, payout_id=payout_id, amount=usd(1)
    )


def reverse_request(things: Things, reversal_id: str) -> funding_service_pb2.ReversePurchaseRequest:
    """A micro of what grant_request() bought."""
    return funding_service_pb2.ReversePurchaseRequest(
        customer_id=things.customer,
        purchase_key="first",
        reversal_id=reversal_id,
        amount=usd(1),
        kind=purchase_reversal_pb2.PURCHASE_REVERSAL_KIND_REFUND,
    )


def correct_request(charge_id: str, correction_id: str) -> ledger_service_pb2.CorrectChargeRequest:
    return ledger_service_pb2.CorrectChargeRequest(
        charge_id=charge_id, correction_id=correction_id, amount=usd(2), reason="A test of tenants."
    )


def book_request(things: Things) -> pricing_service_pb2.CreatePriceBookRequest:
    return pricing_service_pb2.CreatePriceBookRequest(
        organization_id=things.organization, currency_code="USD", display_name=things.tenant
    )


def publish_request(things: Things) -> pricing_service_pb2.PublishPriceVersionRequest:
    return pricing_service_pb2.PublishPriceVersionRequest(
        price_version_id=things.published, effective_time=Timestamp(seconds=0)
    )


def shadow_request(things: Things) -> rating_service_pb2.StartShadowRequest:
    return rating_service_pb2.StartShadowRequest(price_version_id=things.draft, idempotency_key="first")


def rerate_request(**fields: str) -> rating_service_pb2.RerateRequest:
    """Everything that happened."""
    return rating_service_pb2.RerateRequest(
        start_time=Timestamp(seconds=0),
        end_time=Timestamp(seconds=OCCURRED.seconds + 10**9),
        **fields,  # type: ignore[arg-type]
    )


def usage_event(customer_id: str, agent_id: str, workflow_id: str) -> usage_pb2.UsageEvent:
    return usage_pb2.UsageEvent(
        customer_id=customer_id,
        workflow_id=workflow_id,
        agent_id=agent_id,
        action_type="run",
        evidence_ref=f"of-{agent_id}",
    )


def authorize_request(
    customer_id: str, agent_id: str, workflow_id: str, micros: int = 1
) -> metering_service_pb2.AuthorizeRequest:
    return metering_service_pb2.AuthorizeRequest(
        customer_id=customer_id,
        workflow_id=workflow_id,
        agent_id=agent_id,
        action_type="run",
        max_cost=usd(micros),
        # As long as any test takes.
        ttl=Duration(seconds=900),
    )


def reservation_request(things: Things, workflow_id: str) -> metering_service_pb2.AuthorizeRequest:
    """A tenant's customer at its own agent."""
    micros = BRAVO_RESERVED if things.tenant == "bravo" else 1_000
    return authorize_request(things.customer, things.agent, workflow_id, micros)


def budget_request(things: Things, budget_id: str) -> budget_service_pb2.CreateBudgetRequest:
    """Alerts at the first charge."""
    return budget_service_pb2.CreateBudgetRequest(
        budget=budget_pb2.Budget(
            budget_id=budget_id,
            customer_id=things.customer,
            period=budget_pb2.BUDGET_PERIOD_TOTAL,
            limit=usd(BRAVO_LIMIT if things.tenant == "bravo" else 1_000_000),
            alert_thresholds=[1],
        )
    )


def contract_request(things: Things, contract_id: str) -> contract_service_pb2.CreateContractRequest:
    """A tenant's customer with its own organization. It changes no price."""
    return contract_service_pb2.CreateContractRequest(
        contract=contract_pb2.Contract(
            contract_id=contract_id,
            customer_id=things.customer,
            organization_id=things.organization,
            # No two about the same.
            currency_code={"_2": "EUR", "_3": "JPY"}.get(contract_id.removeprefix(things.contract), "USD"),
            content=contract_pb2.ContractContent(recorded_terms={"sla": f"secret-of-{things.tenant}"}),
        )
    )


def subscription_request(things: Things, number: int) -> subscription_service_pb2.CreateSubscriptionRequest:
    """One of several of a tenant's customer, each in a currency of its own, for nothing."""
    return subscription_service_pb2.CreateSubscriptionRequest(
        customer_id=things.customer,
        agent_id=things.agent,
        price_book_id=f"{things.plans}_{number}",
        plan_name=f"plan-of-{things.tenant}",
        idempotency_key=f"{things.tenant}-{number}",
    )


def closed_period(things: Things, day: int = 0) -> dict[str, Any]:
    """Fields of a request about the billing period in which a tenant's customer did what is counted."""
    return {
        "customer_id": things.customer,
        "organization_id": things.organization,
        "currency_code": "CHF",
        "time": Timestamp(seconds=OCCURRED.seconds + day * 86_400),
    }


def charge_intent(customer_id: str, workflow_id: str, gross: int, *payees: Things) -> charge_pb2.ChargeIntent:
    return charge_pb2.ChargeIntent(
        customer_id=customer_id,
        workflow_id=workflow_id,
        component=charge_pb2.CHARGE_COMPONENT_BASE,
        gross=usd(gross),
        payees=[
            charge_pb2.Payee(organization_id=payee.organization, agent_id=payee.agent, weight=1)
            for payee in payees
        ],
        occur_time=OCCURRED,
        price_version_id="pv_test",
    )


def adjust_request(key: str, *things: Things) -> ledger_service_pb2.AdjustBalancesRequest:
    """A micro to the customer of each tenant."""
    owners = [(one.customer, account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, 1) for one in things]
    owners.append(("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, -len(things)))
    return ledger_service_pb2.AdjustBalancesRequest(
        postings=[
            ledger_service_pb2.Posting(
                account=account_pb2.AccountRef(owner_id=owner_id, kind=kind, currency_code="USD"),
                amount=usd(amount),
            )
            for owner_id, kind, amount in owners
        ],
        reason="A test of tenants.",
        idempotency_key=key,
    )
