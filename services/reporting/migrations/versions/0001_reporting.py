"""Projections of the journal and of usage."""

from pathlib import Path
from typing import Final

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"
_FILES: Final = ("0001_tables", "0001_functions", "0001_charge_identities")


def upgrade() -> None:
    for name in _FILES:
        execute_sql_file(op, _SQL / f"{name}.sql")


def downgrade() -> None:
    raise RuntimeError("projections are made again, not taken back: drop the schema and migrate")
