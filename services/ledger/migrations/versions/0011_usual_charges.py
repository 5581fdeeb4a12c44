"""The functions that move money, with a short way for the usual batch of charges.

They are functions only, and those the newest migration makes.

Revision ID: 0011
Revises: 0010
"""

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    raise RuntimeError("functions only ever go forward: install the version before, which brings its own")
