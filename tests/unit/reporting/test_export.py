"""Exports as files."""

import asyncio
import csv
import io
import sys
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from services.kit.errors import InvalidArgument
from services.reporting.domain.export import PIECE_BYTES, ColumnSet, Format, pieces
from services.reporting.domain.export_columns import ExportRow, RowKind

FOCUS_COLUMNS = Path(__file__).with_name("focus_columns.csv")
CHARGE = ExportRow(
    kind=RowKind.CHARGE,
    charge_id="ch_1",
    correction_id="",
    customer_id="cus_acme",
    organization_id="org_lark",
    agent_id="agt_lark",
    agent_version="1.2.0",
    action_type="ticket.resolve",
    model="gpt-4o",
    input_tokens=1_000,
    output_tokens=20,
    outcome="success",
    workflow_id="run-1",
    component="base",
    ordinal=0,
    gross_micros=1_234_567,
    platform_fee_micros=123_456,
    processing_fee_micros=35_802,
    net_micros=1_075_309,
    currency_code="USD",
    occur_time=datetime(2026, 10, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    create_time=datetime(2026, 11, 1, 0, 0, 1, tzinfo=UTC),
    price_version_id="pv_1",
    transaction_id="txn_1",
)
CORRECTION = replace(
    CHARGE,
    kind=RowKind.CORRECTION,
    correction_id="refund-1",
    gross_micros=-500_000,
    platform_fee_micros=-50_000,
    processing_fee_micros=-14_500,
    net_micros=-435_500,
    occur_time=datetime(2026, 11, 5, tzinfo=UTC),
    create_time=datetime(2026, 11, 5, tzinfo=UTC),
    transaction_id="txn_2",
)
COLLECTION = replace(CHARGE, kind=RowKind.COLLECTION, gross_micros=0, transaction_id="txn_3")
# As a customer sees it, and before the usage was read.
BARE = replace(
    CHARGE,
    charge_id="ch_2",
    organization_id="",
    agent_id="",
    agent_version="",
    action_type="",
    model="",
    input_tokens=0,
    output_tokens=0,
    outcome="",
    platform_fee_micros=None,
    processing_fee_micros=None,
    net_micros=None,
    price_version_id="",
)
SETS = pytest.mark.parametrize("columns", ColumnSet)


async def stream(batches: Sequence[Sequence[ExportRow]]) -> AsyncIterator[Sequence[ExportRow]]:
    for batch in batches:
        yield batch


def written(form: Format, columns: ColumnSet, *batches: Sequence[ExportRow]) -> bytes:
    async def read() -> bytes:
        found = [piece async for piece in pieces(stream(batches), form, columns)]
        assert all(0 < len(piece) <= PIECE_BYTES for piece in found)
        return b"".join(found)

    return asyncio.run(read())


def as_csv(columns: ColumnSet, *batches: Sequence[ExportRow]) -> list[dict[str, str]]:
    text = written(Format.CSV, columns, *batches).decode()
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def as_table(columns: ColumnSet, *batches: Sequence[ExportRow]) -> Any:
    return parquet.read_table(pa.BufferReader(written(Format.PARQUET, columns, *batches)))


def test_a_row_reads_back_from_csv_as_it_was() -> None:
    rows = as_csv(ColumnSet.TALLYSTICK, [CHARGE], [CORRECTION])
    assert list(rows[0].items()) == [
        ("type", "charge"),
        ("charge_id", "ch_1"),
        ("correction_id", ""),
        ("customer_id", "cus_acme"),
        ("organization_id", "org_lark"),
        ("agent_id", "agt_lark"),
        ("agent_version", "1.2.0"),
        ("action_type", "ticket.resolve"),
        ("model", "gpt-4o"),
        ("input_tokens", "1000"),
        ("output_tokens", "20"),
        ("outcome", "success"),
        ("workflow_id", "run-1"),
        ("component", "base"),
        ("ordinal", "0"),
        ("gross", "1.234567"),
        ("platform_fee", "0.123456"),
        ("processing_fee", "0.035802"),
        ("net", "1.075309"),
        ("currency", "USD"),
        ("occur_time", "2026-10-31T23:59:59.999999+00:00"),
        ("create_time", "2026-11-01T00:00:01+00:00"),
        ("price_version_id", "pv_1"),
        ("transaction_id", "txn_1"),
        ("charge_kind", "usage"),
        ("service_start", ""),
        ("service_end", ""),
    ]
    assert (rows[1]["gross"], rows[1]["net"]) == ("-0.50", "-0.4355")


def test_the_same_row_reads_back_from_parquet_with_types() -> None:
    table = as_table(ColumnSet.TALLYSTICK, [CHARGE], [BARE])
    first, bare = table.to_pylist()
    assert first["gross"] == Decimal("1.234567")
    assert first["occur_time"] == CHARGE.occur_time
    assert (first["input_tokens"], first["ordinal"], first["type"]) == (1_000, 0, "charge")
    assert {name for name, value in bare.items() if value is None} == {
        "correction_id",
        "organization_id",
        "agent_id",
        "agent_version",
        "action_type",
        "model",
        "input_tokens",
        "output_tokens",
        "outcome",
        "platform_fee",
        "processing_fee",
        "net",
        "price_version_id",
        "service_start",
        "service_end",
    }
    assert table.schema.field("gross").type == pa.decimal128(19, 6)
    assert table.schema.field("create_time").type == pa.timestamp("us", tz="UTC")
    assert not table.schema.field("gross").nullable
    assert list(table.schema.names) == list(as_csv(ColumnSet.TALLYSTICK, [CHARGE])[0])


@SETS
def test_csv_and_parquet_say_the_same(columns: ColumnSet) -> None:
    batch = [CHARGE, CORRECTION, COLLECTION, BARE]
    table = as_table(columns, batch)
    for plain, typed in zip(as_csv(columns, batch), table.to_pylist(), strict=True):
        assert list(plain) == list(typed)
        for name, value in typed.items():
            match value:
                case None:
                    assert plain[name] == ""
                case Decimal():
                    assert Decimal(plain[name]) == value
                case datetime():
                    assert datetime.fromisoformat(plain[name]) == value
                case _:
                    assert plain[name] == str(value)


def test_the_columns_of_focus_are_those_of_the_specification_with_ours_behind() -> None:
    with FOCUS_COLUMNS.open(newline="") as file:
        specified = {row["column_id"]: row for row in csv.DictReader(file)}
    schema = as_table(ColumnSet.FOCUS, [CHARGE, CORRECTION, COLLECTION, BARE]).schema
    ours = [name for name in schema.names if name.startswith("x_")]
    theirs = schema.names[: len(schema.names) - len(ours)]
    assert schema.names == [*theirs, *ours]
    assert theirs == sorted(theirs)
    assert set(theirs) <= set(specified)
    types = {
        "Decimal": pa.decimal128(19, 6),
        "String": pa.string(),
        "Date/Time": pa.timestamp("us", tz="UTC"),
    }
    for name, column in specified.items():
        if column["feature_level"] == "Mandatory":
            assert name in theirs
        if name in theirs:
            assert schema.field(name).type == types[column["data_type"]]
            assert column["allows_nulls"] == "True" or not schema.field(name).nullable


def test_a_charge_in_focus_is_usage_billed_to_the_customer() -> None:
    row = as_csv(ColumnSet.FOCUS, [CHARGE])[0]
    assert {name: value for name, value in row.items() if not name.startswith("x_")} == {
        "BilledCost": "1.234567",
        "BillingAccountId": "cus_acme",
        "BillingAccountName": "",
        "BillingAccountType": "Customer",
        "BillingCurrency": "USD",
        # Posted in November, for work in October.
        "BillingPeriodEnd": "2026-12-01T00:00:00Z",
        "BillingPeriodStart": "2026-11-01T00:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargeDescription": "ticket.resolve",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": "2026-11-01T00:00:00Z",
        "ChargePeriodStart": "2026-10-31T23:00:00Z",
        "ConsumedQuantity": "1020",
        "ConsumedUnit": "Tokens",
        "ContractedCost": "1.234567",
        "EffectiveCost": "1.234567",
        "InvoiceIssuerName": "Tallystick",
        "ListCost": "1.234567",
        "PricingQuantity": "1",
        "PricingUnit": "Charges",
        "ProviderName": "Tallystick",
        "PublisherName": "org_lark",
        "ResourceId": "agt_lark",
        "ResourceType": "Agent",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "agt_lark",
        "ServiceSubcategory": "Bots",
    }
    assert (row["x_ChargeId"], row["x_Net"], row["x_PriceVersionId"]) == ("ch_1", "1.075309", "pv_1")


@pytest.mark.parametrize(
    ("charge_time", "expected"),
    [
        (datetime(2026, 10, 31, 23, 59, tzinfo=UTC), "Correction"),
        (datetime(2026, 11, 1, tzinfo=UTC), ""),
        (None, ""),
    ],
)
def test_only_a_correction_of_what_an_earlier_month_billed_is_one_in_the_words_of_focus(
    charge_time: datetime | None, expected: str
) -> None:
    rows = as_csv(
        ColumnSet.FOCUS, [replace(row, charge_time=charge_time) for row in (CORRECTION, COLLECTION, CHARGE)]
    )
    assert [row["ChargeClass"] for row in rows] == [expected, "", ""]
    assert [row["BilledCost"] for row in rows] == ["-0.50", "0.00", "1.234567"]
    assert rows[0]["ChargeDescription"] == "Correction of ticket.resolve"


@SETS
def test_tokens_and_charges_are_counted_once_per_event(columns: ColumnSet) -> None:
    outcome = replace(CHARGE, component="outcome", charge_id="ch_3")
    table = as_table(columns, [CHARGE, outcome, CORRECTION, COLLECTION])
    focus = columns is ColumnSet.FOCUS
    assert sum(table["x_InputTokens" if focus else "input_tokens"].drop_null().to_pylist()) == 1_000
    if focus:
        assert sum(table["ConsumedQuantity"].drop_null().to_pylist()) == 1_020
        # Two charges were posted.
        assert sum(table["PricingQuantity"].to_pylist()) == 2


@pytest.mark.parametrize("text", ["=1+1", "+1", "-cmd", "@sum", "\tx", "\rx"])
def test_no_id_that_a_host_chose_is_a_formula_in_a_spreadsheet(text: str) -> None:
    row = replace(CHARGE, workflow_id=text, model=text)
    plain = as_csv(ColumnSet.TALLYSTICK, [row])[0]
    assert (plain["workflow_id"], plain["model"]) == (f"'{text}", f"'{text}")
    focus = as_csv(ColumnSet.FOCUS, [replace(row, customer_id=text)])[0]
    assert (focus["BillingAccountId"], focus["x_Model"]) == (f"'{text}", f"'{text}")
    # Parquet is not opened by clicking on it, and has it as it is.
    assert as_table(ColumnSet.TALLYSTICK, [row])["workflow_id"].to_pylist() == [text]


def test_csv_is_that_of_the_rfc() -> None:
    odd = 'a,"b"\r\nc'
    text = written(Format.CSV, ColumnSet.TALLYSTICK, [replace(CHARGE, model=odd)]).decode()
    header, rest = text.split("\r\n", 1)
    assert header.startswith("type,charge_id,")
    assert '"a,""b""\r\nc"' in rest
    assert text.endswith("\r\n")


@pytest.mark.parametrize(
    ("currency", "micros", "text"),
    [
        ("USD", 0, "0.00"),
        ("USD", -1, "-0.000001"),
        ("USD", 2**63 - 1, "9223372036854.775807"),
        ("USD", -(2**63 - 1), "-9223372036854.775807"),
        ("JPY", 3_000_000, "3"),
        ("JPY", 3_500_000, "3.5"),
        ("KWD", 1_500_000, "1.500"),
    ],
)
def test_amounts_are_exact_to_the_last_micro(currency: str, micros: int, text: str) -> None:
    row = replace(CHARGE, gross_micros=micros, currency_code=currency)
    assert as_csv(ColumnSet.TALLYSTICK, [row])[0]["gross"] == text
    assert as_table(ColumnSet.TALLYSTICK, [row])["gross"].to_pylist() == [Decimal(micros).scaleb(-6)]


@SETS
def test_a_file_without_rows_has_its_columns(columns: ColumnSet) -> None:
    assert as_csv(columns) == as_csv(columns, []) == []
    empty = as_table(columns)
    assert empty.num_rows == as_table(columns, []).num_rows == 0
    assert written(Format.CSV, columns).decode() == ",".join(empty.schema.names) + "\r\n"


AMOUNTS = st.lists(st.lists(st.integers(-(10**15), 10**15), max_size=6), max_size=6)


@settings(max_examples=10)
@given(AMOUNTS)
def test_totals_equal_to_the_micro(amounts: list[list[int]]) -> None:
    batches = [
        [replace(CHARGE, gross_micros=micros, net_micros=-micros) for micros in batch] for batch in amounts
    ]
    total = sum(micros for batch in amounts for micros in batch)
    plain = sum((Decimal(row["gross"]) for row in as_csv(ColumnSet.TALLYSTICK, *batches)), Decimal(0))
    typed = as_table(ColumnSet.FOCUS, *batches)
    assert plain.scaleb(6) == total
    assert sum(typed["BilledCost"].to_pylist(), Decimal(0)).scaleb(6) == total
    assert sum(typed["x_Net"].to_pylist(), Decimal(0)).scaleb(6) == -total


def test_row_groups_are_bounded_whatever_the_batches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.reporting.domain.parquet.ROW_GROUP_ROWS", 100)
    data = written(Format.PARQUET, ColumnSet.TALLYSTICK, [CHARGE] * 205, [CHARGE] * 7)
    metadata = parquet.ParquetFile(pa.BufferReader(data)).metadata
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sizes == [100, 100, 12]


def test_the_parts_of_a_file_are_cut_into_pieces_that_a_message_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each of them is checked when they are read.
    monkeypatch.setattr("services.reporting.domain.export.PIECE_BYTES", 1_000)
    monkeypatch.setattr(f"{__name__}.PIECE_BYTES", 1_000)
    rows = [replace(CHARGE, ordinal=number) for number in range(20)]
    assert [row["x_Ordinal"] for row in as_csv(ColumnSet.FOCUS, rows)] == [
        str(number) for number in range(20)
    ]


async def test_whoever_stops_reading_a_file_leaves_nothing_open() -> None:
    for form in Format:
        file = pieces(stream([[CHARGE]] * 3), form, ColumnSet.TALLYSTICK)
        assert await anext(file)
        await file.aclose()
        assert [piece async for piece in file] == []


async def peaks(form: Format, batch_count: int) -> tuple[int, int]:
    """What Python held at most while so many batches were written, and Arrow."""

    async def batches() -> AsyncIterator[Sequence[ExportRow]]:
        for number in range(batch_count):
            yield [
                replace(CHARGE, charge_id=f"ch_{number}_{row}", gross_micros=number * row)
                for row in range(100)
            ]

    arrow = 0
    tracemalloc.start()
    try:
        async for _ in pieces(batches(), form, ColumnSet.TALLYSTICK):
            arrow = max(arrow, pa.total_allocated_bytes())
        return tracemalloc.get_traced_memory()[1], arrow
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", Format)
async def test_memory_does_not_grow_with_the_number_of_rows(
    form: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.reporting.domain.parquet.ROW_GROUP_ROWS", 200)
    await peaks(form, 1)
    (short_python, short_arrow), (long_python, long_arrow) = await peaks(form, 4), await peaks(form, 24)
    # The end of a Parquet file lists its groups, ten more here. The rows themselves would be half a megabyte.
    footer = 10 * 10_000 if form is Format.PARQUET else 0
    assert long_python < short_python * 1.3 + footer
    assert long_arrow <= short_arrow * 1.3


async def test_a_server_without_pyarrow_refuses_parquet_at_once_and_writes_csv(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "services.reporting.domain.parquet", raising=False)
    monkeypatch.delattr("services.reporting.domain.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidArgument) as caught:
        pieces(stream([]), Format.PARQUET, ColumnSet.TALLYSTICK)
    assert caught.value.field_violations[0].field == "format"
    assert [piece async for piece in pieces(stream([]), Format.CSV, ColumnSet.TALLYSTICK)]
