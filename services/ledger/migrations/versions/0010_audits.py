"""Audits: what each found, and how far the one is that runs.

Revision ID: 0010
Revises: 0009
"""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0010_audit_tables.sql")


def downgrade() -> None:
    raise RuntimeError("what audits found is never dropped: restore a backup instead")
