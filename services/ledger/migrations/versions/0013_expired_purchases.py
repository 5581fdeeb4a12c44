"""Refunds of what had expired, promotions before payouts.

Revision ID: 0013
Revises: 0012
"""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0013_expired_purchases_tables.sql")


def downgrade() -> None:
    raise RuntimeError("what went back of purchases is never dropped: restore a backup instead")
