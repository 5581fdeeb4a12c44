"""PricingService."""

import hashlib
from collections.abc import AsyncIterable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import grpc

from services.kit import ids
from services.kit.auth import Principal, Role, current_principal
from services.kit.clock import Clock
from services.kit.db import Database, retry_transaction
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PreconditionViolation,
)
from services.kit.money import check_currency
from services.kit.pages import Page
from services.kit.tenancy import scope, tenants_of
from services.kit.text import check_text
from services.metering.domain.price_book import (
    PLATFORM_OWNER,
    PriceBook,
    PriceList,
    PriceVersion,
    check_effective_time,
)
from services.metering.domain.price_checks import check_price_list
from services.metering.rpc.ledger import Ledger
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.prices import book_to_proto, price_list_from_proto, version_to_proto
from services.metering.store import price_books
from tallystick.metering.v1 import price_book_pb2, pricing_service_pb2_grpc
from tallystick.metering.v1 import pricing_service_pb2 as pb
from tallystick.prices import differences, document

_MAX_DISPLAY_NAME: Final = 200
_MAX_KEY: Final = 128
# More than anybody reads, and few enough to travel.
_MAX_DIFFERENCES: Final = 10_000
# Half of what a message may hold where nobody raised gRPC's limit.
_MAX_PAGE_BYTES: Final = 2 * 1024 * 1024
_CREATE_PRICE_BOOK: Final = "/tallystick.metering.v1.PricingService/CreatePriceBook"

Context = grpc.aio.ServicerContext[Any, Any]


