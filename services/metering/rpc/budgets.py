"""BudgetService."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import grpc

from services.kit import ids
from services.kit.auth import Principal, current_principal
from services.kit.clock import Clock
from services.kit.db import Database, retry_transaction
from services.kit.errors import AlreadyExists, FieldViolation, InvalidArgument, NotFound, PermissionDenied
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, scope, tenants_of
from services.metering.domain.budget import (
    MAX_ALIKE,
    MAX_OWN,
    Budget,
    Counter,
    CounterKey,
    check_terms,
    counter_key,
    period_of,
)
from services.metering.domain.price_book import PLATFORM_OWNER
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.budget_convert import (
    alert_to_proto,
    budget_from_proto,
    budget_to_proto,
    status_to_proto,
)
from services.metering.rpc.parties import Directory
from services.metering.store import budgets
from tallystick.metering.v1 import budget_pb2, budget_service_pb2_grpc
from tallystick.metering.v1 import budget_service_pb2 as pb

_CREATE_BUDGET: Final = "/tallystick.metering.v1.BudgetService/CreateBudget"

Context = grpc.aio.ServicerContext[Any, Any]


class ReservedAmounts(Protocol):
    """Knows what is reserved against budgets for runs under way."""

    async def reserved(self, budget: Budget, key: CounterKey) -> int:
        """What is reserved against this counter of a budget, in micros."""


class StoredReservedAmounts:
    """ReservedAmounts of what PostgreSQL alone knows: the reservations made while Valkey was away."""

    def __init__(self, reader: Database) -> None:
        self._reader = reader

    async def reserved(self, budget: Budget, key: CounterKey) -> int:
        """What is reserved against this counter of a budget, in micros."""
        async with self._reader.begin() as connection:
            # Whoever may see the budget may see what it counts.
            await scope(connection, PLATFORM)
            return await budgets.reserved_of(connection, key)


class BudgetService(budget_service_pb2_grpc.BudgetServiceServicer):
    """Serves BudgetService."""

    def __init__(
        self,
        *,
        writer: Database,
        reader: Database,
        directory: Directory,
        catalog: BudgetCatalog,
        reserved: ReservedAmounts,
        clock: Clock,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._directory = directory
        self._catalog = catalog
        self._reserved = reserved
        self._clock = clock

    async def CreateBudget(
        self, request: pb.CreateBudgetRequest, context: Context
    ) -> pb.CreateBudgetResponse:
        principal = current_principal()
        budget = budget_from_proto(
            request.budget,
            budget_id=request.budget.budget_id or ids.new_id(ids.BUDGET, clock=self._clock),
            owner_id=_owner(request.budget, principal),
            now=self._clock.now(),
        )
        await self._check_parties(budget, principal)

        async def create() -> Budget:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                existing = await budgets.find(connection, budget.budget_id)
                if existing is None:
                    _check_number(
                        budget,
                        alike=await budgets.count_alike(connection, budget),
                        own=await budgets.count_own(connection, budget.owner_id),
                    )
                    if await budgets.create(connection, budget):
                        return budget
                    existing = await budgets.find(connection, budget.budget_id)
                return _repeated(budget, existing)

        created = await retry_transaction(create, idempotent=True)
        self._catalog.expire()
        return pb.CreateBudgetResponse(budget=budget_to_proto(created))

    async def GetBudget(self, request: pb.GetBudgetRequest, context: Context) -> pb.GetBudgetResponse:
        id_ = _budget_id(request.budget_id)
        if request.workflow_id:
            ids.check_workflow_id(request.workflow_id)
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            budget = _present(await budgets.find(connection, id_), id_)
            if budget.per_workflow and not request.workflow_id:
                return pb.GetBudgetResponse(budget=budget_to_proto(budget))
            period = period_of(budget, self._clock.now())
            key = counter_key(budget, period, request.workflow_id)
            spent = await budgets.spent_of(connection, key)
        counter = Counter(key, spent, await self._reserved.reserved(budget, key))
        return pb.GetBudgetResponse(
            budget=budget_to_proto(budget), status=status_to_proto(budget, period, counter)
        )

    async def ListBudgets(self, request: pb.ListBudgetsRequest, context: Context) -> pb.ListBudgetsResponse:
        page = Page.parse(request.page_size, request.page_token, key_types=(str,), filter={"list": "budgets"})
        principal = current_principal()
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(principal))
            rows = await budgets.list_budgets(
                connection,
                owner_ids=_owner_ids(principal),
                after="" if page.after is None else str(page.after[0]),
                limit=page.limit,
            )
        found, next_page_token = page.cut(rows, lambda budget: (budget.budget_id,))
        return pb.ListBudgetsResponse(budgets=map(budget_to_proto, found), next_page_token=next_page_token)

    async def UpdateBudget(
        self, request: pb.UpdateBudgetRequest, context: Context
    ) -> pb.UpdateBudgetResponse:
        principal = current_principal()
        id_ = _budget_id(request.budget_id)
        if not request.HasField("hard"):
            raise InvalidArgument.of("hard", "must be set: whether the budget refuses runs")

        async def update() -> Budget:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                budget = _present(await budgets.find(connection, id_), id_)
                changed = replace(
                    budget,
                    display_name=request.display_name,
                    limit_micros=request.limit.amount_micros,
                    hard=request.hard,
                    alert_thresholds=check_terms(
                        display_name=request.display_name,
                        limit_currency_code=request.limit.currency_code,
                        limit_micros=request.limit.amount_micros,
                        alert_thresholds=request.alert_thresholds,
                        currency_code=budget.currency_code,
                    ),
                )
                if changed == budget:
                    return budget
                changed = replace(changed, update_time=self._clock.now())
                return _present(await budgets.change(connection, changed), id_)

        updated = await retry_transaction(update, idempotent=True)
        self._catalog.expire()
        return pb.UpdateBudgetResponse(budget=budget_to_proto(updated))

    async def DeleteBudget(
        self, request: pb.DeleteBudgetRequest, context: Context
    ) -> pb.DeleteBudgetResponse:
        principal = current_principal()
        id_ = _budget_id(request.budget_id)

        async def delete() -> None:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                budget = _found(await budgets.find(connection, id_), id_)
                if budget.delete_time is None:
                    now = self._clock.now()
                    # If another call deletes it at the same moment, that is as good.
                    await budgets.change(connection, replace(budget, update_time=now, delete_time=now))

        await retry_transaction(delete, idempotent=True)
        self._catalog.expire()
        return pb.DeleteBudgetResponse()

    async def ListBudgetAlerts(
        self, request: pb.ListBudgetAlertsRequest, context: Context
    ) -> pb.ListBudgetAlertsResponse:
        if request.budget_id:
            _budget_id(request.budget_id)
        page = Page.parse(
            request.page_size,
            request.page_token,
            # A number of 64 bits, which pages carry as text.
            key_types=(str,),
            filter={"list": "budget_alerts", "budget_id": request.budget_id},
        )
        principal = current_principal()
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(principal))
            if request.budget_id:
                _found(await budgets.find(connection, request.budget_id), request.budget_id)
            rows = await budgets.list_alerts(
                connection,
                owner_ids=_owner_ids(principal),
                budget_id=request.budget_id,
                before=None if page.after is None else _alert_number(str(page.after[0])),
                limit=page.limit,
            )
        found, next_page_token = page.cut(rows, lambda row: (str(row[0]),))
        return pb.ListBudgetAlertsResponse(
            alerts=[alert_to_proto(alert) for _, alert in found], next_page_token=next_page_token
        )

    async def _check_parties(self, budget: Budget, principal: Principal) -> None:
        """Raise NotFound unless its customer and its agent exist, and are within the caller's reach."""
        customers = [budget.customer_id] if budget.customer_id else []
        agents = [(budget.agent_id, "")] if budget.agent_id else []
        parties = await self._directory.find(customers, agents)
        if budget.customer_id and (
            budget.customer_id not in parties.customers or not principal.may_use_customer(budget.customer_id)
        ):
            raise _customer_not_found(budget.customer_id)
        if budget.agent_id and (
            budget.agent_id not in parties.agents
            # An organization keeps budgets on its own agents; a customer on its spending for anybody's.
            or principal.organization_id not in (None, parties.agents[budget.agent_id].organization_id)
            or not principal.may_use_agent(budget.agent_id)
        ):
            raise NotFound(
                f"agent {budget.agent_id} does not exist",
                reason="AGENT_NOT_FOUND",
                metadata={"agent_id": budget.agent_id},
            )


