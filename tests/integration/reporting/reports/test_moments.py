"""Every answer is of one moment of one projection, and of one owner in the database, too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.auth import Principal, Role, as_principal
from services.kit.clock import FixedClock
from services.kit.errors import Aborted
from services.kit.tenancy import Tenants, scope
from services.reporting.domain.owner import Owner, OwnerKind
from services.reporting.domain.revenue import RevenueGrouping
from services.reporting.domain.usage import MarginGrouping, UsageGrouping
from services.reporting.rpc import exports as export_rpcs
from services.reporting.rpc import statements as statement_rpcs
from services.reporting.rpc.reporting import ReportingService
from services.reporting.store import charges, exports, movements, projections, revenue, usage
from services.reporting.store.charges import ChargeFilter
from services.reporting.store.exports import ExportFilter
from services.reporting.store.movements import Books as Accounts
from services.reporting.store.revenue import Earner
from services.reporting.store.usage import User
from tallystick.reporting.v1 import period_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.conftest import FreshDatabase
from tests.integration.reporting.reports.conftest import Filled
from tests.integration.reporting.reports.facts import LARK, NOW, WREN
from tests.support.reporting_books import Books, Payee
from tests.support.reports_server import ReportingServer, opened_database, running_reporting

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALWAYS = (datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))
ORGANIZATION, CUSTOMER = Owner(OwnerKind.ORGANIZATION, LARK), Owner(OwnerKind.CUSTOMER, "cus_ada")
YEAR = period_pb2.Period(name="12m")
Read = Callable[[AsyncConnection], Awaitable[Any]]


async def test_before_the_first_projection_one_is_told_to_wait(fresh_database: FreshDatabase) -> None:
    with fresh_database() as url:
        async with running_reporting(url, FixedClock(NOW)) as reporting:
            owner = await reporting.caller(f"owner/{LARK}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await owner.GetRevenueSummary(pb.GetRevenueSummaryRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    retry = error_details_pb2.RetryInfo()
    [details] = [value for key, value in caught.value.trailing_metadata() if key == "grpc-status-details-bin"]
    assert any(one.Unpack(retry) for one in status_pb2.Status.FromString(details).details)
    assert retry.retry_delay.seconds > 0


@pytest.mark.parametrize("method", ["GetStatement", "ExportTransactions"])
async def test_what_was_begun_with_one_projection_does_not_go_on_with_another(
    fresh_database: FreshDatabase, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(statement_rpcs, "_BATCH", 1)
    monkeypatch.setattr(export_rpcs, "_ROWS", 1)
    books = Books()
    for number in range(9):
        books.charge("cus_ada", Payee(LARK, "agt_x", 1000), NOW - timedelta(minutes=30 + number))
    requests = {
        "GetStatement": pb.GetStatementRequest(),
        "ExportTransactions": pb.ExportTransactionsRequest(),
    }
    with fresh_database() as url:
        async with (
            opened_database(url, "reporting_writer") as writer,
            opened_database(url, "reporting_reader") as reader,
        ):
            await books.apply(writer)
            # Not over gRPC, which would take all of it at once.
            nobody: Any = None
            service = ReportingService(reader=reader, payouts=nobody, catalogue="", clock=FixedClock(NOW))
            with as_principal(Principal("key_owner", Role.OWNER, organization_id=LARK)):
                stream = getattr(service, method)(requests[method], nobody)
                await anext(stream)
                again = Books()
                for charge in books.charges:
                    again.charge(charge.customer_id, charge.payees, charge.occur_time)
                async with writer.begin() as connection:
                    again.projection_id = await projections.begin(connection)
                await again.apply(writer)
                async with writer.begin() as connection:
                    assert await projections.serve(connection, again.projection_id)
                with pytest.raises(Aborted):
                    await anext(stream)


@pytest.mark.parametrize("key", [f"owner/{LARK}", "customer/cus_ada"])
async def test_pages_make_the_same_answer_as_one(
    reporting: ReportingServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    caller = await reporting.caller(key)

    async def export() -> bytes:
        stream = caller.ExportTransactions(pb.ExportTransactionsRequest(period=YEAR))
        return b"".join([message.content async for message in stream])

    async def statement() -> list[Any]:
        stream = caller.GetStatement(pb.GetStatementRequest(period=YEAR))
        messages: list[pb.GetStatementResponse] = [message async for message in stream]
        return [one for message in messages for one in message.movements]

    whole = await export(), await statement()
    monkeypatch.setattr(export_rpcs, "_ROWS", 7)
    monkeypatch.setattr(statement_rpcs, "_BATCH", 7)
    assert (await export(), await statement()) == whole
    assert whole[0].count(b"\r\n") > 15
    assert len(whole[1]) > 15


def _reads(projection_id: int, books: Books) -> dict[str, tuple[Read, Any]]:
    """What is read of org_lark and cus_ada, and what there is of them for somebody else."""
    earner = Earner(projection_id, LARK, "USD")
    of_organization = User(projection_id, ORGANIZATION, "USD")
    of_customer = User(projection_id, CUSTOMER, "USD")
    shown = [charge.charge_id for charge in books.charges]

    async def identities(connection: AsyncConnection) -> list[Any]:
        rows = await connection.execute(
            text("SELECT charge_id FROM reporting.charge_identities(:projection_id, :ids)"),
            {"projection_id": projection_id, "ids": shown},
        )
        return list(rows)

    def accounts(owner: Owner) -> Accounts:
        return Accounts(projection_id, 10**9, owner, "USD")

    def export(owner: Owner) -> ExportFilter:
        return ExportFilter(projection_id, 10**9, owner, ALWAYS, "")

    return {
        "revenue": (lambda c: revenue.rank(c, earner, ALWAYS, RevenueGrouping.AGENT, 9), "groups"),
        "customers": (lambda c: revenue.rank(c, earner, ALWAYS, RevenueGrouping.CUSTOMER, 9), "groups"),
        "all revenue": (lambda c: revenue.rank(c, earner, ALWAYS, RevenueGrouping.NONE, 9), "groups"),
        "usage of agents": (
            lambda c: usage.rank(c, of_organization, ALWAYS, UsageGrouping.AGENT, 9),
            "groups",
        ),
        "usage for a customer": (
            lambda c: usage.rank(c, of_customer, ALWAYS, UsageGrouping.AGENT, 9),
            "groups",
        ),
        "runs": (lambda c: usage.margins(c, of_organization, ALWAYS, MarginGrouping.RUN, 9), 0),
        "charges of agents": (
            lambda c: charges.list_newest(c, projection_id, ChargeFilter(ORGANIZATION, ALWAYS), None, 9),
            None,
        ),
        "charges of a customer": (
            lambda c: charges.list_newest(c, projection_id, ChargeFilter(CUSTOMER, ALWAYS), None, 9),
            None,
        ),
        "which runs": (identities, None),
        "balances": (lambda c: movements.openings(c, accounts(ORGANIZATION), NOW), None),
        "totals": (lambda c: movements.totals(c, accounts(CUSTOMER), ALWAYS), None),
        "movements": (lambda c: movements.list_after(c, accounts(CUSTOMER), ALWAYS, None, 9), None),
        "payouts": (lambda c: movements.payout_transactions(c, projection_id, LARK, ["po_1"]), None),
        "export of agents": (lambda c: exports.list_after(c, export(ORGANIZATION), None, 9), 0),
        "export of a customer": (lambda c: exports.list_after(c, export(CUSTOMER), None, 9), 0),
    }


async def test_a_statement_that_asks_for_anothers_rows_gets_none(filled: Filled) -> None:
    projection_id = filled.books.projection_id
    assert projection_id is not None
    wrong: list[str] = []
    async with opened_database(filled.database_url, "reporting_reader") as reader:
        for tenants, sees in (
            (Tenants(ids=(LARK, "cus_ada")), True),
            (Tenants(ids=("org_nobody", "cus_nobody")), False),
            (Tenants(), False),
        ):
            async with reader.begin() as connection:
                await scope(connection, tenants)
                for name, (read, part) in _reads(projection_id, filled.books).items():
                    found = await read(connection)
                    if isinstance(part, str):
                        found = getattr(found, part)
                    elif part is not None:
                        found = found[part]
                    if bool(found) != sees:
                        wrong.append(f"{name} for {tenants}")
    assert wrong == []


async def test_payees_of_a_charge_know_its_run_and_others_do_not(filled: Filled) -> None:
    books, projection_id = filled.books, filled.books.projection_id
    async with opened_database(filled.database_url, "reporting_reader") as reader:
        for owner_id in (LARK, WREN, "cus_ada"):
            async with reader.begin() as connection:
                await scope(connection, Tenants(ids=(owner_id,)))
                rows = await connection.execute(
                    text("SELECT charge_id FROM reporting.charge_identities(:projection_id, :ids)"),
                    {"projection_id": projection_id, "ids": [charge.charge_id for charge in books.charges]},
                )
                assert {row.charge_id for row in rows} == {
                    charge.charge_id
                    for charge in books.charges
                    if owner_id in (charge.customer_id, *(payee.organization_id for payee in charge.payees))
                }
