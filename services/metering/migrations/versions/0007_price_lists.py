"""Price versions have formulas of meters, and plans."""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0007_tables.sql")
