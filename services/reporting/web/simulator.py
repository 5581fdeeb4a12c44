"""The page that tries prices: what versions of a book, and one made up on the page, make of the same runs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.routing import Route

from services.kit.errors import InvalidArgument, PermissionDenied
from services.reporting.web.backend import Answer, answers
from services.reporting.web.common import page_status
from services.reporting.web.prices import in_force
from services.reporting.web.site import Site, Subject, Visit
from services.reporting.web.words import explain
from tallystick.ledger.v1 import directory_service_pb2
from tallystick.metering.v1 import (
    price_book_pb2,
    pricing_service_pb2,
    rating_service_pb2,
    usage_pb2,
)

_BOOKS: Final = 1_000
_VERSIONS: Final = 20
# As many as a simulation takes, of which the trial is one.
_MOST_VERSIONS: Final = 7
# A page has seconds, not minutes: `tallystick simulate` takes more.
_MOST_RUNS: Final = 200_000
# The same draw each time, so that only what was changed makes a difference.
_SEED: Final = 1
_DECIMAL: Final = re.compile(r"\d{1,12}(\.\d{1,12})?", re.ASCII)
WORKLOADS: Final[Mapping[str, str]] = {
    "agent_runs": "agents at work on support tickets",
    "chat_requests": "requests of a chat service",
    "code_requests": "requests of a coding service",
}


class FieldError(Exception):
    """A field says something that cannot be; the message says what to write instead."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Part(NamedTuple):
    """A part of the trial price: its field, what it is called, and its size."""

    name: str
    label: str
    per_units: int


