"""Steps in the life of a subscription, each in the transaction that records its fee."""

from contextlib import aclosing
from dataclasses import replace
from datetime import datetime

from services.kit.db import Connection
from services.metering.domain.price_book import PeriodUnit, Plan
from services.metering.domain.subscription import (
    Segment,
    Step,
    Subscription,
    is_affordable,
    renew,
    segment_of,
)
from services.metering.rpc.subscription_convert import (
    fee_to_stored,
    segment_to_stored,
    subscription_to_stored,
)
from services.metering.store import periods, price_books, subscriptions


async def record(
    connection: Connection,
    before: Subscription,
    step: Step,
    *,
    api_key_id: str,
    now: datetime,
) -> None:
    """Record what a step made of a subscription that is locked, and the fee that follows."""
    after = step.subscription
    await subscriptions.save(connection, subscription_to_stored(after))
    if after.segments != before.segments or after.end_time != before.end_time:
        await subscriptions.add_segment(connection, segment_to_stored(after, api_key_id))
    if after.end_time is not None:
        # The billing period of the work ends with it.
        key = (after.customer_id, after.organization_id, after.currency_code)
        await periods.look_again(connection, *key)
    if step.fee is not None:
        await subscriptions.add_fee(connection, fee_to_stored(step.fee, now))


async def catch_up(connection: Connection, subscription: Subscription, *, now: datetime) -> Subscription:
    """Renew a subscription that is locked for every period that ended.

    The connection sees everybody's books.
    """
    while subscription.is_active and subscription.period.end <= now:
        step = renew(subscription, await _following(connection, subscription))
        await record(connection, subscription, step, api_key_id="", now=now)
        subscription = step.subscription
    return subscription


async def find_plan(
    connection: Connection, price_book_id: str, plan_name: str, at: datetime
) -> tuple[Plan, str] | None:
    """A plan of the version of a book that is in force at that time, and the id of that version."""
    version = await price_books.find_version_in_force(connection, price_book_id, at)
    if version is None:
        return None
    for plan in version.plans:
        if plan.name == plan_name:
            return plan, version.price_version_id
    return None


async def _last_offered(
    connection: Connection, price_book_id: str, plan_name: str, unit: PeriodUnit, at: datetime
) -> tuple[Plan, str] | None:
    async with aclosing(price_books.stream_in_force_until(connection, price_book_id, at)) as versions:
        async for version in versions:
            for plan in version.plans:
                if plan.name == plan_name and plan.period_unit is unit:
                    return plan, version.price_version_id
    return None


async def _following(connection: Connection, subscription: Subscription) -> Segment:
    """What is subscribed to in the next period: the plan as the version says that is in force when it begins.

    A plan that this version has no more, or with other periods, stays as it was: one that it is to change to,
    as it was offered last.
    """
    name, seats = subscription.next_plan
    end = subscription.period.end
    unit = subscription.billing_period.unit
    found = await find_plan(connection, subscription.price_book_id, name, end)
    if found is not None and found[0].period_unit is not unit:
        found = None
    if found is None and subscription.pending_plan_name:
        found = await _last_offered(connection, subscription.price_book_id, name, unit, end)
    if found is None:
        version_id = subscription.current.price_version_id
        version = await price_books.find_version(connection, version_id)
        plans = () if version is None else version.plans
        found = next(((plan, version_id) for plan in plans if plan.name == name), None)
    if found is not None:
        following = segment_of(found[0], seats, found[1], end)
        if is_affordable(following):
            return following
    return replace(subscription.current, start=end)
