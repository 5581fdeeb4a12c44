"""What a new contract or subscription may not do to billing periods that there are."""

from datetime import datetime, timedelta
from typing import Final

from services.kit.db import Connection
from services.kit.errors import FailedPrecondition, PreconditionViolation
from services.metering.domain.billing_period import BillingPeriod
from services.metering.domain.contract import Contract, ContractIndex, ContractKey
from services.metering.domain.subscription import SubscriptionIndex
from services.metering.rpc.contract_convert import from_stored
from services.metering.rpc.subscription_convert import subscription_from_stored
from services.metering.rpc.terms import contracts_in_force, moments_of, period_of
from services.metering.store import contracts, periods, subscriptions

# What begins now is found to begin in the past a moment later; work may have come in between.
_A_MOMENT: Final = timedelta(minutes=1)


async def check_contract(
    connection: Connection, new: Contract, subscribed: SubscriptionIndex, now: datetime
) -> None:
    """Raise FailedPrecondition if a new contract cuts the periods of a subscription otherwise, or periods of
    the past in which work was counted. The connection sees everything, and has the lock of contracts.
    """
    known = await contracts.list_of_customer(connection, new.key.customer_id)
    after = ContractIndex([*map(from_stored, known), new])
    await _check_subscriptions(connection, new, after, now)
    if new.start_time >= now - _A_MOMENT:
        return
    for organization_id, start, latest in await periods.counted_since(connection, *new.key, new.start_time):
        key = new.key._replace(organization_id=organization_id)
        if period_of(after, subscribed, key, latest).start != start:
            raise _counted(key, start)


async def check_subscription(
    connection: Connection,
    about: ContractKey,
    billing_period: BillingPeriod,
    start: datetime,
    known: ContractIndex,
    now: datetime,
) -> None:
    """Raise FailedPrecondition if a new subscription cuts periods of the past in which work was counted, or
    if a contract is to cut them otherwise later.
    """
    for moment in moments_of(known, about):
        contract = contracts_in_force(known, about, moment).binding
        if moment <= now or contract is None or contract.billing_period in (None, billing_period):
            continue
        # An organization learns nothing of a contract for all.
        resource_id = contract.contract_id if contract.key.organization_id else about.customer_id
        raise _conflict(resource_id, "agreed", "a contract cuts the billing periods otherwise later")
    if start >= now - _A_MOMENT:
        return
    for _, counted, latest in await periods.counted_since(connection, *about, start):
        contract = contracts_in_force(known, about, latest).binding
        if contract is not None and contract.billing_period is not None:
            continue
        if counted != max(start, billing_period.period_containing(latest).start):
            raise _counted(about, counted)


async def _check_subscriptions(
    connection: Connection, new: Contract, after: ContractIndex, now: datetime
) -> None:
    """What a plan includes is included in each period of its fees: those of the work must be the same."""
    at = max(new.start_time, now)
    for content in await subscriptions.list_active(connection, *new.key):
        subscription = subscription_from_stored(content)
        key = new.key._replace(organization_id=subscription.organization_id)
        contract = contracts_in_force(after, key, at).binding
        if contract is None or contract.billing_period in (None, subscription.billing_period):
            continue
        if contract.contract_id != new.contract_id:
            continue
        raise _conflict(subscription.subscription_id, subscription.state, "it has other billing periods")


def _conflict(resource_id: str, state: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{resource_id} is in the way: {why}",
        reason="AGREEMENT_STATE_CONFLICT",
        metadata={"resource_id": resource_id, "state": state},
        precondition_violations=[PreconditionViolation("AGREEMENT_STATE_CONFLICT", resource_id, why)],
    )


def _counted(key: ContractKey, start: datetime) -> FailedPrecondition:
    why = f"work of that time was counted in the period that began {start.isoformat()}"
    return FailedPrecondition(
        f"the billing periods of {key.customer_id} cannot be cut otherwise in the past: {why}",
        reason="BILLING_PERIODS_COUNTED",
        metadata={
            "customer_id": key.customer_id,
            "organization_id": key.organization_id,
            "period_start_time": start.isoformat(),
        },
        precondition_violations=[PreconditionViolation("BILLING_PERIODS_COUNTED", key.customer_id, why)],
    )
