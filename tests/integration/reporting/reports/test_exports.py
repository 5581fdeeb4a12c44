"""Exports: as many rows as facts, and columns that add up to what the other reports say."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

import grpc
import pytest
from sqlalchemy import text

from services.kit.runs import kind_of, service_period
from services.kit.tenancy import Tenants, scope
from services.reporting.domain.export_columns import ExportRow
from services.reporting.domain.owner import Owner, OwnerKind
from services.reporting.store import exports
from services.reporting.store.exports import ExportFilter, Place
from tallystick.reporting.v1 import period_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.integration.reporting.reports.conftest import Filled
from tests.integration.reporting.reports.facts import LARK, NOW, WREN
from tests.support.reporting_books import Books
from tests.support.reports_server import ReportingServer, opened_database
from tests.support.rpc_errors import refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Of a connection, since it last reported.
_FETCHED = text(
    "SELECT coalesce(sum(idx_tup_fetch), 0)::bigint FROM pg_stat_xact_user_tables WHERE relname = 'movement'"
)


async def _rows(
    reporting: ReportingServer, key: str, request: pb.ExportTransactionsRequest
) -> list[dict[str, str]]:
    stream = (await reporting.caller(key)).ExportTransactions(request)
    content = b"".join([message.content async for message in stream])
    return list(csv.DictReader(io.StringIO(content.decode())))


def _micros(values: Iterable[str]) -> int:
    return int(sum((Decimal(value) for value in values), Decimal(0)).scaleb(6))


@pytest.mark.parametrize("organization_id", [LARK, WREN])
@pytest.mark.parametrize("name", ["mtd", "2026"])
async def test_an_organization_exports_what_it_earned(
    reporting: ReportingServer, books: Books, organization_id: str, name: str
) -> None:
    rows = await _rows(
        reporting,
        f"owner/{organization_id}",
        pb.ExportTransactionsRequest(period=period_pb2.Period(name=name)),
    )
    start = datetime(2026, 11 if name == "mtd" else 1, 1, tzinfo=UTC)
    # Some of what became of late work is still to come.
    end = NOW if name == "mtd" else datetime(2027, 1, 1, tzinfo=UTC)
    facts = sorted(
        (
            one
            for one in books.earned
            if one.organization_id == organization_id and start <= one.occur_time < end
        ),
        key=lambda one: (one.occur_time, one.charge.charge_id, f"txn_{one.position}"),
    )
    assert [(row["type"], row["charge_id"], row["transaction_id"]) for row in rows] == [
        (one.type, one.charge.charge_id, f"txn_{one.position}") for one in facts
    ]
    for row, fact in zip(rows, facts, strict=True):
        assert _micros([row["gross"]]) == fact.billed
        assert _micros([row["net"]]) == fact.net
        assert row["workflow_id"] == fact.charge.workflow_id
        event = fact.charge.event
        assert row["model"] == (event.model if event and event.organization_id == organization_id else "")
    for currency in ("USD", "EUR"):
        of_currency = [row for row in rows if row["currency"] == currency]
        figures = books.revenue(organization_id, start, end, currency=currency).get("", (0,) * 5)
        assert (
            tuple(
                _micros(row[column] for row in of_currency)
                for column in ("platform_fee", "processing_fee", "net")
            )
            == figures[1:4]
        )


@pytest.mark.parametrize("customer_id", ["cus_ada", "cus_bob"])
async def test_a_customer_exports_what_it_paid(
    reporting: ReportingServer, books: Books, customer_id: str
) -> None:
    rows = await _rows(
        reporting,
        f"customer/{customer_id}",
        pb.ExportTransactionsRequest(period=period_pb2.Period(name="12m"), currency_code="USD"),
    )
    start = datetime(2025, 12, 1, tzinfo=UTC)
    wanted = [
        (one.occur_time, one.charge_id, "", one.gross)
        for one in books.charges
        if one.customer_id == customer_id and one.currency == "USD" and start <= one.occur_time < NOW
    ]
    wanted += [
        (one.occur_time, one.charge.charge_id, one.correction_id, one.billed)
        for one in books.earned
        if one.type == "correction" and one.charge.customer_id == customer_id and one.charge.currency == "USD"
    ]
    assert [
        (
            datetime.fromisoformat(row["occur_time"]),
            row["charge_id"],
            row["correction_id"],
            _micros([row["gross"]]),
        )
        for row in rows
    ] == sorted(wanted)
    assert {row["net"] for row in rows} == {""}
    assert any(row["correction_id"] for row in rows)


@pytest.mark.parametrize("key", [f"owner/{LARK}", "customer/cus_bob"])
async def test_fees_and_closings_say_both_dates(reporting: ReportingServer, books: Books, key: str) -> None:
    period = period_pb2.Period(name="12m")
    owner_id = key.partition("/")[2]
    rows = await _rows(reporting, key, pb.ExportTransactionsRequest(period=period))
    facts = {
        one.charge_id: one
        for one in books.charges
        if owner_id in (one.customer_id, one.payees[0].organization_id)
    }
    kinds = set()
    for row in rows:
        charge = facts.get(row["charge_id"])
        if charge is None:
            continue
        kind = kind_of(charge.workflow_id)
        kinds.add((row["type"], kind.value))
        assert row["charge_kind"] == kind
        service = service_period(charge.workflow_id, charge.occur_time)
        assert (row["service_start"], row["service_end"]) == (
            ("", "") if service is None else (service.start.isoformat(), service.end.isoformat())
        )
    assert kinds >= {("charge", "subscription"), ("correction", "subscription"), ("charge", "period_close")}

    focus = await _rows(
        reporting, key, pb.ExportTransactionsRequest(period=period, columns=pb.EXPORT_COLUMNS_FOCUS)
    )
    assert len(focus) == len(rows)
    told = {
        "subscription": ("Purchase", "Recurring"),
        "period_close": ("Usage", "Usage-Based"),
        "usage": ("Usage", "Usage-Based"),
    }
    for row in focus:
        assert (row["ChargeCategory"], row["ChargeFrequency"]) == told[row["x_ChargeKind"]]
        posted = datetime.fromisoformat(row["x_CreateTime"])
        assert row["BillingPeriodStart"] == f"{posted:%Y-%m-01T00:00:00Z}"
        if row["x_ChargeKind"] != "usage":
            for column, own in (("ChargePeriodStart", "x_ServiceStart"), ("ChargePeriodEnd", "x_ServiceEnd")):
                found = datetime.fromisoformat(row[own])
                assert datetime.fromisoformat(row[column]) == found.replace(microsecond=0)
            assert not row["ConsumedQuantity"]


async def test_a_page_of_a_customer_reads_no_more_than_what_it_is_made_of(filled: Filled) -> None:
    wanted = ExportFilter(
        1, 10**9, Owner(OwnerKind.CUSTOMER, "cus_ada"), (datetime(2025, 12, 1, tzinfo=UTC), NOW), ""
    )
    found: list[ExportRow] = []
    read = []
    after: Place | None = None
    async with opened_database(filled.database_url, "reporting_reader") as reader:

        async def page(place: Place | None, limit: int) -> tuple[Sequence[ExportRow], Place | None]:
            async with reader.begin() as connection:
                await scope(connection, Tenants(ids=("cus_ada",)))
                # The tables are too small to be worth an index.
                await connection.execute(text("SET LOCAL enable_seqscan = off"))
                before = (await connection.execute(_FETCHED)).scalar_one()
                answer = await exports.list_after(connection, wanted, place, limit)
                read.append((await connection.execute(_FETCHED)).scalar_one() - before)
                return answer

        together, _ = await page(None, 1_000)
        while not found or after is not None:
            rows, after = await page(after, 3)
            found += rows
    # The same in whatever pages: corrections come between the charges that they came between.
    assert found == together
    assert any(row.kind == "correction" for row in found[:-3])
    whole, *parts = read
    assert len(parts) > 5
    # Each page looks for corrections among its own movements, and not among all that come behind it.
    assert sum(parts) < 3 * whole


async def test_all_currencies_and_formats(reporting: ReportingServer, books: Books) -> None:
    operator = await reporting.caller("operator")
    for format in (pb.EXPORT_FORMAT_CSV, pb.EXPORT_FORMAT_PARQUET):
        for columns in (pb.EXPORT_COLUMNS_TALLYSTICK, pb.EXPORT_COLUMNS_FOCUS):
            request = pb.ExportTransactionsRequest(
                customer_id="cus_ada",
                format=format,
                columns=columns,
                period=period_pb2.Period(name="12m"),
            )
            content = b"".join([message.content async for message in operator.ExportTransactions(request)])
            if format == pb.EXPORT_FORMAT_PARQUET:
                assert content[:4] == content[-4:] == b"PAR1"
            else:
                charges = [one for one in books.charges if one.customer_id == "cus_ada"]
                assert {one.currency for one in charges} == {"USD", "EUR"}
                assert content.count(b"\r\n") > len(charges)


async def test_an_empty_export_has_its_columns(reporting: ReportingServer) -> None:
    stream = (await reporting.caller("owner/org_new")).ExportTransactions(pb.ExportTransactionsRequest())
    content = b"".join([message.content async for message in stream])
    assert content.startswith(b"type,charge_id,")
    assert content.count(b"\r\n") == 1


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ExportTransactionsRequest(format=9), "format"),  # type: ignore[arg-type]
        (pb.ExportTransactionsRequest(columns=9), "columns"),  # type: ignore[arg-type]
        (pb.ExportTransactionsRequest(currency_code="nothing"), "currency_code"),
        (pb.ExportTransactionsRequest(period=period_pb2.Period(name="x")), "period.name"),
    ],
)
async def test_malformed_requests_name_the_field(
    reporting: ReportingServer, request_: pb.ExportTransactionsRequest, field: str
) -> None:
    stream = (await reporting.caller(f"owner/{LARK}")).ExportTransactions(request_)
    refused = await refusal(anext(aiter(stream)))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
