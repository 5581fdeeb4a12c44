"""The schema `ledger`."""

from pathlib import Path
from typing import Final

from services.kit import migrations

SCRIPTS: Final = Path(__file__).parent


def migrate(url: str) -> None:
    """Bring the schema of the database at `url` up to date.

    Blocking; safe when several replicas start at once.
    """
    migrations.migrate(url, schema="ledger", script_dir=SCRIPTS)
