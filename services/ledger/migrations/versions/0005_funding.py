"""Purchases that come back, processor fees, and who is frozen.

Revision ID: 0005
Revises: 0004
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
    execute_sql_file(op, _SQL / "0005_funding_tables.sql")


def downgrade() -> None:
    raise RuntimeError("what came back is never dropped: restore a backup instead")
