"""Contracts with customers."""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0009_contracts_tables.sql")
