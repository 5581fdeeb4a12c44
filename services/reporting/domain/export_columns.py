"""What a row of an export is about, and Tallystick's own columns for it.

docs/reporting-exports.md says what each column means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Final

from services.kit.runs import ChargeKind, ServicePeriod, kind_of, service_period


class RowKind(StrEnum):
    """What happened."""

    # Work was charged.
    CHARGE = "charge"
    # What had been charged before, and nobody had paid or owed, was earned.
    COLLECTION = "collection"
    # What had been charged was taken back.
    CORRECTION = "correction"
    # What had been earned and not collected will not be paid.
    WRITE_OFF = "write_off"
    # What an organization's own promotional credits had paid, and it does not earn.
    PROMOTION_SETTLEMENT = "promotion_settlement"


@dataclass(frozen=True, slots=True)
class ExportRow:
    """A charge, or what was done to one, as one payee or as the customer sees it.

    A correction's amounts are negative, and what describes the work is that of its charge. "" is for what is
    not known or not for the reader's eyes, None for amounts that are not. Times are UTC.
    """

    kind: RowKind
    charge_id: str
    correction_id: str
    customer_id: str
    organization_id: str
    agent_id: str
    agent_version: str
    action_type: str
    model: str
    input_tokens: int
    output_tokens: int
    outcome: str
    workflow_id: str
    # "base" or "outcome".
    component: str
    ordinal: int
    gross_micros: int
    platform_fee_micros: int | None
    processing_fee_micros: int | None
    net_micros: int | None
    currency_code: str
    # When the work was done, or what was charged was collected or corrected; and when that was posted.
    occur_time: datetime
    create_time: datetime
    price_version_id: str
    transaction_id: str
    # When the charge was posted that this is about; None if it is this row, or if that is not known.
    charge_time: datetime | None = None
    # When what the charge is for happened, whatever this row says of it; as for the row if that is not known.
    work_time: datetime | None = None

    @property
    def charge_kind(self) -> ChargeKind:
        """What the charge is for."""
        return kind_of(self.workflow_id)

    @property
    def service(self) -> ServicePeriod | None:
        """The period that a fee, or a closing, is for; None for work."""
        return service_period(self.workflow_id, self.work_time or self.occur_time)

    @property
    def counts_usage(self) -> bool:
        """Whether the tokens of the event are counted here: on one row of it only, so that columns add up."""
        return self.kind is RowKind.CHARGE and self.component == "base"


class ColumnType(Enum):
    """What the values of a column are, and so how they are written."""

    TEXT = "text"
    INTEGER = "integer"
    # Micros of the row's currency, written as units.
    MONEY = "money"
    # An integer, written as a decimal.
    QUANTITY = "quantity"
    TIME = "time"
    # A time in whole seconds.
    SECOND = "second"


Value = str | int | datetime | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an export. A text that is not known may be "": it is written as nothing."""

    name: str
    type: ColumnType
    value: Callable[[ExportRow], Value]
    required: bool = False


def input_tokens(row: ExportRow) -> int | None:
    """Tokens sent to models, where they are counted and known."""
    return (row.input_tokens or None) if row.counts_usage else None


def service_start(row: ExportRow) -> datetime | None:
    """When the service period begins that a fee, or a closing, is for."""
    return None if row.service is None else row.service.start


def service_end(row: ExportRow) -> datetime | None:
    """When it ends, exclusive."""
    return None if row.service is None else row.service.end


def output_tokens(row: ExportRow) -> int | None:
    """Tokens that models produced, where they are counted and known."""
    return (row.output_tokens or None) if row.counts_usage else None


TALLYSTICK: Final = (
    Column("type", ColumnType.TEXT, lambda row: row.kind, required=True),
    Column("charge_id", ColumnType.TEXT, lambda row: row.charge_id, required=True),
    Column("correction_id", ColumnType.TEXT, lambda row: row.correction_id),
    Column("customer_id", ColumnType.TEXT, lambda row: row.customer_id, required=True),
    Column("organization_id", ColumnType.TEXT, lambda row: row.organization_id),
    Column("agent_id", ColumnType.TEXT, lambda row: row.agent_id),
    Column("agent_version", ColumnType.TEXT, lambda row: row.agent_version),
    Column("action_type", ColumnType.TEXT, lambda row: row.action_type),
    Column("model", ColumnType.TEXT, lambda row: row.model),
    Column("input_tokens", ColumnType.INTEGER, input_tokens),
    Column("output_tokens", ColumnType.INTEGER, output_tokens),
    Column("outcome", ColumnType.TEXT, lambda row: row.outcome),
    Column("workflow_id", ColumnType.TEXT, lambda row: row.workflow_id, required=True),
    Column("component", ColumnType.TEXT, lambda row: row.component, required=True),
    Column("ordinal", ColumnType.INTEGER, lambda row: row.ordinal, required=True),
    Column("gross", ColumnType.MONEY, lambda row: row.gross_micros, required=True),
    Column("platform_fee", ColumnType.MONEY, lambda row: row.platform_fee_micros),
    Column("processing_fee", ColumnType.MONEY, lambda row: row.processing_fee_micros),
    Column("net", ColumnType.MONEY, lambda row: row.net_micros),
    Column("currency", ColumnType.TEXT, lambda row: row.currency_code, required=True),
    Column("occur_time", ColumnType.TIME, lambda row: row.occur_time, required=True),
    Column("create_time", ColumnType.TIME, lambda row: row.create_time, required=True),
    Column("price_version_id", ColumnType.TEXT, lambda row: row.price_version_id),
    Column("transaction_id", ColumnType.TEXT, lambda row: row.transaction_id, required=True),
    Column("charge_kind", ColumnType.TEXT, lambda row: row.charge_kind, required=True),
    Column("service_start", ColumnType.TIME, service_start),
    Column("service_end", ColumnType.TIME, service_end),
)
