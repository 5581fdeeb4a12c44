"""The tables of budgets, for ordinary queries. The migrations own their definition."""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY

from services.metering.store.tables import metadata

budget = Table(
    "budget",
    metadata,
    Column("budget_id", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("api_key_id", Text, nullable=False),
    Column("per_workflow", Boolean, nullable=False),
    Column("period", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("limit_micros", BigInteger, nullable=False),
    Column("hard", Boolean, nullable=False),
    Column("alert_thresholds", ARRAY(Integer), nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("update_time", DateTime(timezone=True), nullable=False),
    Column("delete_time", DateTime(timezone=True)),
    # Set by the database.
    Column("change_number", BigInteger, nullable=False),
)

budget_change = Table(
    "budget_change",
    metadata,
    Column("change_number", BigInteger, nullable=False),
)

budget_counter = Table(
    "budget_counter",
    metadata,
    Column("budget_id", Text, primary_key=True),
    Column("period_start", DateTime(timezone=True), primary_key=True),
    Column("workflow_id", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("spent", BigInteger, nullable=False),
)

budget_alert = Table(
    "budget_alert",
    metadata,
    Column("budget_id", Text, primary_key=True),
    Column("period_start", DateTime(timezone=True), primary_key=True),
    Column("workflow_id", Text, primary_key=True),
    Column("threshold", Integer, primary_key=True),
    Column("alert_number", BigInteger, nullable=False),
    Column("owner_id", Text, nullable=False),
    Column("currency_code", Text, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("limit_micros", BigInteger, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
)

budget_reservation = Table(
    "budget_reservation",
    metadata,
    Column("budget_id", Text, primary_key=True),
    Column("period_start", DateTime(timezone=True), primary_key=True),
    Column("workflow_id", Text, primary_key=True),
    Column("reservation_id", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("refused", Boolean, nullable=False),
    Column("expire_time", DateTime(timezone=True), nullable=False),
)
