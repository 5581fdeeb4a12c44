"""What the two tenants have, and everybody who could have a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg

from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.common.v1.access_pb2 import Role
from tallystick.ledger.v1 import (
    audit_service_pb2,
    directory_service_pb2,
    earnings_service_pb2,
    funding_service_pb2,
    ledger_service_pb2,
    write_off_pb2,
)
from tallystick.metering.v1 import (
    contract_service_pb2,
    metering_service_pb2,
    period_service_pb2,
    price_book_pb2,
    pricing_service_pb2,
    rating_service_pb2,
    subscription_service_pb2,
    usage_pb2,
)
from tests.integration.security.requests import (
    adjust_request,
    book_request,
    budget_request,
    charge_intent,
    closed_period,
    contract_request,
    correct_request,
    debit_request,
    grant_request,
    publish_request,
    reservation_request,
    reverse_request,
    shadow_request,
    subscription_request,
    usage_event,
)
from tests.integration.security.world import BRAVO_FEE, SHARED_GROSS, Things, World
from tests.support.ledger_seal import seal_once
from tests.support.ledger_server import running_ledger
from tests.support.metering_server import bonus, fee, price, running_metering
from tests.support.waiting import eventually


@asynccontextmanager
async def running_world(database_url: str, redis_url: str) -> AsyncIterator[World]:
    async with (
        running_ledger(database_url) as ledger,
        # Leases are looked at when they are used, and not in between: only calls change tables.
        running_metering(
            database_url, ledger, redis_url=redis_url, lease_interval=timedelta(hours=1)
        ) as metering,
    ):
        admin = psycopg.connect(database_url, autocommit=True)
        world = World(ledger, metering, admin)
        try:
            await _populate(world)
            yield world
        finally:
            for principal in world.principals.values():
                await principal.ledger.close()
                await principal.metering.close()
            admin.close()


async def _populate(world: World) -> None:
    ledger = world.ledger
    world.add("operator", access_pb2.ROLE_OPERATOR, ledger.operator.key)
    world.add("service", access_pb2.ROLE_SERVICE, ledger.service.key)
    for things in (world.alpha, world.bravo):
        await _populate_tenant(world, things)
    await _populate_platform(world)
    await _share(world)
    await _audit(world)
    for things in (world.alpha, world.bravo):
        await eventually(partial(_is_shadowed, world, things))
    await world.settled()
    # Once, and not by a worker: only calls change tables.
    await seal_once(ledger.database_url)


async def _is_shadowed(world: World, things: Things) -> bool:
    """Whether the tenant's shadow has seen what it is to list."""
    found = await world.metering.operator.rating.ListShadowDivergences(
        rating_service_pb2.ListShadowDivergencesRequest(shadow_id=things.shadow)
    )
    return len(found.divergences) > 1


async def _create_key(world: World, role: Role.ValueType, name: str, **fields: Any) -> tuple[str, str]:
    """(secret, id) of a new key."""
    created = await world.ledger.operator.directory.CreateApiKey(
        directory_service_pb2.CreateApiKeyRequest(role=role, idempotency_key=name, description=name, **fields)
    )
    return created.secret, created.api_key.api_key_id