class PricingService(pricing_service_pb2_grpc.PricingServiceServicer):
    """Serves PricingService."""

    def __init__(
        self, *, writer: Database, reader: Database, ledger: Ledger, catalog: PriceCatalog, clock: Clock
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._ledger = ledger
        self._catalog = catalog
        self._clock = clock

    async def CreatePriceBook(
        self, request: pb.CreatePriceBookRequest, context: Context
    ) -> pb.CreatePriceBookResponse:
        principal = current_principal()
        owner_id = await self._owner(request.organization_id, principal)
        if request.for_contracts and not request.price_book_id:
            raise InvalidArgument.of("price_book_id", "must be chosen for a book that only contracts use")
        book = PriceBook(
            price_book_id=(
                _price_book_id(request.price_book_id)
                if request.price_book_id
                else ids.new_id(ids.PRICE_BOOK, clock=self._clock)
            ),
            owner_id=owner_id,
            currency_code=check_currency(request.currency_code),
            display_name=check_text(
                request.display_name, "display_name", shortest=0, longest=_MAX_DISPLAY_NAME
            ),
            create_time=self._clock.now(),
            for_contracts=request.for_contracts,
        )

        async def create() -> PriceBook:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                if await price_books.create_book(connection, book):
                    return book
                existing = await price_books.find_book(connection, book.price_book_id)
                if existing is None and not book.for_contracts:
                    existing = await price_books.find_book_of(connection, book.owner_id, book.currency_code)
                return _repeated(book, existing, id_chosen=bool(request.price_book_id))

        created = await retry_transaction(create, idempotent=True)
        return pb.CreatePriceBookResponse(price_book=book_to_proto(created))

    async def GetPriceBook(
        self, request: pb.GetPriceBookRequest, context: Context
    ) -> pb.GetPriceBookResponse:
        id_ = _price_book_id(request.price_book_id)
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            book = _found(await price_books.find_book(connection, id_), id_)
        return pb.GetPriceBookResponse(price_book=book_to_proto(book))

    async def ListPriceBooks(
        self, request: pb.ListPriceBooksRequest, context: Context
    ) -> pb.ListPriceBooksResponse:
        page = Page.parse(
            request.page_size, request.page_token, key_types=(str,), filter={"list": "price_books"}
        )
        after = "" if page.after is None else str(page.after[0])
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            rows = await price_books.list_books(connection, after=after, limit=page.limit)
        books, next_page_token = page.cut(rows, lambda book: (book.price_book_id,))
        return pb.ListPriceBooksResponse(
            price_books=map(book_to_proto, books), next_page_token=next_page_token
        )

    async def CreatePriceVersion(
        self, request: pb.CreatePriceVersionRequest, context: Context
    ) -> pb.CreatePriceVersionResponse:
        principal = current_principal()
        book_id = _price_book_id(request.price_book_id)
        key = check_text(request.idempotency_key, "idempotency_key", shortest=1, longest=_MAX_KEY)
        price_list = _checked(price_list_from_proto(request))
        request_hash = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()

        async def create() -> PriceVersion:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                book = _found(await price_books.find_book(connection, book_id), book_id)
                version_id = ids.new_id(ids.PRICE_VERSION, clock=self._clock)
                earlier = await price_books.claim_key(
                    connection, book.owner_id, key, request_hash, version_id
                )
                if earlier is not None:
                    earlier_hash, earlier_id = earlier
                    if earlier_hash != request_hash:
                        raise AlreadyExists(
                            "the idempotency key was used before with another request",
                            reason="IDEMPOTENCY_KEY_REUSED",
                            metadata={"key": key},
                        )
                    return _found_version(await price_books.find_version(connection, earlier_id), earlier_id)
                version = PriceVersion(
                    price_version_id=version_id,
                    price_book_id=book.price_book_id,
                    version_number=await price_books.next_version_number(connection, book.price_book_id),
                    prices=price_list.prices,
                    create_time=self._clock.now(),
                    meters=price_list.meters,
                    plans=price_list.plans,
                    creator_api_key_id=principal.api_key_id,
                )
                await price_books.create_version(connection, book, version)
                return version

        version = await retry_transaction(create, idempotent=True)
        return pb.CreatePriceVersionResponse(price_version=version_to_proto(version))

    async def UpdatePriceVersion(
        self, request: pb.UpdatePriceVersionRequest, context: Context
    ) -> pb.UpdatePriceVersionResponse:
        principal = current_principal()
        id_ = _price_version_id(request.price_version_id)
        price_list = _checked(price_list_from_proto(request))

        async def replace() -> PriceVersion:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                # Locked, so that it is not published between the look and the change.
                version = _found_version(await price_books.find_version(connection, id_, lock=True), id_)
                if version.is_published:
                    raise _already_published(id_)
                await price_books.set_price_list(connection, id_, price_list)
                return _found_version(await price_books.find_version(connection, id_), id_)

        version = await retry_transaction(replace, idempotent=True)
        return pb.UpdatePriceVersionResponse(price_version=version_to_proto(version))

    async def PublishPriceVersion(
        self, request: pb.PublishPriceVersionRequest, context: Context
    ) -> pb.PublishPriceVersionResponse:
        principal = current_principal()
        id_ = _price_version_id(request.price_version_id)
        wanted = _effective_time(request)

        async def publish() -> PriceVersion:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                version = _found_version(await price_books.find_version(connection, id_), id_)
                # The book first, then the version: two versions of a book are published one after the other,
                # so that each is compared with the one before it.
                await price_books.lock_book(connection, version.price_book_id)
                version = _found_version(await price_books.find_version(connection, id_, lock=True), id_)
                if version.is_published:
                    if wanted is not None and wanted != version.effective_time:
                        raise _already_published(id_)
                    return version
                now = self._clock.now()
                effective_time = wanted or now
                check_effective_time(
                    effective_time,
                    previous=await price_books.last_effective_time(connection, version.price_book_id),
                    now=now,
                )
                await price_books.publish(
                    connection,
                    id_,
                    effective_time=effective_time,
                    publish_time=now,
                    api_key_id=principal.api_key_id,
                )
                return _found_version(await price_books.find_version(connection, id_), id_)

        version = await retry_transaction(publish, idempotent=True)
        self._catalog.expire()
        return pb.PublishPriceVersionResponse(price_version=version_to_proto(version))

    async def PreviewPriceVersion(
        self, request: pb.PreviewPriceVersionRequest, context: Context
    ) -> pb.PreviewPriceVersionResponse:
        book_id = _price_book_id(request.price_book_id) if request.price_book_id else ""
        base_id = _price_version_id(request.base_price_version_id) if request.base_price_version_id else ""
        if base_id and not book_id:
            raise InvalidArgument.of("base_price_version_id", "must be empty without a book")
        if request.currency_code:
            check_currency(request.currency_code)
            if book_id:
                raise InvalidArgument.of("currency_code", "must be empty: the book has one")
        wanted = _effective_time(request)
        _checked(price_list_from_proto(request))
        base, previous = await self._compared_with(book_id, base_id) if book_id else (None, None)
        if wanted is not None:
            check_effective_time(wanted, previous=previous, now=self._clock.now())
        stored = price_book_pb2.PriceVersion() if base is None else version_to_proto(base)
        found = differences(
            document(stored.prices, stored.meters, stored.plans),
            document(request.prices, request.meters, request.plans),
        )
        response = pb.PreviewPriceVersionResponse(
            base_price_version_id=stored.price_version_id,
            base_version_number=stored.version_number,
            differences=[pb.PriceDifference(**one._asdict()) for one in found[:_MAX_DIFFERENCES]],
            difference_count=len(found),
        )
        if stored.HasField("effective_time"):
            response.base_effective_time.CopyFrom(stored.effective_time)
        return response

    async def GetPriceVersion(
        self, request: pb.GetPriceVersionRequest, context: Context
    ) -> pb.GetPriceVersionResponse:
        id_ = _price_version_id(request.price_version_id)
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            version = _found_version(await price_books.find_version(connection, id_), id_)
        return pb.GetPriceVersionResponse(price_version=version_to_proto(version))

    async def ListPriceVersions(
        self, request: pb.ListPriceVersionsRequest, context: Context
    ) -> pb.ListPriceVersionsResponse:
        id_ = _price_book_id(request.price_book_id)
        page = Page.parse(
            request.page_size, request.page_token, key_types=(int,), filter={"price_book_id": id_}
        )
        before = None if page.after is None else int(page.after[0])
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            _found(await price_books.find_book(connection, id_), id_)
            rows = price_books.list_versions(connection, id_, before=before, limit=page.limit)
            # Closed before the transaction that it reads in, though it may not have been read to its end.
            async with aclosing(rows):
                versions, is_too_large = await _read_page(rows)
        if is_too_large:
            page = replace(page, size=len(versions) - 1)
        versions, next_page_token = page.cut(versions, lambda version: (version.version_number,))
        return pb.ListPriceVersionsResponse(price_versions=versions, next_page_token=next_page_token)

    async def _compared_with(self, book_id: str, base_id: str) -> tuple[PriceVersion | None, datetime | None]:
        """The version that a preview is compared with, and when the last one of the book begins to apply."""
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            _found(await price_books.find_book(connection, book_id), book_id)
            last = await price_books.last_published(connection, book_id)
            base = last
            if base_id:
                base = _found_version(await price_books.find_version(connection, base_id), base_id)
                if base.price_book_id != book_id:
                    raise InvalidArgument.of("base_price_version_id", "must be a version of the book")
        return base, None if last is None else last.effective_time

    async def _owner(self, organization_id: str, principal: Principal) -> str:
        """Whose book it is to be.

        Raises if the caller may not create it, or if there is no such organization.
        """
        if not organization_id:
            if principal.role is not Role.OPERATOR:
                raise PermissionDenied(
                    "only operators may create the platform's own price books",
                    metadata={"role": principal.role, "method": _CREATE_PRICE_BOOK},
                )
            return PLATFORM_OWNER
        ids.check_id(organization_id, ids.ORGANIZATION, field="organization_id")
        if principal.organization_id not in (None, organization_id):
            # Another organization answers as one that does not exist.
            raise NotFound(
                f"organization {organization_id} does not exist",
                reason="ORGANIZATION_NOT_FOUND",
                metadata={"organization_id": organization_id},
            )
        await self._ledger.get_organization(organization_id)
        return organization_id


def _repeated(wanted: PriceBook, existing: PriceBook | None, *, id_chosen: bool) -> PriceBook:
    """The book that an equal request created before. Raises AlreadyExists if that was another one."""
    same = (
        existing is not None
        and (existing.owner_id, existing.currency_code, existing.display_name, existing.for_contracts)
        == (wanted.owner_id, wanted.currency_code, wanted.display_name, wanted.for_contracts)
        and (not id_chosen or existing.price_book_id == wanted.price_book_id)
    )
    if existing is not None and same:
        return existing
    resource_id = wanted.price_book_id if existing is None else existing.price_book_id
    raise AlreadyExists(
        f"price book {resource_id} exists with other content; an owner has one book per currency",
        metadata={"resource_id": resource_id},
    )


def _found(book: PriceBook | None, price_book_id: str) -> PriceBook:
    if book is None:
        raise NotFound(
            f"price book {price_book_id} does not exist",
            reason="PRICE_BOOK_NOT_FOUND",
            metadata={"price_book_id": price_book_id},
        )
    return book


def _found_version(version: PriceVersion | None, price_version_id: str) -> PriceVersion:
    if version is None:
        raise NotFound(
            f"price version {price_version_id} does not exist",
            reason="PRICE_VERSION_NOT_FOUND",
            metadata={"price_version_id": price_version_id},
        )
    return version


def _already_published(price_version_id: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"price version {price_version_id} is published and never changes; create a new one",
        reason="PRICE_VERSION_PUBLISHED",
        metadata={"price_version_id": price_version_id},
        precondition_violations=[
            PreconditionViolation("PRICE_VERSION_PUBLISHED", price_version_id, "must be a draft")
        ],
    )


async def _read_page(rows: AsyncIterable[PriceVersion]) -> tuple[list[price_book_pb2.PriceVersion], bool]:
    """The versions of a page and the one behind it, and whether the page ends there because of its size."""
    versions: list[price_book_pb2.PriceVersion] = []
    size = 0
    async for row in rows:
        version = version_to_proto(row)
        versions.append(version)
        size += version.ByteSize()
        # A page holds one version, however large it is.
        if size > _MAX_PAGE_BYTES and len(versions) > 1:
            return versions, True
    return versions, False


def _price_book_id(value: str) -> str:
    return ids.check_id(value, ids.PRICE_BOOK, field="price_book_id")


def _price_version_id(value: str) -> str:
    return ids.check_id(value, ids.PRICE_VERSION, field="price_version_id")


def _checked(price_list: PriceList) -> PriceList:
    check_price_list(price_list)
    return price_list


def _effective_time(
    request: pb.PublishPriceVersionRequest | pb.PreviewPriceVersionRequest,
) -> datetime | None:
    if not request.HasField("effective_time"):
        return None
    try:
        return request.effective_time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument.of("effective_time", "is not a valid time") from None