def _check_number(budget: Budget, *, alike: int, own: int) -> None:
    """Raise InvalidArgument if its owner has too many already.

    Not exact among calls at the same moment; it only has to keep the numbers small.
    """
    if alike >= MAX_ALIKE:
        raise InvalidArgument.of(
            "budget", f"counts what {MAX_ALIKE} others count already; change or delete one"
        )
    if own >= MAX_OWN and budget.owner_id != PLATFORM_OWNER:
        raise InvalidArgument.of("budget", f"is one more than the {MAX_OWN} that may be kept; delete one")


def _owner(message: budget_pb2.Budget, principal: Principal) -> str:
    """Whose budget it is to be. Raises if the caller may not keep one on this."""
    tenant = principal.organization_id or principal.customer_id
    if tenant is None:
        return PLATFORM_OWNER
    if message.api_key_id:
        raise PermissionDenied(
            "only operators may keep budgets on what an API key reports",
            metadata={"role": principal.role, "method": _CREATE_BUDGET},
        )
    if principal.organization_id is not None and not message.agent_id:
        raise InvalidArgument.of("budget.agent_id", "must be set: an organization's budget is on its agent")
    if principal.customer_id is not None and not message.customer_id:
        raise InvalidArgument.of("budget.customer_id", "must be set: a customer's budget is on its spending")
    if principal.customer_id not in (None, message.customer_id):
        # Another customer answers as one that does not exist.
        ids.check_id(message.customer_id, ids.CUSTOMER, field="budget.customer_id")
        raise _customer_not_found(message.customer_id)
    return tenant


