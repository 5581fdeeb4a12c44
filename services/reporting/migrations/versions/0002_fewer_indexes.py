"""Charges that wait for their usage in a table of their own, and fewer indexes."""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0002_fewer_indexes.sql")


def downgrade() -> None:
    raise RuntimeError("projections are made again, not taken back: drop the schema and migrate")