async def _populate_tenant(world: World, things: Things) -> None:
    directory = world.ledger.operator.directory
    await world.ledger.create_organization(things.organization)
    # Two of each, so that lists have a second page.
    await directory.CreateAgent(
        directory_service_pb2.CreateAgentRequest(
            agent_id=f"{things.agent}_2", organization_id=things.organization
        )
    )
    for number in ("1", "2"):
        await directory.CreateAgentVersion(
            directory_service_pb2.CreateAgentVersionRequest(
                agent_id=things.agent, agent_version=f"{number}-{things.tenant}"
            )
        )
        await directory.CreateMember(
            directory_service_pb2.CreateMemberRequest(
                member_id=things.member if number == "1" else f"{things.member}_{number}",
                organization_id=things.organization,
                role=access_pb2.ROLE_OWNER,
            )
        )
    await directory.CreateRevenueShareAgreement(
        directory_service_pb2.CreateRevenueShareAgreementRequest(
            organization_id=things.organization,
            platform_fee_bps=1500,
            processing_fee_bps=290,
            idempotency_key=things.tenant,
        )
    )
    await world.ledger.create_customer(things.customer)
    granted = await world.ledger.operator.ledger.GrantCredits(grant_request(things))
    things.grant = granted.transaction_id
    await world.ledger.service.funding.ReversePurchase(reverse_request(things, "re_first"))
    _, things.owner_key = await _create_key(
        world, access_pb2.ROLE_OWNER, f"owner-{things.tenant}-0", organization_id=things.organization
    )
    await world.ledger.create_organization(things.idle_organization)
    await world.ledger.create_customer(things.idle_customer)
    await _price(world, things)
    secret, things.customer_key = await _create_key(
        world, access_pb2.ROLE_CUSTOMER, f"customer-{things.tenant}-0", customer_id=things.customer
    )
    # Before anything is charged, so that they count it.
    for budget_id in (things.budget, f"{things.budget}_2"):
        await world.metering.caller(secret).budgets.CreateBudget(budget_request(things, budget_id))
    secret, things.host_key = await _create_key(
        world, access_pb2.ROLE_HOST, f"host-{things.tenant}-0", organization_id=things.organization
    )
    for contract_id in (things.contract, f"{things.contract}_2", f"{things.contract}_3"):
        await world.metering.operator.contracts.CreateContract(contract_request(things, contract_id))
    await world.metering.operator.contracts.UpdateContract(
        contract_service_pb2.UpdateContractRequest(
            contract_id=f"{things.contract}_2", replaced_version_number=1
        )
    )
    await _subscribe(world, things)
    await _run(world, things, secret)
    await _earn_in_another_currency(world, things)
    await _close_periods(world, things, secret)


async def _subscribe(world: World, things: Things) -> None:
    """Three subscriptions that cost nothing and include nothing, the first of which was changed."""
    operator = world.metering.operator
    plans = [
        price_book_pb2.Plan(name=name, fee=price_book_pb2.UnitPrice(amount="0"))
        for name in (f"plan-of-{things.tenant}", "other")
    ]
    for number, currency_code in enumerate(("USD", "EUR", "JPY")):
        book_id = f"{things.plans}_{number}"
        await operator.pricing.CreatePriceBook(
            pricing_service_pb2.CreatePriceBookRequest(
                price_book_id=book_id,
                organization_id=things.organization,
                currency_code=currency_code,
                for_contracts=True,
            )
        )
        draft = await operator.pricing.CreatePriceVersion(
            pricing_service_pb2.CreatePriceVersionRequest(
                price_book_id=book_id, prices=[price(fee("1"))], plans=plans, idempotency_key=book_id
            )
        )
        publish = pricing_service_pb2.PublishPriceVersionRequest(
            price_version_id=draft.price_version.price_version_id
        )
        publish.effective_time.FromSeconds(0)
        await operator.pricing.PublishPriceVersion(publish)
        made = await operator.subscriptions.CreateSubscription(subscription_request(things, number))
        things.subscriptions.append(made.subscription.subscription_id)
    await operator.subscriptions.ChangeSubscription(
        subscription_service_pb2.ChangeSubscriptionRequest(
            subscription_id=things.subscriptions[0],
            plan_name="other",
            idempotency_key=f"{things.tenant}-change",
        )
    )


async def _earn_in_another_currency(world: World, things: Things) -> None:
    """So that what is payable has a second page."""
    money = money_pb2.Money(currency_code="EUR", amount_micros=1_000)
    bought = grant_request(things)
    bought.idempotency_key = "euros"
    bought.amount.CopyFrom(money)
    await world.ledger.operator.ledger.GrantCredits(bought)
    charge = charge_intent(things.customer, f"{things.workflow}-euros", 0, things)
    charge.gross.CopyFrom(money)
    await world.ledger.service.ledger.PostCharge(ledger_service_pb2.PostChargeRequest(intent=charge))


