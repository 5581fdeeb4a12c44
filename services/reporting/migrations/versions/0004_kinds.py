"""Fees of subscriptions and what closing a billing period charges are told apart from work."""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file
from services.reporting.migrations.functions import replace_functions

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0004_kinds.sql")
    replace_functions(op)
    # Where such charges were read before, they are in the sums of work: everything is read again.
    execute_sql_file(op, _SQL / "0004_rebuild.sql")


def downgrade() -> None:
    raise RuntimeError("projections are made again, not taken back: drop the schema and migrate")
