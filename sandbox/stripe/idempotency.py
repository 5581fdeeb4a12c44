"""Idempotency keys as Stripe keeps them: the first answer, for a day, whatever it was."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from sandbox.stripe.clock import DAY, Clock
from sandbox.stripe.errors import key_in_use, key_reused
from sandbox.stripe.values import Answer

KEPT_SECONDS = DAY
MAX_LENGTH = 255


@dataclass
class _Kept:
    fingerprint: str
    created: int
    # None while the first call is still being worked on.
    answer: Answer | None = None


class IdempotencyKeys:
    """Keys are apart for every connected account, of which Stripe documents nothing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # In the order of their first use, so that those a day old are the first ones.
        self._kept: dict[tuple[str, str], _Kept] = {}

    def begin(self, scope: str, key: str, fingerprint: str) -> Answer | None:
        """The answer to replay, or None when the call is to be executed and then finished or forgotten.

        Raises:
            StripeError: 409 while the first call runs, 400 if it had other parameters.
        """
        self._prune()
        kept = self._kept.get((scope, key))
        if kept is None:
            self._kept[scope, key] = _Kept(fingerprint, self._clock.now())
            return None
        if kept.answer is None:
            raise key_in_use()
        if kept.fingerprint != fingerprint:
            raise key_reused()
        return kept.answer

    def finish(self, scope: str, key: str, answer: Answer) -> None:
        """Keep the answer: 500s too, since by then the call has been executed."""
        self._kept[scope, key].answer = answer

    def forget(self, scope: str, key: str) -> None:
        """The call was refused before it was executed; the key may be used again."""
        del self._kept[scope, key]

    def _prune(self) -> None:
        """Forget what is a day old, as Stripe does: such a key executes again. A call that runs is kept."""
        oldest = self._clock.now() - KEPT_SECONDS
        past = list(takewhile(lambda entry: entry[1].created <= oldest, self._kept.items()))
        for name, kept in past:
            if kept.answer is not None:
                del self._kept[name]

    def __len__(self) -> int:
        return len(self._kept)
