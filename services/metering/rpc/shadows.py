"""Shadows: starting and stopping them, and what they found."""

import hashlib
from typing import Final

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.clock import Clock
from services.kit.db import Database, retry_transaction
from services.kit.errors import AlreadyExists, NotFound
from services.kit.messages import set_money
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, scope, scope_hot, tenants_of
from services.kit.text import check_text
from services.kit.times import set_timestamp
from services.metering.domain.price_book import PLATFORM_OWNER, PriceBook, PriceVersion
from services.metering.domain.shadow import MAX_RUNNING, Divergence, DivergenceKey, Shadow
from services.metering.rating_jobs import busy
from services.metering.store import price_books, shadows
from tallystick.metering.v1 import rating_service_pb2 as pb

_MAX_KEY: Final = 128


class Shadows:
    """Answers the RPCs about shadows."""

    def __init__(self, *, writer: Database, reader: Database, clock: Clock) -> None:
        self._writer = writer
        self._reader = reader
        self._clock = clock

    async def start(self, request: pb.StartShadowRequest) -> pb.StartShadowResponse:
        """Answer StartShadow."""
        principal = current_principal()
        version_id = ids.check_id(request.price_version_id, ids.PRICE_VERSION, field="price_version_id")
        key = check_text(request.idempotency_key, "idempotency_key", shortest=1, longest=_MAX_KEY)
        request_hash = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        version, book = await self._candidate(version_id)
        log_id, position = await self._head()

        async def create() -> str:
            shadow = Shadow(
                shadow_id=ids.new_id(ids.SHADOW, clock=self._clock),
                owner_id=book.owner_id,
                price_version_id=version_id,
                price_book_id=book.price_book_id,
                currency_code=book.currency_code,
                price_list=version.price_list,
                api_key_id=principal.api_key_id,
                create_time=self._clock.now(),
                stop_time=None,
                log_id=log_id,
                position=position,
            )
            async with self._writer.hot() as connection:
                await scope_hot(connection, tenants_of(principal))
                earlier = await shadows.claim_key(
                    connection, book.owner_id, f"shadow/{key}", request_hash, shadow.shadow_id
                )
                if earlier is not None:
                    earlier_hash, earlier_id = earlier
                    if earlier_hash != request_hash:
                        raise AlreadyExists(
                            "the idempotency key was used before with another request",
                            reason="IDEMPOTENCY_KEY_REUSED",
                            metadata={"key": key},
                        )
                    return earlier_id
                if await shadows.lock_running(connection, book.owner_id) >= MAX_RUNNING:
                    raise busy("shadows", MAX_RUNNING)
                await shadows.create(connection, shadow)
                return shadow.shadow_id

        shadow_id = await retry_transaction(create, idempotent=True)
        return pb.StartShadowResponse(shadow=await self._look(shadow_id))

    async def stop(self, request: pb.StopShadowRequest) -> pb.StopShadowResponse:
        """Answer StopShadow."""
        principal = current_principal()
        shadow_id = _shadow_id(request.shadow_id)

        async def stop() -> None:
            async with self._writer.hot() as connection:
                await scope_hot(connection, tenants_of(principal))
                _found(await shadows.find(connection, shadow_id), shadow_id)
                await shadows.stop(connection, shadow_id, self._clock.now())

        await retry_transaction(stop, idempotent=True)
        return pb.StopShadowResponse(shadow=await self._look(shadow_id))

    async def get(self, request: pb.GetShadowRequest) -> pb.GetShadowResponse:
        """Answer GetShadow."""
        return pb.GetShadowResponse(shadow=await self._look(_shadow_id(request.shadow_id)))

    async def list_shadows(self, request: pb.ListShadowsRequest) -> pb.ListShadowsResponse:
        """Answer ListShadows."""
        page = Page.parse(request.page_size, request.page_token, key_types=(str,), filter={"list": "shadows"})
        before = "" if page.after is None else str(page.after[0])
        async with self._reader.hot() as connection:
            await scope_hot(connection, tenants_of(current_principal()))
            rows = await shadows.list_shadows(connection, before=before, limit=page.limit)
            found, next_page_token = page.cut(rows, lambda one: (one.shadow_id,))
            sums = [await shadows.sums(connection, one.shadow_id) for one in found]
        head = await self._head()
        return pb.ListShadowsResponse(
            shadows=[_to_proto(one, sum_, head) for one, sum_ in zip(found, sums, strict=True)],
            next_page_token=next_page_token,
        )

    async def list_divergences(
        self, request: pb.ListShadowDivergencesRequest
    ) -> pb.ListShadowDivergencesResponse:
        """Answer ListShadowDivergences."""
        shadow_id = _shadow_id(request.shadow_id)
        if request.customer_id:
            ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str, str, str),
            filter={"shadow_id": shadow_id, "customer_id": request.customer_id},
        )
        after = ("", "", "") if page.after is None else tuple(map(str, page.after))
        async with self._reader.hot() as connection:
            await scope_hot(connection, tenants_of(current_principal()))
            shadow = _found(await shadows.find(connection, shadow_id), shadow_id)
            rows = await shadows.list_divergences(
                connection,
                shadow_id,
                request.customer_id,
                after=(after[0], after[1], after[2]),
                limit=page.limit,
            )
        found, next_page_token = page.cut(rows, lambda row: row[0][:3])
        return pb.ListShadowDivergencesResponse(
            divergences=[_divergence_to_proto(*one, shadow.currency_code) for one in found],
            next_page_token=next_page_token,
        )

    async def _look(self, shadow_id: str) -> pb.Shadow:
        async with self._reader.hot() as connection:
            await scope_hot(connection, tenants_of(current_principal()))
            shadow = _found(await shadows.find(connection, shadow_id), shadow_id)
            sums = await shadows.sums(connection, shadow_id)
        return _to_proto(shadow, sums, await self._head())

    async def _head(self) -> tuple[str, int]:
        # Only the platform sees the feed; a tenant is told nothing of it.
        async with self._reader.hot() as connection:
            await scope_hot(connection, PLATFORM)
            return await shadows.head(connection)

    async def _candidate(self, price_version_id: str) -> tuple[PriceVersion, PriceBook]:
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            version = await price_books.find_version(connection, price_version_id)
            book = None if version is None else await price_books.find_book(connection, version.price_book_id)
        if version is None or book is None:
            raise NotFound(
                f"price version {price_version_id} does not exist",
                reason="PRICE_VERSION_NOT_FOUND",
                metadata={"price_version_id": price_version_id},
            )
        return version, book


