"""Credit lots: which grant paid for what, and what expires.

Revision ID: 0008
Revises: 0007
"""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0008_lots_tables.sql")


def downgrade() -> None:
    raise RuntimeError("the lots are never dropped: restore a backup instead")
