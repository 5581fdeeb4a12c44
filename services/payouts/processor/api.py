"""One way to call Stripe: in its turn, once, with our key, and with errors that say what may be done next."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar, cast

import httpx
import stripe
from prometheus_client import Counter

from services.kit import log
from services.payouts.processor.errors import InDoubt, ProcessorError, Throttled, translate
from services.payouts.processor.pace import Pace

T = TypeVar("T")

_CALLS: Final = Counter("tallystick_processor_calls", "Calls to Stripe.", ["operation", "outcome"])
_PAGE: Final = 100
_log = log.get_logger()


class StripeApi:
    """A client of Stripe's API. Close it in the event loop that used it.

    The library retries nothing by itself (`max_network_retries=0`): what may be tried again, and when, is
    decided by who knows what the call is for.
    """

    def __init__(
        self, api_key: str, *, base_url: str | None, pace: Pace, timeout_seconds: float = 30.0
    ) -> None:
        self._http = stripe.HTTPXClient(timeout=httpx.Timeout(timeout_seconds))
        addresses = cast(Any, {} if base_url is None else {"api": base_url})
        self.client: Final = stripe.StripeClient(
            api_key, base_addresses=addresses, http_client=self._http, max_network_retries=0
        )
        self._pace = pace
        self.livemode: Final = "_live_" in api_key

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def call(
        self,
        operation: str,
        method: Callable[..., Awaitable[T]],
        *ids: str,
        params: Mapping[str, Any] | None = None,
        key: str = "",
        account: str = "",
        may_begin: Callable[[], bool] | None = None,
    ) -> T:
        """Call `method` of the library, such as `client.v1.transfers.create_async`, in its turn.

        `ids` are of the path; `key` is the idempotency key that every POST has; `account` is the connected
        account on whose behalf it is; `operation` names it in logs and metrics. `may_begin` is asked when its
        turn has come, which may be long after the caller has decided. Raises ProcessorError.
        """
        options: dict[str, str] = {}
        if key:
            options["idempotency_key"] = key
        if account:
            options["stripe_account"] = account
        await self._pace.turn()
        if may_begin is not None and not may_begin():
            raise InDoubt("its idempotency key grew too old before its turn came")
        try:
            answer = await method(*ids, params=params or {}, options=options)
        except stripe.StripeError as error:
            translated = translate(error)
            self._failed(operation, translated)
            raise translated from error
        except (httpx.HTTPError, OSError) as error:
            # The library wraps these; should one slip through, nobody knows what became of the call.
            doubt = InDoubt(type(error).__name__)
            self._failed(operation, doubt)
            raise doubt from error
        self._pace.answered()
        _CALLS.labels(operation, "ok").inc()
        return answer

    async def pages(
        self,
        operation: str,
        method: Callable[..., Awaitable[Any]],
        *ids: str,
        params: Mapping[str, Any] | None = None,
        account: str = "",
    ) -> AsyncIterator[Any]:
        """Every object of a list, the newest first, page by page. Raises ProcessorError."""
        asked = {**(params or {}), "limit": _PAGE}
        while True:
            page = await self.call(operation, method, *ids, params=asked, account=account)
            for found in page.data:
                yield found
            if not page.has_more:
                return
            asked["starting_after"] = page.data[-1].id

    def _failed(self, operation: str, error: ProcessorError) -> None:
        kind = type(error).__name__
        _CALLS.labels(operation, kind).inc()
        if isinstance(error, Throttled):
            error.pause = self._pace.throttled()
        else:
            self._pace.answered()
        _log.warning(
            "processor.failed",
            operation=operation,
            kind=kind,
            code=error.code,
            status=error.status,
        )


def metadata_of(found: Any) -> dict[str, str]:
    """The names that we, or somebody else, gave to an object of Stripe's."""
    return {} if found.metadata is None else dict(found.metadata.to_dict())
