"""The functions that move money: the usual entries of all customers are allocated to lots at once.

Revision ID: 0014
Revises: 0013
"""

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing: the newest migration makes all functions."""


def downgrade() -> None:
    raise RuntimeError("functions only ever go forward: install the version before, which brings its own")
