"""The functions that move money: a hold that expired does not end what a lease promised after it.

Revision ID: 0015
Revises: 0014
"""

from alembic import op

from services.ledger.migrations.functions import replace_functions

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    replace_functions(op)


def downgrade() -> None:
    raise RuntimeError("functions only ever go forward: install the version before, which brings its own")
