"""How long to wait before something is tried again."""

import random
from datetime import timedelta
from typing import Final

LONGEST: Final = timedelta(minutes=15)
_FIRST: Final = timedelta(seconds=1)


def backoff(failures: int, *, longest: timedelta = LONGEST) -> timedelta:
    """The pause after so many failures in a row: it doubles, up to `longest`.

    Half of it is chance, so that what failed together is not tried again together.
    """
    pause: timedelta = min(_FIRST * 2 ** min(failures, 20), longest)
    return pause * random.uniform(0.5, 1)  # noqa: S311 - not a secret
