"""Exports in the columns of FOCUS 1.2, the FinOps Open Cost and Usage Specification, with our own behind.

A row is seen with the eyes of who pays: the customer is the billing account. docs/reporting-exports.md has
the mapping with its reasons.
"""

from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from services.kit.runs import ChargeKind
from services.reporting.domain.export_columns import (
    TALLYSTICK,
    Column,
    ColumnType,
    ExportRow,
    RowKind,
    input_tokens,
    output_tokens,
    service_end,
    service_start,
)

# Who sells and invoices. A deployment is one platform, whose name nothing here knows.
_ISSUER: Final = "Tallystick"
_HOUR: Final = timedelta(hours=1)
_REMEMBERED_MONTHS: Final = 120
# What the columns of the specification say already.
_SAID: Final = frozenset({"currency", "customer_id", "gross"})


def _billed(row: ExportRow) -> int:
    return row.gross_micros


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _month(moment: datetime) -> datetime:
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


@lru_cache(_REMEMBERED_MONTHS)
def _next_month(month: datetime) -> datetime:
    return _month(month + timedelta(days=31))


def _charge_class(row: ExportRow) -> str | None:
    """A correction of what was billed in the same month is not one in the words of the specification."""
    if row.kind is not RowKind.CORRECTION or row.charge_time is None:
        return None
    return "Correction" if _month(row.charge_time) < _month(row.create_time) else None


def _is_fee(row: ExportRow) -> bool:
    return row.charge_kind is ChargeKind.SUBSCRIPTION


def _work(row: ExportRow) -> str:
    match row.charge_kind:
        case ChargeKind.SUBSCRIPTION:
            return "subscription fee"
        case ChargeKind.PERIOD_CLOSE:
            return "adjustment of a period close" if row.ordinal else "period close"
        case _:
            return row.action_type or "work"


def _description(row: ExportRow) -> str:
    what = _work(row)
    match row.kind:
        case RowKind.CORRECTION:
            return f"Correction of {what}"
        case RowKind.COLLECTION:
            return f"Collection of {what}"
        case RowKind.WRITE_OFF:
            return f"Write-off of {what}"
        case RowKind.PROMOTION_SETTLEMENT:
            return f"Own promotion for {what}"
        case _:
            return f"Outcome of {what}" if row.component == "outcome" else what


def _tokens(row: ExportRow) -> int | None:
    return (input_tokens(row) or 0) + (output_tokens(row) or 0) or None


def _custom_name(name: str) -> str:
    return "x_" + "".join(word.capitalize() for word in name.split("_"))


_SPECIFIED: Final = (
    Column("BilledCost", ColumnType.MONEY, _billed, required=True),
    Column("BillingAccountId", ColumnType.TEXT, lambda row: row.customer_id, required=True),
    Column("BillingAccountName", ColumnType.TEXT, lambda _: None),
    Column("BillingAccountType", ColumnType.TEXT, lambda _: "Customer", required=True),
    Column("BillingCurrency", ColumnType.TEXT, lambda row: row.currency_code, required=True),
    Column(
        "BillingPeriodEnd", ColumnType.SECOND, lambda row: _next_month(_month(row.create_time)), required=True
    ),
    Column("BillingPeriodStart", ColumnType.SECOND, lambda row: _month(row.create_time), required=True),
    Column(
        "ChargeCategory", ColumnType.TEXT, lambda row: "Purchase" if _is_fee(row) else "Usage", required=True
    ),
    Column("ChargeClass", ColumnType.TEXT, _charge_class),
    Column("ChargeDescription", ColumnType.TEXT, _description),
    Column(
        "ChargeFrequency",
        ColumnType.TEXT,
        lambda row: "Recurring" if _is_fee(row) else "Usage-Based",
        required=True,
    ),
    Column(
        "ChargePeriodEnd",
        ColumnType.SECOND,
        lambda row: service_end(row) or _hour(row.occur_time) + _HOUR,
        required=True,
    ),
    Column(
        "ChargePeriodStart",
        ColumnType.SECOND,
        lambda row: service_start(row) or _hour(row.occur_time),
        required=True,
    ),
    Column("ConsumedQuantity", ColumnType.QUANTITY, _tokens),
    Column("ConsumedUnit", ColumnType.TEXT, lambda row: "Tokens" if _tokens(row) else None),
    Column("ContractedCost", ColumnType.MONEY, _billed, required=True),
    Column("EffectiveCost", ColumnType.MONEY, _billed, required=True),
    Column("InvoiceIssuerName", ColumnType.TEXT, lambda _: _ISSUER, required=True),
    Column("ListCost", ColumnType.MONEY, _billed, required=True),
    Column(
        "PricingQuantity", ColumnType.QUANTITY, lambda row: int(row.kind is RowKind.CHARGE), required=True
    ),
    Column("PricingUnit", ColumnType.TEXT, lambda _: "Charges", required=True),
    Column("ProviderName", ColumnType.TEXT, lambda _: _ISSUER, required=True),
    Column("PublisherName", ColumnType.TEXT, lambda row: row.organization_id or _ISSUER, required=True),
    Column("ResourceId", ColumnType.TEXT, lambda row: row.agent_id),
    Column("ResourceType", ColumnType.TEXT, lambda row: "Agent" if row.agent_id else None),
    Column("ServiceCategory", ColumnType.TEXT, lambda _: "AI and Machine Learning", required=True),
    Column("ServiceName", ColumnType.TEXT, lambda row: row.agent_id or "AI agents", required=True),
    Column("ServiceSubcategory", ColumnType.TEXT, lambda _: "Bots", required=True),
)

FOCUS: Final = _SPECIFIED + tuple(
    Column(_custom_name(column.name), column.type, column.value, required=column.required)
    for column in TALLYSTICK
    if column.name not in _SAID
)
