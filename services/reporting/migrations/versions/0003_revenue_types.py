"""Write-offs and settlements of promotions are revenue, below zero."""

from pathlib import Path

from alembic import op

from services.kit.migrations import execute_sql_file

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    execute_sql_file(op, _SQL / "0003_revenue_types.sql")


def downgrade() -> None:
    raise RuntimeError("projections are made again, not taken back: drop the schema and migrate")
