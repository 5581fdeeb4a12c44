"""SubscriptionService."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from services.kit import ids, log
from services.kit.auth import current_principal
from services.kit.clock import Clock
from services.kit.db import Connection, Database, retry_transaction
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PreconditionViolation,
)
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, Tenants, scope, tenants_of
from services.kit.text import check_text
from services.kit.times import optional_time_from_proto
from services.metering.domain import subscription as domain
from services.metering.domain.billing_period import (
    UTC_ZONE,
    BillingPeriod,
    check_billing_period,
)
from services.metering.domain.contract import ContractKey
from services.metering.domain.price_book import PLATFORM_OWNER
from services.metering.domain.subscription import (
    MAX_SEATS,
    Segment,
    Step,
    Subscription,
    is_affordable,
    segment_of,
)
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.parties import Directory
from services.metering.rpc.period_checks import check_subscription
from services.metering.rpc.subscription_catalog import SubscriptionCatalog
from services.metering.rpc.subscription_convert import (
    fee_to_proto,
    fee_to_stored,
    listed_fee_to_proto,
    segment_to_stored,
    subscription_from_stored,
    subscription_to_proto,
    subscription_to_stored,
    timing_from_proto,
)
from services.metering.rpc.subscription_fees import SubscriptionFees
from services.metering.rpc.subscription_steps import catch_up, find_plan, record
from services.metering.rpc.terms import contracts_in_force, customer_not_found, organization_of
from services.metering.store import periods, price_books, subscriptions
from tallystick.metering.v1 import subscription_service_pb2 as pb
from tallystick.metering.v1 import subscription_service_pb2_grpc

_MAX_KEY: Final = 128
_MAX_AGE: Final = timedelta(days=400)
_log = log.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
Transition = Callable[[Connection, Subscription, datetime], Awaitable[Step]]


class SubscriptionService(subscription_service_pb2_grpc.SubscriptionServiceServicer):
    """Serves SubscriptionService."""

    def __init__(
        self,
        *,
        writer: Database,
        reader: Database,
        directory: Directory,
        contracts: ContractCatalog,
        catalog: SubscriptionCatalog,
        fees: SubscriptionFees,
        clock: Clock,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._directory = directory
        self._contracts = contracts
        self._catalog = catalog
        self._fees = fees
        self._clock = clock

    async def CreateSubscription(
        self, request: pb.CreateSubscriptionRequest, context: Context
    ) -> pb.CreateSubscriptionResponse:
        principal = current_principal()
        key = _key(request.idempotency_key)
        _check_wanted(request.plan_name, request.seats)
        ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        ids.check_id(request.agent_id, ids.AGENT, field="agent_id")
        ids.check_id(request.price_book_id, ids.PRICE_BOOK, field="price_book_id")
        start = self._start(request)
        parties = await self._directory.find([request.customer_id], [(request.agent_id, "")])
        if request.customer_id not in parties.customers or not principal.may_use_customer(
            request.customer_id
        ):
            raise customer_not_found(request.customer_id)
        organization_id = organization_of(request.agent_id, "", parties, principal)
        contracts = await self._contracts.index()

        async def create() -> Subscription:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                new_id = ids.new_id(ids.SUBSCRIPTION, clock=self._clock)
                earlier = await _claim(connection, organization_id, key, request, new_id)
                if earlier is not None:
                    return await _find(connection, earlier)
                # The customer's and the agent's are known to be within reach, and books are checked by owner.
                await scope(connection, PLATFORM)
                book = await price_books.find_book(connection, request.price_book_id)
                if book is None or book.owner_id not in (PLATFORM_OWNER, organization_id):
                    raise NotFound(
                        f"price book {request.price_book_id} does not exist",
                        reason="PRICE_BOOK_NOT_FOUND",
                        metadata={"price_book_id": request.price_book_id},
                    )
                about = ContractKey(request.customer_id, organization_id, book.currency_code)
                contract = contracts_in_force(contracts, about, start).binding
                first, unit_of_plan = await _wanted(
                    connection, book.price_book_id, request.plan_name, request.seats, start
                )
                billing_period = None if contract is None else contract.billing_period
                if billing_period is None:
                    billing_period = BillingPeriod(unit_of_plan, start, request.time_zone or UTC_ZONE)
                    check_billing_period(billing_period, field="billing_period")
                elif billing_period.unit is not unit_of_plan:
                    raise InvalidArgument.of("plan_name", "must have the billing periods of the contract")
                overlapping = await subscriptions.find_after(connection, *about, start)
                if not overlapping:
                    await check_subscription(
                        connection, about, billing_period, start, contracts, self._clock.now()
                    )
                step = domain.start(
                    Subscription(
                        subscription_id=new_id,
                        customer_id=request.customer_id,
                        organization_id=organization_id,
                        agent_id=request.agent_id,
                        currency_code=book.currency_code,
                        price_book_id=book.price_book_id,
                        billing_period=billing_period,
                        start_time=start,
                        period=billing_period.period_containing(start),
                        segments=(first,),
                    )
                )
                new, now = step.subscription, self._clock.now()
                if overlapping or not await subscriptions.create(connection, subscription_to_stored(new)):
                    raise AlreadyExists(
                        "the customer has a subscription of this organization and currency at that time",
                        metadata={"resource_id": overlapping or new_id},
                    )
                await subscriptions.add_segment(connection, segment_to_stored(new, principal.api_key_id))
                await periods.look_again(connection, *about)
                if step.fee is not None:
                    fee = fee_to_stored(step.fee, now)
                    await subscriptions.add_fee(connection, fee)
                return await catch_up(connection, new, now=now)

        created = await retry_transaction(create, idempotent=True)
        await self._changed()
        return pb.CreateSubscriptionResponse(subscription=subscription_to_proto(created))

    async def PreviewSubscriptionChange(
        self, request: pb.PreviewSubscriptionChangeRequest, context: Context
    ) -> pb.PreviewSubscriptionChangeResponse:
        _check_wanted(request.plan_name, request.seats)
        id_ = _subscription_id(request.subscription_id)
        now = self._fees.now()
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            subscription = await _find(connection, id_)
            # It is the caller's; the plan may be the platform's.
            await scope(connection, PLATFORM)
            if not subscription.is_active or subscription.period.end <= now:
                raise _conflict(subscription, "it has ended, or is about to be renewed")
            step = await _change(connection, subscription, request, now)
        return pb.PreviewSubscriptionChangeResponse(
            subscription=subscription_to_proto(step.subscription),
            fee=None if step.fee is None else fee_to_proto(step.fee, now),
        )

    async def ChangeSubscription(
        self, request: pb.ChangeSubscriptionRequest, context: Context
    ) -> pb.ChangeSubscriptionResponse:
        key = _key(request.idempotency_key)
        _check_wanted(request.plan_name, request.seats)

        async def change(connection: Connection, subscription: Subscription, now: datetime) -> Step:
            owner_id = subscription.organization_id
            if await _claim(connection, owner_id, key, request, subscription.subscription_id) is not None:
                return Step(subscription)
            _check_active(subscription)
            return await _change(connection, subscription, request, now)

        step, made = await self._transition(request.subscription_id, change)
        return pb.ChangeSubscriptionResponse(
            subscription=subscription_to_proto(step.subscription),
            fee=None if step.fee is None else fee_to_proto(step.fee, made),
        )

    async def CancelSubscription(
        self, request: pb.CancelSubscriptionRequest, context: Context
    ) -> pb.CancelSubscriptionResponse:
        async def cancel(connection: Connection, subscription: Subscription, now: datetime) -> Step:
            if not subscription.is_active:
                return Step(subscription)
            return Step(domain.cancel(subscription, now, at_once=request.now))

        step, _ = await self._transition(request.subscription_id, cancel)
        return pb.CancelSubscriptionResponse(subscription=subscription_to_proto(step.subscription))

    async def ResumeSubscription(
        self, request: pb.ResumeSubscriptionRequest, context: Context
    ) -> pb.ResumeSubscriptionResponse:
        async def resume(connection: Connection, subscription: Subscription, now: datetime) -> Step:
            _check_active(subscription)
            return Step(domain.resume(subscription))

        step, _ = await self._transition(request.subscription_id, resume)
        return pb.ResumeSubscriptionResponse(subscription=subscription_to_proto(step.subscription))

    async def GetSubscription(
        self, request: pb.GetSubscriptionRequest, context: Context
    ) -> pb.GetSubscriptionResponse:
        id_ = _subscription_id(request.subscription_id)
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            subscription = await _find(connection, id_)
        return pb.GetSubscriptionResponse(subscription=subscription_to_proto(subscription))

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, context: Context
    ) -> pb.ListSubscriptionsResponse:
        if request.customer_id:
            ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str,),
            filter={"list": "subscriptions", "customer_id": request.customer_id},
        )
        tenants = tenants_of(current_principal())
        async with self._reader.begin() as connection:
            await scope(connection, tenants)
            rows = await subscriptions.list_subscriptions(
                connection,
                tenant_ids=None if tenants.platform else tenants.ids,
                customer_id=request.customer_id,
                after="" if page.after is None else str(page.after[0]),
                limit=page.limit,
            )
        found, next_page_token = page.cut(rows, lambda row: (row[0],))
        return pb.ListSubscriptionsResponse(
            subscriptions=[subscription_to_proto(subscription_from_stored(content)) for _, content in found],
            next_page_token=next_page_token,
        )

    async def ListSubscriptionFees(
        self, request: pb.ListSubscriptionFeesRequest, context: Context
    ) -> pb.ListSubscriptionFeesResponse:
        id_ = _subscription_id(request.subscription_id)
        if request.workflow_id:
            ids.check_workflow_id(request.workflow_id)
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(int,),
            filter={
                "list": "subscription_fees",
                "subscription_id": id_,
                "workflow_id": request.workflow_id,
            },
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            await _find(connection, id_)
            rows = await subscriptions.list_fees(
                connection,
                id_,
                workflow_id=request.workflow_id,
                before=None if page.after is None else int(page.after[0]),
                limit=page.limit,
            )
        found, next_page_token = page.cut(rows, lambda fee: (fee.fee_number,))
        return pb.ListSubscriptionFeesResponse(
            fees=map(listed_fee_to_proto, found), next_page_token=next_page_token
        )

    def _start(self, request: pb.CreateSubscriptionRequest) -> datetime:
        now = self._fees.now()
        start = optional_time_from_proto(request, "start_time") or now
        if start.microsecond or not now - _MAX_AGE <= start <= self._clock.now():
            raise InvalidArgument.of(
                "start_time",
                f"must be in whole seconds, not in the future, and at most {_MAX_AGE.days} days ago",
            )
        return start

    async def _transition(self, subscription_id: str, transition: Transition) -> tuple[Step, datetime]:
        """Take a subscription a step on, after the renewals that are due; the step, and when it was taken."""
        id_, principal = _subscription_id(subscription_id), current_principal()

        async def take() -> tuple[Step, datetime]:
            async with self._writer.begin() as connection:
                before, now = await self._locked(connection, id_, tenants_of(principal))
                step = await transition(connection, before, max(now, before.current.start))
                if step.subscription != before:
                    await record(
                        connection,
                        before,
                        step,
                        api_key_id=principal.api_key_id,
                        now=now,
                    )
                return step, now

        taken = await retry_transaction(take, idempotent=True)
        await self._changed()
        return taken

    async def _locked(
        self, connection: Connection, subscription_id: str, tenants: Tenants
    ) -> tuple[Subscription, datetime]:
        await scope(connection, tenants)
        subscription = await _find(connection, subscription_id, lock=True)
        # It is the caller's; the plans of its next period may be the platform's.
        await scope(connection, PLATFORM)
        # Once it is locked: who waited for another change comes after it.
        now = self._fees.now()
        return await catch_up(connection, subscription, now=now), now

    async def _changed(self) -> None:
        self._catalog.expire()
        try:
            await self._fees.post()
        except grpc.aio.AioRpcError as error:
            # Recorded it is: the worker posts it.
            _log.warning("fees.pending", code=error.code().name, detail=error.details())


async def _change(
    connection: Connection,
    subscription: Subscription,
    request: pb.PreviewSubscriptionChangeRequest | pb.ChangeSubscriptionRequest,
    now: datetime,
) -> Step:
    wanted, unit = await _wanted(
        connection, subscription.price_book_id, request.plan_name, request.seats, now
    )
    if unit is not subscription.billing_period.unit:
        raise InvalidArgument.of("plan_name", "must have billing periods as long as now")
    current = subscription.current
    wanted = replace(wanted, start=max(now, current.start))
    return domain.change(subscription, wanted, timing_from_proto(request.timing))


async def _wanted(
    connection: Connection, price_book_id: str, plan_name: str, seats: int, at: datetime
) -> tuple[Segment, Any]:
    """What is subscribed to with a plan of the version in force, and how long its billing periods are."""
    found = await find_plan(connection, price_book_id, plan_name, at)
    if found is None:
        raise InvalidArgument.of("plan_name", "must be a plan of the version of the book that is in force")
    plan, version_id = found
    segment = segment_of(plan, seats, version_id, at)
    if not is_affordable(segment):
        raise InvalidArgument.of("seats", "are too many: the fee of a billing period is out of range")
    return segment, plan.period_unit


async def _claim(
    connection: Connection, owner_id: str, key: str, request: Message, outcome: str
) -> str | None:
    """Claim an idempotency key; what was made under it before, None if it was free."""
    request_hash = hashlib.sha256(
        request.DESCRIPTOR.name.encode() + request.SerializeToString(deterministic=True)
    ).digest()
    earlier = await price_books.claim_key(connection, owner_id, key, request_hash, outcome)
    if earlier is None:
        return None
    if earlier[0] != request_hash:
        raise AlreadyExists(
            "the idempotency key was used before with another request",
            reason="IDEMPOTENCY_KEY_REUSED",
            metadata={"key": key},
        )
    return earlier[1]


async def _find(connection: Connection, subscription_id: str, *, lock: bool = False) -> Subscription:
    content = await subscriptions.find(connection, subscription_id, lock=lock)
    if content is None:
        raise NotFound(
            f"subscription {subscription_id} does not exist",
            reason="SUBSCRIPTION_NOT_FOUND",
            metadata={"subscription_id": subscription_id},
        )
    return subscription_from_stored(content)


def _check_active(subscription: Subscription) -> None:
    if not subscription.is_active:
        raise _conflict(subscription, "it has ended")


def _conflict(subscription: Subscription, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"subscription {subscription.subscription_id} cannot be changed so: {why}",
        reason="AGREEMENT_STATE_CONFLICT",
        metadata={"resource_id": subscription.subscription_id, "state": subscription.state.value},
        precondition_violations=[
            PreconditionViolation("AGREEMENT_STATE_CONFLICT", subscription.subscription_id, why)
        ],
    )


def _check_wanted(plan_name: str, seats: int) -> None:
    check_text(plan_name, "plan_name", shortest=1, longest=64)
    if not 0 <= seats <= MAX_SEATS:
        raise InvalidArgument.of("seats", f"must be from 0 to {MAX_SEATS}")


def _key(value: str) -> str:
    return check_text(value, "idempotency_key", shortest=1, longest=_MAX_KEY)


def _subscription_id(value: str) -> str:
    return ids.check_id(value, ids.SUBSCRIPTION, field="subscription_id")
