"""The seal: a Merkle log over the journal.

Revision ID: 0007
Revises: 0006
"""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0007_seal_tables.sql")


def downgrade() -> None:
    raise RuntimeError("the seal is never dropped: restore a backup instead")