async def _close_periods(world: World, things: Things, host_key: str) -> None:
    """Two that are closed for good, in a currency that nothing else is in."""
    operator = world.metering.operator
    counted = price_book_pb2.PriceComponent(
        name=f"counted-{things.tenant}",
        meter_rate=price_book_pb2.MeterRate(
            meter="input_tokens",
            tier_mode=price_book_pb2.TIER_MODE_VOLUME,
            tier_scope=price_book_pb2.TIER_SCOPE_BILLING_PERIOD,
            tiers=[price_book_pb2.Tier(price=price_book_pb2.UnitPrice(amount="0.000001"))],
        ),
    )
    await world.metering.publish(
        price(counted, name=things.tenant), organization_id=things.organization, currency_code="CHF"
    )
    for day in (0, 31):
        about = closed_period(things, day)
        event = usage_event(things.customer, things.agent, f"{things.workflow}-counted-{day}")
        event.currency_code = about["currency_code"]
        event.occur_time.CopyFrom(about["time"])
        event.usage.input_tokens = 3
        await world.metering.caller(host_key).metering.Meter(metering_service_pb2.MeterRequest(event=event))
        closed = await operator.periods.ClosePeriod(period_service_pb2.ClosePeriodRequest(**about, now=True))
        things.closing = things.closing or closed.period_closing.period_closing_id


async def _price(world: World, things: Things) -> None:
    pricing = world.metering.operator.pricing
    book = await pricing.CreatePriceBook(book_request(things))
    things.price_book = book.price_book.price_book_id
    amount = BRAVO_FEE if things is world.bravo else "0.01"
    cost = price(fee(amount, things.tenant), bonus("0.5"), name=things.tenant)
    for kept in ("published", "draft"):
        draft = await pricing.CreatePriceVersion(
            pricing_service_pb2.CreatePriceVersionRequest(
                price_book_id=things.price_book, prices=[cost], idempotency_key=f"{things.tenant}-{kept}"
            )
        )
        setattr(things, kept, draft.price_version.price_version_id)
    await pricing.PublishPriceVersion(publish_request(things))
    # One that runs, so that it has seen what its tenant does.
    started = await world.metering.operator.rating.StartShadow(shadow_request(things))
    things.shadow = started.shadow.shadow_id


async def _run(world: World, things: Things, host_key: str) -> None:
    """A finished run, one whose outcome is not decided, and two under way."""
    metering = world.metering.caller(host_key).metering
    metered = await metering.Meter(
        metering_service_pb2.MeterRequest(event=usage_event(things.customer, things.agent, things.workflow))
    )
    things.charge = metered.metered.charge_id
    charge = await world.ledger.operator.ledger.GetCharge(
        ledger_service_pb2.GetChargeRequest(charge_id=things.charge)
    )
    things.transaction = charge.charge.transaction_id
    for correction_id in ("first", "second"):
        await world.ledger.operator.ledger.CorrectCharge(
            correct_request(things.charge, f"{correction_id}-{things.tenant}")
        )
    pending = usage_event(things.customer, things.agent, f"{things.workflow}-pending")
    pending.outcome = usage_pb2.OUTCOME_PENDING
    # Another release than that of the run before: what a shadow finds of both has a second page.
    pending.agent_version = f"1-{things.tenant}"
    deferred = await metering.Meter(metering_service_pb2.MeterRequest(event=pending))
    things.outcome = deferred.metered.outcome_id
    authorized = await metering.Authorize(reservation_request(things, f"{things.workflow}-first"))
    things.reservation, things.token = authorized.reservation.reservation_id, authorized.reservation.token
    authorized = await metering.Authorize(reservation_request(things, f"{things.workflow}-second"))
    things.second_token = authorized.reservation.token
    earnings = world.ledger.service.earnings
    for payout_id in ("po_first", "po_cancelled", "po_sent", "po_completed"):
        await earnings.DebitPayout(debit_request(things, payout_id))
    await earnings.CompletePayout(
        earnings_service_pb2.CompletePayoutRequest(
            organization_id=things.organization, payout_id="po_completed"
        )
    )


