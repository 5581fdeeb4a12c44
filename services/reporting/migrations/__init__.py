"""The schema `reporting`."""

from pathlib import Path

from services.kit import migrations


def migrate(url: str) -> None:
    """Bring the schema of the database at `url` up to date.

    Blocking; safe when several replicas start at once.
    """
    migrations.migrate(url, schema="reporting", script_dir=Path(__file__).parent)
