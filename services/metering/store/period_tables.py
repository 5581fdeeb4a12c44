"""The tables of billing periods, for ordinary queries. The migrations own their definition."""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, LargeBinary, Table, Text

from services.metering.store.tables import metadata

counted_period = Table(
    "counted_period",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("organization_id", Text, primary_key=True),
    Column("currency_code", Text, primary_key=True),
    Column("period_start", DateTime(timezone=True), primary_key=True),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("next_check_time", DateTime(timezone=True)),
    Column("closing_count", Integer, nullable=False),
    Column("closed_micros", BigInteger, nullable=False),
)

period_closing = Table(
    "period_closing",
    metadata,
    Column("period_closing_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("period_start", DateTime(timezone=True), nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("price_version_id", Text, nullable=False),
    Column("workflow_id", Text, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("occur_time", DateTime(timezone=True), nullable=False),
    Column("from_credit_micros", BigInteger, nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("next_attempt_time", DateTime(timezone=True)),
    Column("attempt_count", Integer, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("refused", Boolean, nullable=False),
)
