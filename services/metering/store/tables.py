"""The tables of schema `metering`, for ordinary queries. The migrations own their definition."""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(schema="metering")

price_book = Table(
    "price_book",
    metadata,
    Column("price_book_id", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("version_count", Integer, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("for_contracts", Boolean, nullable=False),
)

price_version = Table(
    "price_version",
    metadata,
    Column("price_version_id", Text, primary_key=True),
    Column("price_book_id", Text, nullable=False),
    Column("owner_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("version_number", Integer, nullable=False),
    Column("prices", JSONB, nullable=False),
    Column("meters", JSONB, nullable=False),
    Column("plans", JSONB, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("effective_time", DateTime(timezone=True)),
    Column("publish_time", DateTime(timezone=True)),
    Column("publisher_api_key_id", Text),
    Column("creator_api_key_id", Text, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("owner_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_hash", LargeBinary, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
)

price_counter = Table(
    "price_counter",
    metadata,
    Column("counter_id", LargeBinary, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("period_start", DateTime(timezone=True), nullable=False),
    Column("name", Text, nullable=False),
    Column("value", BigInteger),
)

# A view: usage events with their deferred outcomes, and what of each is pending.
recorded_usage = Table(
    "recorded_usage",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("workflow_id", Text, primary_key=True),
    Column("ordinal", Integer, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("occur_time", DateTime(timezone=True), nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("evidence_ref", Text, nullable=False),
    Column("evidence_hash", LargeBinary, nullable=False),
    Column("price_version_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("amount_micros", BigInteger, nullable=False),
    Column("lines", JSONB, nullable=False),
    Column("reservation_id", Text),
    Column("lease_epoch", BigInteger),
    Column("reserved_micros", BigInteger),
    Column("reservation_expire_time", DateTime(timezone=True)),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("contract_terms", JSONB),
    Column("period_start", DateTime(timezone=True)),
    Column("opening", JSONB),
    Column("closing", JSONB),
    Column("outcome_id", Text),
    Column("api_key_id", Text),
    Column("expired_outcome", Text),
    Column("outcome_expire_time", DateTime(timezone=True)),
    Column("bonuses", JSONB),
    Column("max_bonus_micros", BigInteger),
    Column("outcome_state", Text),
    Column("outcome", Text),
    Column("resolve_time", DateTime(timezone=True)),
    Column("outcome_evidence_ref", Text),
    Column("outcome_evidence_hash", LargeBinary),
    Column("outcome_result", LargeBinary),
    Column("outcome_opening", JSONB),
    Column("outcome_closing", JSONB),
    Column("pending", Boolean, nullable=False),
    Column("outcome_pending", Boolean, nullable=False),
)
