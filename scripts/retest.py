"""Run again, one at a time, the few tests that failed in the last run: `python -m scripts.retest`.

Many tests kill processes, cut connections and wait for what must follow, on more workers than there are
cores. Now and then one of them is starved. What fails alone, too, is broken; and so is everything when more
than a few failed, or when the run itself did not come to its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

_CACHE: Final = Path(".pytest_cache/v")
_TESTS_FAILED: Final = 1
_A_FEW: Final = 3


def main() -> int:
    if _cached("tallystick/exit_status") != _TESTS_FAILED:
        print("the last run passed, or did not come to its end: nothing is run again", file=sys.stderr)
        return 1
    failed = sorted(_cached("cache/lastfailed") or ())
    # A file that could not be collected has no "::".
    if not 0 < len(failed) <= _A_FEW or not all("::" in test for test in failed):
        print(
            f"{len(failed)} failed: nothing is run again, which is for 1 to {_A_FEW} tests", file=sys.stderr
        )
        return 1
    print("Beside others these failed, as is told above. Once more, alone:", *failed, sep="\n  ", flush=True)
    # Hypothesis begins with the example that failed.
    return subprocess.run([sys.executable, "-m", "pytest", *failed], check=False).returncode


def _cached(key: str) -> Any:
    """What the last run noted (tests/conftest.py, and pytest itself); None if nothing."""
    path = _CACHE / key
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    raise SystemExit(main())
