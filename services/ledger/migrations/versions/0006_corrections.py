"""Corrections: what was taken back of charges.

Revision ID: 0006
Revises: 0005
"""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0006_corrections_tables.sql")


def downgrade() -> None:
    raise RuntimeError("the corrections are never dropped: restore a backup instead")
