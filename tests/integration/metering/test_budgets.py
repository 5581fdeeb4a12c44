"""BudgetService: who may keep which budgets, and what it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from services.kit.auth import CachedAuthenticator
from services.kit.client import connect
from services.kit.clock import FixedClock
from services.kit.db import Database
from services.kit.keys import LedgerKeys
from services.kit.server import bind, build_server
from services.metering.domain.budget import CounterKey
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.budgets import BudgetService, StoredReservedAmounts
from services.metering.rpc.ledger import Ledger
from services.metering.rpc.parties import Directory
from services.metering.store import budgets
from services.metering.store.budgets import Spend
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.metering.v1 import budget_pb2, budget_service_pb2_grpc
from tallystick.metering.v1 import budget_service_pb2 as pb
from tallystick.metering.v1.budget_service_pb2_grpc import BudgetServiceStub
from tests.support.ledger_server import LedgerServer
from tests.support.rpc_errors import Refusal, refusal

if TYPE_CHECKING:
    # Known to type checkers only.
    from tallystick.metering.v1.budget_service_pb2_grpc import BudgetServiceAsyncStub

NOW = datetime(2026, 11, 20, 23, 30, tzinfo=UTC)
UNKNOWN = {
    "CUSTOMER_NOT_FOUND": "customer_id",
    "AGENT_NOT_FOUND": "agent_id",
    "BUDGET_NOT_FOUND": "budget_id",
}


@dataclass
class Budgets:
    """BudgetService, served, and what is behind it."""

    address: str
    ledger: LedgerServer
    writer: Database
    catalog: BudgetCatalog
    clock: FixedClock
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def caller(self, key: str) -> BudgetServiceAsyncStub:
        channel = connect(self.address, key)
        self.channels.append(channel)
        return BudgetServiceStub(channel)

    @property
    def operator(self) -> BudgetServiceAsyncStub:
        return self.caller(self.ledger.operator.key)

    async def of(self, role: access_pb2.Role.ValueType, tenant: str) -> BudgetServiceAsyncStub:
        """Somebody of an organization or a customer."""
        kind = "organization_id" if tenant.startswith("org_") else "customer_id"
        caller = await self.ledger.create_caller(role, f"{tenant}-{role}", **{kind: tenant})
        return self.caller(caller.key)

    async def customer(self, customer_id: str = "cus_1") -> BudgetServiceAsyncStub:
        return await self.of(access_pb2.ROLE_CUSTOMER, customer_id)

    async def owner(self, organization_id: str = "org_a") -> BudgetServiceAsyncStub:
        return await self.of(access_pb2.ROLE_OWNER, organization_id)

    async def spend(self, *spends: Spend) -> None:
        async with self.writer.hot() as connection:
            await budgets.count_spend(connection, spends)

    async def reserve(self, reservation_id: str, key: CounterKey, amount: int) -> None:
        async with self.writer.hot() as connection:
            # PostgreSQL judges expiry by its own clock.
            expire_time = datetime.now(UTC) + timedelta(hours=1)
            await budgets.reserve_budgets(connection, reservation_id, {key: 10**9}, amount, expire_time)


@pytest.fixture
async def served(database_url: str, ledger: LedgerServer) -> AsyncIterator[Budgets]:
    writer, reader = (
        Database(database_url, role=role, schema="metering")
        for role in ("metering_writer", "metering_reader")
    )
    await writer.open()
    channel = connect(ledger.address, ledger.service.key)
    clock = FixedClock(NOW)
    catalog = BudgetCatalog(reader)
    service = BudgetService(
        writer=writer,
        reader=reader,
        directory=Directory(Ledger(channel)),
        catalog=catalog,
        reserved=StoredReservedAmounts(reader),
        clock=clock,
    )
    server = build_server(
        services=[
            bind(
                pb.DESCRIPTOR.services_by_name["BudgetService"],
                budget_service_pb2_grpc.add_BudgetServiceServicer_to_server,
                service,
            )
        ],
        authenticator=CachedAuthenticator(LedgerKeys(channel)),
    )
    address = server.listen("127.0.0.1:0")
    await server.start()
    running = Budgets(address, ledger, writer, catalog, clock)
    try:
        yield running
    finally:
        for one in (*running.channels, channel):
            await one.close()
        await server.stop(timedelta(seconds=2))
        await writer.close()
        await reader.close()


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


def a_budget(**changes: Any) -> budget_pb2.Budget:
    """5 USD a day for cus_1, unless changed."""
    fields: dict[str, Any] = {
        "customer_id": "cus_1",
        "period": budget_pb2.BUDGET_PERIOD_DAY,
        "limit": usd(5_000_000),
        "hard": True,
        "alert_thresholds": [100, 50],
    }
    return budget_pb2.Budget(**fields | changes)


async def create(stub: BudgetServiceAsyncStub, **changes: Any) -> budget_pb2.Budget:
    response = await stub.CreateBudget(pb.CreateBudgetRequest(budget=a_budget(**changes)))
    return response.budget


async def get(stub: BudgetServiceAsyncStub, budget_id: str, workflow_id: str = "") -> pb.GetBudgetResponse:
    return await stub.GetBudget(pb.GetBudgetRequest(budget_id=budget_id, workflow_id=workflow_id))


async def delete(stub: BudgetServiceAsyncStub, budget_id: str) -> None:
    await stub.DeleteBudget(pb.DeleteBudgetRequest(budget_id=budget_id))


def updating(budget_id: str, **changes: Any) -> pb.UpdateBudgetRequest:
    fields: dict[str, Any] = {"limit": usd(7_000_000), "display_name": "New", "hard": False}
    return pb.UpdateBudgetRequest(budget_id=budget_id, **fields | changes)


def check_unknown(error: Refusal, reason: str, id_: str) -> None:
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, reason)
    assert error.metadata[UNKNOWN[reason]] == id_


async def test_a_budget_is_answered_as_it_was_created(served: Budgets) -> None:
    created = await create(served.operator, display_name="Day", time_zone="Europe/Berlin", agent_id="agt_a")

    assert created.budget_id.startswith("bud_")
    wanted = a_budget(
        budget_id=created.budget_id,
        display_name="Day",
        time_zone="Europe/Berlin",
        agent_id="agt_a",
        alert_thresholds=[50, 100],
    )
    wanted.create_time.FromDatetime(NOW)
    wanted.update_time.FromDatetime(NOW)
    assert created == wanted
    assert (await get(served.operator, created.budget_id)).budget == created
    listed = await served.operator.ListBudgets(pb.ListBudgetsRequest())
    assert list(listed.budgets) == [created]
    assert (await create(served.operator)).time_zone == "UTC"


async def test_creating_again_answers_what_exists(served: Budgets) -> None:
    first = await create(served.operator, budget_id="bud_day")
    served.clock.advance(timedelta(hours=1))

    assert await create(served.operator, budget_id="bud_day", alert_thresholds=[50, 100]) == first
    for changes in ({"hard": False}, {"limit": usd(1)}, {"agent_id": "agt_a"}, {"time_zone": "Asia/Tokyo"}):
        error = await refusal(create(served.operator, budget_id="bud_day", **changes))
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_ALREADY_EXISTS")
        assert error.metadata["resource_id"] == "bud_day"
    # An id that is another tenant's is taken, and nothing more is said of it.
    error = await refusal(create(await served.customer(), budget_id="bud_day"))
    assert error.reason == "RESOURCE_ALREADY_EXISTS"
    await delete(served.operator, "bud_day")
    error = await refusal(create(served.operator, budget_id="bud_day"))
    assert error.reason == "RESOURCE_ALREADY_EXISTS"


async def test_the_status_counts_the_present_period(served: Budgets) -> None:
    budget = await create(served.operator, time_zone="Europe/Berlin", hard=False)
    day = datetime(2026, 11, 20, 23, tzinfo=UTC)
    key = CounterKey(budget.budget_id, day, "")
    before = key._replace(period_start=day - timedelta(days=1))
    await served.spend(Spend(key, 1_200_000), Spend(before, 900_000))
    await served.reserve("rsv_1", key, 300_000)

    status = (await get(served.operator, budget.budget_id)).status
    assert (status.spent, status.reserved, status.remaining) == (usd(1_200_000), usd(300_000), usd(3_500_000))
    assert status.period_start_time.ToDatetime(tzinfo=UTC) == day
    assert status.reset_time.ToDatetime(tzinfo=UTC) == day + timedelta(days=1)

    await served.spend(Spend(key, 4_000_000))
    assert (await get(served.operator, budget.budget_id)).status.remaining == usd(0)
    served.clock.advance(timedelta(days=1))
    status = (await get(served.operator, budget.budget_id)).status
    assert (status.spent, status.reserved, status.remaining) == (usd(0), usd(0), usd(5_000_000))


async def test_every_workflow_is_counted_by_itself(served: Budgets) -> None:
    each = {"per_workflow": True, "period": budget_pb2.BUDGET_PERIOD_TOTAL}
    budget = await create(served.operator, **each)
    await served.spend(Spend(CounterKey(budget.budget_id, None, "wf-1"), 7))

    assert not (await get(served.operator, budget.budget_id)).HasField("status")
    status = (await get(served.operator, budget.budget_id, "wf-1")).status
    assert status.spent == usd(7)
    assert not status.HasField("period_start_time")
    assert not status.HasField("reset_time")
    assert (await get(served.operator, budget.budget_id, "wf-2")).status.spent == usd(0)
    error = await refusal(get(served.operator, budget.budget_id, "no workflow"))
    assert error.fields == ["workflow_id"]


async def test_updating_changes_the_terms_and_keeps_the_counter(served: Budgets) -> None:
    budget = await create(served.operator)
    key = CounterKey(budget.budget_id, datetime(2026, 11, 20, tzinfo=UTC), "")
    await served.spend(Spend(key, 100))
    served.clock.advance(timedelta(minutes=1))

    updated = (await served.operator.UpdateBudget(updating(budget.budget_id, alert_thresholds=[9, 8]))).budget

    wanted = a_budget(
        budget_id=budget.budget_id,
        display_name="New",
        limit=usd(7_000_000),
        hard=False,
        alert_thresholds=[8, 9],
        time_zone="UTC",
    )
    wanted.create_time.FromDatetime(NOW)
    wanted.update_time.FromDatetime(NOW + timedelta(minutes=1))
    assert updated == wanted
    found = await get(served.operator, budget.budget_id)
    assert (found.budget, found.status.spent) == (updated, usd(100))
    # Repeated, it changes nothing.
    served.clock.advance(timedelta(minutes=1))
    again = await served.operator.UpdateBudget(updating(budget.budget_id, alert_thresholds=[9, 8]))
    assert again.budget == updated
    euro = money_pb2.Money(currency_code="EUR", amount_micros=1)
    error = await refusal(
        served.operator.UpdateBudget(updating(budget.budget_id, limit=euro, alert_thresholds=[0]))
    )
    assert error.fields == ["limit.currency_code", "alert_thresholds"]


async def test_a_cap_is_not_lifted_by_leaving_it_out(served: Budgets) -> None:
    budget = await create(served.operator)
    error = await refusal(served.operator.UpdateBudget(updating(budget.budget_id, hard=None)))
    assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["hard"])
    assert (await get(served.operator, budget.budget_id)).budget == budget


async def test_a_deleted_budget_is_gone_and_its_alerts_stay(served: Budgets) -> None:
    budget = await create(served.operator)
    key = CounterKey(budget.budget_id, datetime(2026, 11, 20, tzinfo=UTC), "")
    await served.spend(Spend(key, 2_500_000))

    for _ in range(2):
        await delete(served.operator, budget.budget_id)

    for call in (
        get(served.operator, budget.budget_id),
        served.operator.UpdateBudget(updating(budget.budget_id)),
    ):
        check_unknown(await refusal(call), "BUDGET_NOT_FOUND", budget.budget_id)
    assert not (await served.operator.ListBudgets(pb.ListBudgetsRequest())).budgets
    alerts = await served.operator.ListBudgetAlerts(pb.ListBudgetAlertsRequest(budget_id=budget.budget_id))
    assert [alert.threshold for alert in alerts.alerts] == [50]


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"budget_id": "budget"}, ["budget.budget_id"]),
        ({"customer_id": "1"}, ["budget.customer_id"]),
        ({"agent_id": "cus_1"}, ["budget.agent_id"]),
        ({"api_key_id": "tsk_1"}, ["budget.api_key_id"]),
        ({"customer_id": ""}, ["budget"]),
        ({"period": 0}, ["budget.period"]),
        ({"period": 77}, ["budget.period"]),
        ({"per_workflow": True}, ["budget.period"]),
        ({"time_zone": "Berlin"}, ["budget.time_zone"]),
        ({"limit": money_pb2.Money()}, ["budget.limit.currency_code", "budget.limit.amount_micros"]),
        ({"limit": usd(-(2**63))}, ["budget.limit.amount_micros"]),
        (
            {"alert_thresholds": [1, 1], "display_name": "\n"},
            ["budget.display_name", "budget.alert_thresholds"],
        ),
    ],
)
async def test_malformed_budgets_are_refused_by_field(
    served: Budgets, changes: dict[str, Any], fields: list[str]
) -> None:
    error = await refusal(create(served.operator, **changes))
    assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


async def test_parties_must_exist(served: Budgets) -> None:
    error = await refusal(create(served.operator, customer_id="cus_none"))
    check_unknown(error, "CUSTOMER_NOT_FOUND", "cus_none")
    error = await refusal(create(served.operator, agent_id="agt_none"))
    check_unknown(error, "AGENT_NOT_FOUND", "agt_none")
    # Of keys only the ledger knows which exist.
    await create(served.operator, customer_id="", api_key_id="key_none")


async def test_a_customer_keeps_budgets_on_its_own_spending(served: Budgets) -> None:
    customer = await served.customer()

    await create(customer)
    await create(customer, agent_id="agt_b")

    error = await refusal(create(customer, customer_id="cus_2"))
    check_unknown(error, "CUSTOMER_NOT_FOUND", "cus_2")
    assert (await refusal(create(customer, customer_id="", agent_id="agt_a"))).fields == [
        "budget.customer_id"
    ]
    error = await refusal(create(customer, api_key_id="key_1"))
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")


async def test_an_organization_keeps_budgets_on_its_own_agents(served: Budgets) -> None:
    for role in (access_pb2.ROLE_OWNER, access_pb2.ROLE_BILLING_ADMIN):
        caller = await served.of(role, "org_a")
        await create(caller, customer_id="", agent_id="agt_a")
        await create(caller, agent_id="agt_a")
        error = await refusal(create(caller, customer_id="", agent_id="agt_b"))
        check_unknown(error, "AGENT_NOT_FOUND", "agt_b")
        assert (await refusal(create(caller))).fields == ["budget.agent_id"]
        error = await refusal(create(caller, agent_id="agt_a", api_key_id="key_1"))
        assert error.reason == "ROLE_NOT_ALLOWED"
    member = await served.of(access_pb2.ROLE_MEMBER, "org_a")
    assert (
        await refusal(member.ListBudgets(pb.ListBudgetsRequest()))
    ).code is grpc.StatusCode.PERMISSION_DENIED


async def test_nobody_sees_or_touches_the_budgets_of_others(served: Budgets) -> None:
    """Not even those on the same customer or agent; the platform sees all of them."""
    callers = {
        "bud_platform": served.operator,
        "bud_cus_1": await served.customer(),
        "bud_cus_2": await served.customer("cus_2"),
        "bud_org_a": await served.owner(),
        "bud_org_b": await served.owner("org_b"),
    }
    day = datetime(2026, 11, 20, tzinfo=UTC)
    for id_, caller in callers.items():
        customer_id = "cus_2" if id_ == "bud_cus_2" else "cus_1"
        agent_id = "agt_b" if id_ == "bud_org_b" else "agt_a"
        await create(caller, budget_id=id_, customer_id=customer_id, agent_id=agent_id)
        await served.spend(Spend(CounterKey(id_, day, ""), 2_500_000))

    for own, caller in callers.items():
        seen = list(callers) if own == "bud_platform" else [own]
        listed = await caller.ListBudgets(pb.ListBudgetsRequest())
        assert [budget.budget_id for budget in listed.budgets] == sorted(seen)
        alerts = await caller.ListBudgetAlerts(pb.ListBudgetAlertsRequest())
        assert [alert.budget_id for alert in alerts.alerts] == seen[::-1]
        for id_ in callers:
            if id_ in seen:
                assert (await get(caller, id_)).status.spent == usd(2_500_000)
                continue
            for call in (
                get(caller, id_),
                caller.UpdateBudget(updating(id_)),
                caller.DeleteBudget(pb.DeleteBudgetRequest(budget_id=id_)),
                caller.ListBudgetAlerts(pb.ListBudgetAlertsRequest(budget_id=id_)),
            ):
                check_unknown(await refusal(call), "BUDGET_NOT_FOUND", id_)


async def test_operators_keep_the_budgets_of_tenants_too(served: Budgets) -> None:
    customer = await served.customer()
    budget = await create(customer)

    await served.operator.UpdateBudget(updating(budget.budget_id))

    assert (await get(customer, budget.budget_id)).budget.limit == usd(7_000_000)


async def test_lists_come_in_pages(served: Budgets) -> None:
    operator = served.operator
    ids = [f"bud_{number}" for number in range(5)]
    day = datetime(2026, 11, 20, tzinfo=UTC)
    for id_ in ids:
        await create(operator, budget_id=id_)
        await served.spend(Spend(CounterKey(id_, day, ""), 5_000_000))

    listed: list[str] = []
    token = ""
    while len(listed) < 5:
        page = await operator.ListBudgets(pb.ListBudgetsRequest(page_size=2, page_token=token))
        listed += [budget.budget_id for budget in page.budgets]
        token = page.next_page_token
    assert (listed, token) == (ids, "")

    told: list[tuple[str, int]] = []
    request = pb.ListBudgetAlertsRequest(page_size=3)
    while len(told) < 10:
        alerts = await operator.ListBudgetAlerts(request)
        told += [(alert.budget_id, alert.threshold) for alert in alerts.alerts]
        request.page_token = alerts.next_page_token
    assert told == [(id_, threshold) for id_ in reversed(ids) for threshold in (100, 50)]
    assert request.page_token == ""

    first = await operator.ListBudgetAlerts(pb.ListBudgetAlertsRequest(page_size=1))
    other = pb.ListBudgetAlertsRequest(budget_id="bud_1", page_token=first.next_page_token)
    assert (await refusal(operator.ListBudgetAlerts(other))).reason == "INVALID_PAGE_TOKEN"


async def test_alerts_say_what_was_reached(served: Budgets) -> None:
    budget = await create(served.operator, alert_thresholds=[80])
    day = datetime(2026, 11, 20, tzinfo=UTC)
    await served.spend(Spend(CounterKey(budget.budget_id, day, ""), 4_200_000))
    await served.operator.UpdateBudget(updating(budget.budget_id))

    (alert,) = (await served.operator.ListBudgetAlerts(pb.ListBudgetAlertsRequest())).alerts

    assert (alert.budget_id, alert.threshold, alert.workflow_id) == (budget.budget_id, 80, "")
    assert (alert.spent, alert.limit) == (usd(4_200_000), usd(5_000_000))
    assert alert.period_start_time.ToDatetime(tzinfo=UTC) == day
    assert alert.HasField("create_time")


async def test_nobody_piles_up_budgets_that_count_the_same(served: Budgets) -> None:
    customer = await served.customer()
    for number in range(20):
        await create(customer, budget_id=f"bud_{number}")

    assert (await refusal(create(customer))).fields == ["budget"]
    # Repeating one that was created is no more.
    await create(customer, budget_id="bud_3")
    await create(customer, agent_id="agt_a")
    await create(served.operator)
    await delete(customer, "bud_0")
    await create(customer)


async def test_a_change_is_in_the_catalog_at_once(served: Budgets) -> None:
    def limits(index: Any) -> list[int]:
        return [budget.limit_micros for budget in index.matching("cus_1", "agt_a", "key_1", "USD")]

    assert limits(await served.catalog.index()) == []
    budget = await create(served.operator)
    assert limits(await served.catalog.index()) == [5_000_000]
    await served.operator.UpdateBudget(updating(budget.budget_id))
    assert limits(await served.catalog.index()) == [7_000_000]
    await delete(served.operator, budget.budget_id)
    assert limits(await served.catalog.index()) == []