def _shadow_id(value: str) -> str:
    return ids.check_id(value, ids.SHADOW, field="shadow_id")


def _found(shadow: Shadow | None, shadow_id: str) -> Shadow:
    if shadow is None:
        raise NotFound(
            f"shadow {shadow_id} does not exist",
            reason="SHADOW_NOT_FOUND",
            metadata={"shadow_id": shadow_id},
        )
    return shadow


def _to_proto(shadow: Shadow, sums: Divergence, head: tuple[str, int]) -> pb.Shadow:
    log_id, last = head
    # How much happens on the whole platform is nobody else's business.
    follows = shadow.stop_time is None and log_id == shadow.log_id and current_principal().is_platform
    message = pb.Shadow(
        shadow_id=shadow.shadow_id,
        price_version_id=shadow.price_version_id,
        organization_id="" if shadow.owner_id == PLATFORM_OWNER else shadow.owner_id,
        currency_code=shadow.currency_code,
        state=pb.SHADOW_STATE_RUNNING if shadow.stop_time is None else pb.SHADOW_STATE_STOPPED,
        charge_count=sums.charge_count,
        unpriced_charge_count=sums.unpriced_charge_count,
        differing_charge_count=sums.differing_charge_count,
        lag=max(0, last - shadow.position) if follows else 0,
    )
    set_timestamp(message.create_time, shadow.create_time)
    if shadow.stop_time is not None:
        set_timestamp(message.stop_time, shadow.stop_time)
    set_money(message.charged, shadow.currency_code, sums.charged_micros)
    set_money(message.shadowed, shadow.currency_code, sums.shadowed_micros)
    return message


def _divergence_to_proto(key: DivergenceKey, one: Divergence, currency_code: str) -> pb.ShadowDivergence:
    message = pb.ShadowDivergence(
        customer_id=key.customer_id,
        organization_id=key.organization_id,
        agent_id=key.agent_id,
        agent_version=key.agent_version,
        charge_count=one.charge_count,
        unpriced_charge_count=one.unpriced_charge_count,
        differing_charge_count=one.differing_charge_count,
    )
    set_money(message.charged, currency_code, one.charged_micros)
    set_money(message.shadowed, currency_code, one.shadowed_micros)
    set_money(message.difference, currency_code, one.shadowed_micros - one.charged_micros)
    return message
