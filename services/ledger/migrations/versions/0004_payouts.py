"""Payouts: what they take from organizations' earnings.

Revision ID: 0004
Revises: 0003
"""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0004_payouts_tables.sql")


def downgrade() -> None:
    raise RuntimeError("the payouts are never dropped: restore a backup instead")
