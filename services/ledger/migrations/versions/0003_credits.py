"""Credits that are set aside: leases, holds, released reservations.

Revision ID: 0003
Revises: 0002
"""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0003_credits_tables.sql")


def downgrade() -> None:
    raise RuntimeError("the credits are never dropped: restore a backup instead")
