"""What a caller is told when the payment processor did not do what was asked of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from services.kit.errors import FailedPrecondition, TallystickError, Unavailable
from services.payouts.processor.errors import ProcessorError, Refused


@contextmanager
def processor_errors() -> Iterator[None]:
    """Translates what the payment processor's calls raise: PROCESSOR_REFUSED if it refused, else Unavailable.

    The log says more: an API key of ours that is not accepted is nothing that callers can mend.
    """
    try:
        yield
    except ProcessorError as error:
        raise _told(error) from error


def _told(error: ProcessorError) -> TallystickError:
    if not isinstance(error, Refused):
        return Unavailable("the payment processor did not do it now")
    metadata = {"processor_code": error.code or "refused"}
    if error.decline_code:
        metadata["decline_code"] = error.decline_code
    return FailedPrecondition(error.message, reason="PROCESSOR_REFUSED", metadata=metadata)
