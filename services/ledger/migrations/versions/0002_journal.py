"""The journal: accounts, charges, entries, the sequence. The newest migration makes the functions.

Revision ID: 0002
Revises: 0001
"""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0002_journal_tables.sql")


def downgrade() -> None:
    raise RuntimeError("the journal is never dropped: restore a backup instead")
