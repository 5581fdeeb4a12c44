"""The tables of subscriptions, for ordinary queries. The migrations own their definition."""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, LargeBinary, Table, Text

from services.metering.store.tables import metadata

subscription = Table(
    "subscription",
    metadata,
    Column("subscription_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("start_time", DateTime(timezone=True), nullable=False),
    Column("renew_time", DateTime(timezone=True), nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("segment_count", Integer, nullable=False),
    Column("fee_total", Integer, nullable=False),
)

subscription_segment = Table(
    "subscription_segment",
    metadata,
    Column("subscription_id", Text, primary_key=True),
    Column("segment_number", Integer, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("start_time", DateTime(timezone=True), nullable=False),
    Column("billing_period", LargeBinary, nullable=False),
    Column("content", LargeBinary),
    Column("api_key_id", Text, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("change_number", BigInteger, nullable=False),
)

subscription_change = Table(
    "subscription_change",
    metadata,
    Column("change_number", BigInteger, nullable=False),
)

subscription_fee = Table(
    "subscription_fee",
    metadata,
    Column("subscription_id", Text, primary_key=True),
    Column("fee_number", Integer, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("price_version_id", Text, nullable=False),
    Column("workflow_id", Text, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("occur_time", DateTime(timezone=True), nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("next_attempt_time", DateTime(timezone=True)),
    Column("attempt_count", Integer, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("refused", Boolean, nullable=False),
)
