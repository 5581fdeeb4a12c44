"""A hold that expired does not end what a lease promised beside it, unless it had taken that over.

Revision ID: 0015
Revises: 0014
"""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file
from services.ledger.migrations.functions import replace_functions

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0015_expired_holds_tables.sql")
    replace_functions(op)


def downgrade() -> None:
    raise RuntimeError("functions only ever go forward: install the version before, which brings its own")
