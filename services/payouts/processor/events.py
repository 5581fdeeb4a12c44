"""The payment processor's list of events, of the last 30 days."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

from services.payouts.processor.api import StripeApi


class Events:
    """What payouts does with the list of events. Every method may raise ProcessorError."""

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self._service = api.client.v1.events

    async def since(self, start: datetime, stripe_account_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """Every event made at `start` or later, the newest first, as decoded JSON; "" for the platform's own.

        Of all types: at most 20 can be named, and without patterns, which is fewer than we handle.
        """
        pages = self._api.pages(
            "events.list",
            self._service.list_async,
            params={"created": {"gte": int(start.timestamp())}},
            account=stripe_account_id,
        )
        async for found in pages:
            yield found.to_dict()
