"""The functions of the hot path, made anew: usage is recorded in fewer steps."""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "functions.sql")
