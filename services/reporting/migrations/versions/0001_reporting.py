"""Projections of the journal and of usage."""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0001_tables.sql")


def downgrade() -> None:
    raise RuntimeError("projections are made again, not taken back: drop the schema and migrate")
