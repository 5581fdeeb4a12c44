"""The functions, with one that reads the journal column by column.

Revision ID: 0012
Revises: 0011
"""

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing: the newest migration makes all functions."""


def downgrade() -> None:
    raise RuntimeError("functions only ever go forward: install the version before, which brings its own")
