"""The feed of usage: its queue, its log, its positions."""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0004_tables.sql")
