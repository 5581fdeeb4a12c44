"""The schema `payouts`."""

from pathlib import Path

from services.kit import migrations


def migrate(url: str) -> None:
    """Bring the schema of the database at `url` up to date.

    Blocking; safe when several replicas start at once.
    """
    migrations.migrate(url, schema="payouts", script_dir=Path(__file__).parent)
