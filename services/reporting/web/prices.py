"""Pages of price books: what work costs now, what it cost before, and what it will cost."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

from starlette.responses import Response
from starlette.routing import Route

from services.kit.errors import NotFound, PermissionDenied
from services.reporting.web import price_words
from services.reporting.web.backend import Answer, answers
from services.reporting.web.common import page_status
from services.reporting.web.site import Site, Subject, Visit
from tallystick.ledger.v1 import directory_service_pb2
from tallystick.metering.v1 import price_book_pb2, pricing_service_pb2

_BOOKS: Final = 1_000
_VERSIONS: Final = 20


class PricePages:
    """An organization's, for all its people, to whom they are no secret; the platform's, for operators."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._backend = site.backend

    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route(
                "/organizations/{organization_id}/prices",
                self._site.page(self._of_organization),
                methods=["GET"],
            ),
            Route("/operator/prices", self._site.page(self._of_platform), methods=["GET"]),
        ]

    async def _of_organization(self, visit: Visit) -> Response:
        organization_id = str(visit.request.path_params["organization_id"])
        found = await answers(
            organization=visit.asker.ask(
                self._backend.directory.GetOrganization,
                directory_service_pb2.GetOrganizationRequest(organization_id=organization_id),
            ),
            books=self._books(visit),
        )
        organization = found["organization"]
        name = organization.value.organization.display_name if organization.ok else ""
        subject = Subject("organization", organization_id, name or organization_id)
        return await self._page(visit, found, organization_id, subject)

    async def _of_platform(self, visit: Visit) -> Response:
        if not visit.is_operator:
            raise PermissionDenied("only operators see the platform's pages")
        found = await answers(books=self._books(visit))
        return await self._page(visit, found, "", None)

    async def _page(
        self, visit: Visit, found: Mapping[str, Answer], organization_id: str, subject: Subject | None
    ) -> Response:
        books = found["books"]
        own = _of(books, organization_id)
        book = _chosen(own, visit.currency() if "currency" in visit.request.query_params else "")
        read = books
        if book is not None:
            read = (await answers(versions=self._versions(visit, book.price_book_id)))["versions"]
        versions = list(read.value.price_versions) if book is not None and read.ok else []
        number = visit.request.query_params.get("version", "") if versions else ""
        now = in_force(versions, int(visit.now.timestamp()))
        version = _version(versions, number) if number else now or next(iter(versions), None)
        return self._site.render(
            visit.request,
            "prices.html",
            status=page_status(found),
            visit=visit,
            subject=subject,
            title="Prices",
            own=own,
            book=book,
            versions=versions,
            version=version,
            in_force=now,
            price_words=price_words,
            read=read,
        )

    def _books(self, visit: Visit) -> Awaitable[Any]:
        return visit.asker.ask(
            self._backend.pricing.ListPriceBooks, pricing_service_pb2.ListPriceBooksRequest(page_size=_BOOKS)
        )

    def _versions(self, visit: Visit, price_book_id: str) -> Awaitable[Any]:
        return visit.asker.ask(
            self._backend.pricing.ListPriceVersions,
            pricing_service_pb2.ListPriceVersionsRequest(
                price_book_id=price_book_id,
                page_size=_VERSIONS,
                page_token=visit.request.query_params.get("page", ""),
            ),
        )


def in_force(versions: Sequence[price_book_pb2.PriceVersion], now: int) -> price_book_pb2.PriceVersion | None:
    """The version that prices work that is done now (seconds since the epoch), of some, the newest first."""
    begun = [
        one
        for one in versions
        if one.state == price_book_pb2.PRICE_VERSION_STATE_PUBLISHED and one.effective_time.seconds <= now
    ]
    return max(begun, key=lambda one: one.effective_time.ToNanoseconds(), default=None)


def _of(books: Answer, organization_id: str) -> list[price_book_pb2.PriceBook]:
    if not books.ok:
        return []
    return sorted(
        (one for one in books.value.price_books if one.organization_id == organization_id),
        key=lambda one: one.currency_code,
    )


def _chosen(books: Sequence[price_book_pb2.PriceBook], currency: str) -> price_book_pb2.PriceBook | None:
    """The book in a currency; with none, the first. Raises NotFound if there is none in it."""
    if not currency:
        return next(iter(books), None)
    for one in books:
        if one.currency_code == currency:
            return one
    raise NotFound(f"there is no price book in {currency}", reason="PRICE_BOOK_NOT_FOUND")


def _version(versions: Sequence[price_book_pb2.PriceVersion], number: str) -> price_book_pb2.PriceVersion:
    for one in versions:
        if str(one.version_number) == number:
            return one
    raise NotFound("there is no such version", reason="PRICE_VERSION_NOT_FOUND")