def _owner_ids(principal: Principal) -> Sequence[str] | None:
    """The owners whose budgets the caller may see, None for all."""
    tenants = tenants_of(principal)
    return None if tenants.platform else tenants.ids


def _repeated(wanted: Budget, existing: Budget | None) -> Budget:
    """The budget that an equal request created before. Raises AlreadyExists if that was another one."""
    if existing is not None:
        same = replace(wanted, create_time=existing.create_time, update_time=existing.update_time)
        if same == existing:
            return existing
    raise AlreadyExists(
        f"budget {wanted.budget_id} exists with other content, or existed",
        metadata={"resource_id": wanted.budget_id},
    )


def _found(budget: Budget | None, budget_id: str) -> Budget:
    if budget is None:
        raise NotFound(
            f"budget {budget_id} does not exist",
            reason="BUDGET_NOT_FOUND",
            metadata={"budget_id": budget_id},
        )
    return budget


def _present(budget: Budget | None, budget_id: str) -> Budget:
    """The budget, unless it was deleted."""
    return _found(None if budget is None or budget.delete_time is not None else budget, budget_id)


def _customer_not_found(customer_id: str) -> NotFound:
    return NotFound(
        f"customer {customer_id} does not exist",
        reason="CUSTOMER_NOT_FOUND",
        metadata={"customer_id": customer_id},
    )


def _budget_id(value: str) -> str:
    return ids.check_id(value, ids.BUDGET, field="budget_id")


def _alert_number(text: str) -> int:
    # As Page.parse does with what it can tell to be forged.
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidArgument(
            "page_token is damaged",
            reason="INVALID_PAGE_TOKEN",
            field_violations=[FieldViolation("page_token", "is damaged")],
        )
    return int(text)