async def _populate_platform(world: World) -> None:
    alpha = world.alpha
    book = await world.metering.operator.pricing.CreatePriceBook(
        pricing_service_pb2.CreatePriceBookRequest(currency_code="USD")
    )
    world.platform_book = book.price_book.price_book_id
    of_alpha = {"organization_id": alpha.organization}
    keys: dict[str, tuple[Role.ValueType, dict[str, Any]]] = {
        "host": (access_pb2.ROLE_HOST, {}),
        "host_of_agents": (access_pb2.ROLE_HOST, {"agent_ids": [alpha.agent]}),
        "host_of_customers": (access_pb2.ROLE_HOST, {"customer_ids": [alpha.customer]}),
        "host_alpha": (access_pb2.ROLE_HOST, of_alpha),
        "host_alpha_limited": (
            access_pb2.ROLE_HOST,
            {**of_alpha, "agent_ids": [alpha.agent], "customer_ids": [alpha.customer]},
        ),
        "owner_alpha": (access_pb2.ROLE_OWNER, of_alpha),
        "owner_alpha_member": (access_pb2.ROLE_OWNER, {**of_alpha, "member_id": alpha.member}),
        "billing_admin_alpha": (access_pb2.ROLE_BILLING_ADMIN, of_alpha),
        "member_alpha": (access_pb2.ROLE_MEMBER, of_alpha),
        "customer_alpha": (access_pb2.ROLE_CUSTOMER, {"customer_id": alpha.customer}),
    }
    for name, (role, fields) in keys.items():
        secret, _ = await _create_key(world, role, name, **fields)
        world.add(name, role, secret)
    secret, revoked = await _create_key(world, access_pb2.ROLE_OPERATOR, "revoked")
    await world.ledger.operator.directory.RevokeApiKey(
        directory_service_pb2.RevokeApiKeyRequest(api_key_id=revoked)
    )
    world.add("revoked", None, secret)
    world.add("stranger", None, "")


async def _share(world: World) -> None:
    alpha, bravo = world.alpha, world.bravo
    posted = await world.ledger.service.ledger.PostCharge(
        ledger_service_pb2.PostChargeRequest(
            intent=charge_intent(alpha.customer, "wf-shared", SHARED_GROSS, alpha, bravo)
        )
    )
    world.shared_charge = posted.posted.charge.charge_id
    world.shared_transaction = posted.posted.charge.transaction_id
    await world.ledger.operator.ledger.CorrectCharge(correct_request(world.shared_charge, "shared"))
    adjusted = await world.ledger.operator.ledger.AdjustBalances(adjust_request("both", alpha, bravo))
    world.adjustment = adjusted.transaction.transaction_id
    # In a currency that it has nothing in.
    unpaid = charge_intent(bravo.customer, "wf-unpaid", 5, bravo)
    unpaid.gross.currency_code = "EUR"
    posted = await world.ledger.service.ledger.PostCharge(ledger_service_pb2.PostChargeRequest(intent=unpaid))
    world.unpaid_charge = posted.posted.charge.charge_id
    for number in range(2):
        # Not all of it.
        await world.ledger.operator.funding.WriteOff(
            funding_service_pb2.WriteOffRequest(
                kind=write_off_pb2.WRITE_OFF_KIND_UNPAID,
                charge_id=world.unpaid_charge,
                amount=money_pb2.Money(currency_code="EUR", amount_micros=1),
                reason="So that there is more than a page of them.",
                idempotency_key=f"written-off-{number}",
            )
        )
    world.proposals = (world.propose("adj_one"), world.propose("adj_two"))


async def _audit(world: World) -> None:
    """Two of them: what is listed has more than one page."""
    for _ in range(2):
        async for _ in world.ledger.operator.audits.RunAudit(audit_service_pb2.RunAuditRequest()):
            pass
