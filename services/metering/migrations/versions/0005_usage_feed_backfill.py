"""What was recorded before there was a feed of usage comes into it.

A transaction of its own: usage goes on being recorded while it runs, and is queued by then.
"""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0005_backfill.sql")
