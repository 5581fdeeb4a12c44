"""What a call to Stripe can end in, sorted by what may be done next.

ProcessorError
├── Refused        certainly not done, and it never will be: do something else
├── InDoubt        perhaps done: the same call again, with the same key and body
├── Throttled      not done: the same call again, later
├── KeyRefused     not done: our API key is not accepted; an operator must act, then the same call again
└── KeyConflict    our idempotency key went with another body before: an operator must look
"""

from datetime import timedelta
from typing import Final

import stripe


class ProcessorError(Exception):
    """Base of all. `code` is Stripe's, "" if it gave none; the message is safe to show to its tenant.

    `payment_intent_id` is the payment that was made and then declined, "" if there is none.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        decline_code: str = "",
        status: int = 0,
        payment_intent_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.decline_code = decline_code
        self.status = status
        self.payment_intent_id = payment_intent_id


class Refused(ProcessorError):
    """Stripe answered that it does not do this."""

    @property
    def is_missing(self) -> bool:
        """Whether there is no such object, or it is not ours."""
        return self.status == 404 or self.code in ("resource_missing", "account_invalid")


class InDoubt(ProcessorError):
    """No answer, a 5xx, or another call with the same key under way."""


class Throttled(ProcessorError):
    """429: too many calls, or an object that another call has locked."""

    # How long nobody calls now.
    pause: timedelta = timedelta(0)


class KeyRefused(ProcessorError):
    """401 or 403: the API key is revoked, or may not do this."""

    @property
    def is_account_gone(self) -> bool:
        """Whether it is the connected account that is not, or no longer, ours to act for."""
        return self.code == "account_invalid"


class KeyConflict(ProcessorError):
    """The idempotency key was used for another request."""


_LONGEST_MESSAGE: Final = 500
_CERTAIN: Final = frozenset({400, 402, 404})


def translate(error: stripe.StripeError) -> ProcessorError:
    """What Stripe's library raised, as one of the above."""
    status = error.http_status or 0
    said = error.error
    # Of a 409 and a 429 the library leaves `code` empty; the body has it.
    code = (error.code or (said.code if said is not None else None)) or ""
    decline_code = (said.decline_code if said is not None else None) or ""
    message = (error.user_message or str(error) or type(error).__name__)[:_LONGEST_MESSAGE]
    intent = said.payment_intent if said is not None else None
    return _kind(error, status)(
        message,
        code=code,
        decline_code=decline_code,
        status=status,
        payment_intent_id="" if intent is None else intent.id,
    )


def _kind(error: stripe.StripeError, status: int) -> type[ProcessorError]:
    # By type first: its status is 400 too, but it says nothing of whether the first request was carried out.
    if isinstance(error, stripe.IdempotencyError) or _type(error) == "idempotency_error":
        return InDoubt if status == 409 else KeyConflict
    if status in (401, 403):
        return KeyRefused
    if status == 429:
        return Throttled
    # Whatever is not certainly refused may have been done.
    return Refused if status in _CERTAIN else InDoubt


def _type(error: stripe.StripeError) -> str:
    return (error.error.type if error.error is not None else None) or ""
