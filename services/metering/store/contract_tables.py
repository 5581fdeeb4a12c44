"""The tables of contracts, for ordinary queries. The migrations own their definition."""

from sqlalchemy import BigInteger, Column, DateTime, Integer, LargeBinary, Table, Text

from services.metering.store.tables import metadata

contract = Table(
    "contract",
    metadata,
    Column("contract_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("billing_period", LargeBinary),
    Column("start_time", DateTime(timezone=True), nullable=False),
    Column("end_time", DateTime(timezone=True), nullable=False),
    Column("version_count", Integer, nullable=False),
)

contract_version = Table(
    "contract_version",
    metadata,
    Column("contract_id", Text, primary_key=True),
    Column("version_number", Integer, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("organization_id", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("effective_time", DateTime(timezone=True), nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("api_key_id", Text, nullable=False),
    Column("change_number", BigInteger, nullable=False),
)

contract_change = Table(
    "contract_change",
    metadata,
    Column("change_number", BigInteger, nullable=False),
)