PARTS: Final = (
    Part("base", "Each run", 1),
    Part("input", "1,000,000 input tokens", 1_000_000),
    Part("output", "1,000,000 output tokens", 1_000_000),
    Part("bonus", "Each success", 1),
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the form says, as it was typed. Empty rates mean: as recorded."""

    workload: str = "agent_runs"
    runs: str = "10000"
    customers: str = "100"
    success: str = ""
    partial: str = ""
    base: str = ""
    input: str = ""
    output: str = ""
    bonus: str = ""
    versions: tuple[str, ...] = ()

    @classmethod
    def of(cls, query: QueryParams) -> "Wish":
        """What an address asks for."""
        fields = {
            name: query[name].strip()
            for name in (*cls.__dataclass_fields__,)
            if name != "versions" and name in query
        }
        return cls(**fields, versions=tuple(query.getlist("version")))

    def field(self, name: str) -> str:
        """What was typed in a field."""
        return str(getattr(self, name))


class SimulatorPage:
    """For who may see an organization's money: owners, billing admins, operators."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._backend = site.backend

    def routes(self) -> list[Route]:
        """For the application."""
        address = "/organizations/{organization_id}/simulator"
        return [Route(address, self._site.page(self._show), methods=["GET"])]

    async def _show(self, visit: Visit) -> Response:
        if not (visit.may_request_payouts or visit.is_operator):
            # As the simulation itself would say, which is not asked for while the form says nothing sensible.
            raise PermissionDenied("only who may see the money may try prices")
        organization_id = str(visit.request.path_params["organization_id"])
        found = await answers(
            organization=visit.asker.ask(
                self._backend.directory.GetOrganization,
                directory_service_pb2.GetOrganizationRequest(organization_id=organization_id),
            ),
            versions=self._versions(visit, organization_id),
        )
        organization = found["organization"]
        name = organization.value.organization.display_name if organization.ok else ""
        book, versions = found["versions"].value or (None, [])
        wish = Wish.of(visit.request.query_params)
        if not wish.versions and not visit.request.query_params and versions:
            now = in_force(versions, int(visit.now.timestamp()))
            wish = Wish(versions=(str((now or versions[0]).version_number),))
        problem = wrong = ""
        result = Answer(None)
        try:
            request = simulation(wish, versions, book.currency_code if book is not None else "USD")
        except FieldError as error:
            problem, wrong = str(error), error.name
        else:
            if request.books:
                result = await self._simulated(visit, request)
                if result.error is not None and isinstance(result.error, InvalidArgument):
                    problem = explain(result.error)
        return self._site.render(
            visit.request,
            "simulator.html",
            status=page_status(found),
            visit=visit,
            subject=Subject("organization", organization_id, name or organization_id),
            title="Simulator",
            book=book,
            versions=versions,
            wish=wish,
            parts=PARTS,
            workloads=WORKLOADS,
            problem=problem,
            wrong=wrong,
            result=result,
            read=found["versions"],
            bars_of=bars,
        )

    async def _versions(
        self, visit: Visit, organization_id: str
    ) -> tuple[price_book_pb2.PriceBook | None, Sequence[price_book_pb2.PriceVersion]]:
        """The organization's book, and its newest versions."""
        ask, pricing = visit.asker.ask, self._backend.pricing
        books = await ask(pricing.ListPriceBooks, pricing_service_pb2.ListPriceBooksRequest(page_size=_BOOKS))
        own = sorted(
            (one for one in books.price_books if one.organization_id == organization_id),
            key=lambda one: one.currency_code,
        )
        if not own:
            return None, []
        wanted = visit.request.query_params.get("currency", own[0].currency_code)
        book = next((one for one in own if one.currency_code == wanted), own[0])
        answer = await ask(
            pricing.ListPriceVersions,
            pricing_service_pb2.ListPriceVersionsRequest(
                price_book_id=book.price_book_id, page_size=_VERSIONS
            ),
        )
        return book, answer.price_versions

    async def _simulated(self, visit: Visit, request: rating_service_pb2.SimulateRequest) -> Answer:
        try:
            found = await answers(simulated=visit.asker.ask(self._backend.rating.Simulate, request))
        except InvalidArgument as error:
            # Says something of the form, and nothing of the page.
            return Answer(None, error)
        return found["simulated"]


def simulation(
    wish: Wish, versions: Sequence[price_book_pb2.PriceVersion], currency_code: str
) -> rating_service_pb2.SimulateRequest:
    """What to ask. Raises FieldError."""
    workload = rating_service_pb2.Workload(
        run_count=_number(wish, "runs", "How many runs", 1, _MOST_RUNS),
        customer_count=_number(wish, "customers", "How many customers", 1, 100_000),
        customer_skew=1_000,
        seed=_SEED,
    )
    if wish.workload not in WORKLOADS:
        raise FieldError("workload", "Choose one of the recorded workloads.")
    workload.recorded = wish.workload
    if wish.success or wish.partial:
        success, partial = _percent(wish, "success"), _percent(wish, "partial")
        if success + partial > 10_000:
            raise FieldError("partial", "Successes and partial successes are more than 100 % together.")
        workload.outcome_rates.success_basis_points = success
        workload.outcome_rates.partial_basis_points = partial
    return rating_service_pb2.SimulateRequest(
        books=[*_books(wish, versions), *_trial(wish, currency_code)], workload=workload
    )


def _books(
    wish: Wish, versions: Sequence[price_book_pb2.PriceVersion]
) -> Iterator[rating_service_pb2.SimulatedBook]:
    known = {str(one.version_number): one for one in versions}
    for number in dict.fromkeys(wish.versions[:_MOST_VERSIONS]):
        if number in known:
            yield rating_service_pb2.SimulatedBook(
                label=f"Version {number}", price_version_id=known[number].price_version_id
            )


def _trial(wish: Wish, currency_code: str) -> Iterator[rating_service_pb2.SimulatedBook]:
    """The price that was made up on the page, if there is anything in it."""
    components = [
        component for part in PARTS if wish.field(part.name) for component in [_component(wish, part)]
    ]
    if components:
        price = price_book_pb2.Price(name="trial", components=components)
        yield rating_service_pb2.SimulatedBook(
            label="Trial",
            price_list=rating_service_pb2.PriceList(currency_code=currency_code, prices=[price]),
        )


def _component(wish: Wish, part: Part) -> price_book_pb2.PriceComponent:
    amount = wish.field(part.name)
    if not _DECIMAL.fullmatch(amount):
        raise FieldError(part.name, "Write a price as a plain number, such as 0.05.")
    price = price_book_pb2.UnitPrice(amount=amount, per_units=part.per_units)
    component = price_book_pb2.PriceComponent(name=part.name)
    match part.name:
        case "base":
            component.base_fee.price.CopyFrom(price)
        case "bonus":
            component.outcome_bonus.outcome = usage_pb2.OUTCOME_SUCCESS
            component.outcome_bonus.price.CopyFrom(price)
        case _:
            kinds = {
                "input": price_book_pb2.TOKEN_KIND_INPUT,
                "output": price_book_pb2.TOKEN_KIND_OUTPUT,
            }
            component.token_rate.token_kind = kinds[part.name]
            component.token_rate.price.CopyFrom(price)
    return component


def _number(wish: Wish, name: str, label: str, least: int, most: int) -> int:
    text = wish.field(name).replace(",", "")
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise FieldError(name, f"{label}: a whole number from {least:,} to {most:,}.")
    return int(text)


def _percent(wish: Wish, name: str) -> int:
    """Basis points."""
    text = wish.field(name) or "0"
    match = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?", text)
    basis_points = int(match[1]) * 100 + int((match[2] or "").ljust(2, "0")) if match else 10_001
    if basis_points > 10_000:
        raise FieldError(name, "Write a percentage from 0 to 100, such as 81.5.")
    return basis_points


def bars(books: Sequence[rating_service_pb2.SimulatedRevenue]) -> list[tuple[Any, int]]:
    """Each book, and how long its bar is: a thousand for the one that earns most."""
    most = max((one.revenue.amount_micros for one in books), default=0)
    return [(one, one.revenue.amount_micros * 1_000 // most if most else 0) for one in books]
