"""Who made drafts, refused charges that are tried again, and short billing periods."""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0012_tables.sql")
