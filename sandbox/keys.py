"""`python -m sandbox.keys ROLE=FILE…`: API keys of the platform, as `create-key` of the ledger makes them.

One process makes them all: most of what a key costs is the start of a Python.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from services.ledger.create_key import CreateKeyConfig, create_key


def main(arguments: Sequence[str]) -> int:
    """Make each key in the database that DATABASE_URL names; its file must not exist yet.

    Exits with 1 and a message at the first that cannot be made.
    """
    database_url = os.environ["DATABASE_URL"]
    for argument in arguments:
        role, _, path = argument.partition("=")
        asyncio.run(create_key(CreateKeyConfig(database_url=database_url, role=role, out=Path(path))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
