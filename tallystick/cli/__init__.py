"""The command line `tallystick`. It is an extra: the client itself needs none of what it is made of."""

import sys
from collections.abc import Sequence

_EXTRA = ("typer", "rich", "cryptography", "yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, that of the process by default. Answers its exit status."""
    try:
        from tallystick.cli.app import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write("error: the command line is not installed; do: pip install 'tallystick[cli]'\n")
        return 1
    return run(argv)
