"""Counters of prices that depend on what a customer used before. Functions are made anew."""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0008_price_counters.sql")
    execute_sql_file(op, _SQL / "functions.sql")
