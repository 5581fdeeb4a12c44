"""The tables of the directory, for ordinary queries. The migrations own their definition."""

from sqlalchemy import BigInteger, Column, DateTime, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY

metadata = MetaData(schema="ledger")

organization = Table(
    "organization",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("request_hash", LargeBinary, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("payouts_freeze_reason", Text, nullable=False),
    Column("payouts_freeze_time", DateTime(timezone=True)),
)

revenue_share_agreement = Table(
    "revenue_share_agreement",
    metadata,
    Column("organization_id", Text, primary_key=True),
    Column("effective_time", DateTime(timezone=True), primary_key=True),
    Column("platform_fee_bps", Integer, nullable=False),
    Column("processing_fee_bps", Integer, nullable=False),
    Column("settlement_hold_days", Integer, nullable=False),
    Column("dispute_window_days", Integer, nullable=False),
    Column("agreement_id", Text, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    # An INSERT would answer the key, and psycopg has no datetime for its -infinity.
    implicit_returning=False,
)

customer = Table(
    "customer",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("request_hash", LargeBinary, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("freeze_reason", Text, nullable=False),
    Column("freeze_time", DateTime(timezone=True)),
)

agent = Table(
    "agent",
    metadata,
    Column("agent_id", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("request_hash", LargeBinary, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
)

agent_version = Table(
    "agent_version",
    metadata,
    Column("agent_id", Text, primary_key=True),
    Column("agent_version", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
)

member = Table(
    "member",
    metadata,
    Column("member_id", Text, primary_key=True),
    Column("organization_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("request_hash", LargeBinary, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("delete_time", DateTime(timezone=True)),
)

api_key = Table(
    "api_key",
    metadata,
    Column("api_key_id", Text, primary_key=True),
    Column("key_hash", LargeBinary, nullable=False),
    Column("visible_prefix", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("organization_id", Text),
    Column("customer_id", Text),
    Column("member_id", Text),
    Column("agent_ids", ARRAY(Text), nullable=False),
    Column("customer_ids", ARRAY(Text), nullable=False),
    Column("description", Text, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("expire_time", DateTime(timezone=True)),
    Column("revoke_time", DateTime(timezone=True)),
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

# A view over the journal's accounts: only limits above zero.
credit_limit = Table(
    "credit_limit",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("currency_code", Text, primary_key=True),
    Column("limit_micros", BigInteger, nullable=False),
    info={"is_view": True},
)
