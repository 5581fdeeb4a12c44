"""RatingService: what prices would come to."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import grpc

from services.kit import ids
from services.kit.auth import Principal, current_principal
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import FieldViolation, InvalidArgument, NotFound
from services.kit.money import check_currency
from services.kit.tenancy import scope, tenants_of
from services.kit.times import optional_time_from_proto, time_from_proto
from services.metering.domain.compiled_price import (
    NO_COMPILED_TERMS,
    CompiledPrice,
    CompiledTerms,
    Execution,
    compile_price_list,
)
from services.metering.domain.price_book import PLATFORM_OWNER
from services.metering.domain.price_checks import check_price_list
from services.metering.domain.rating import Counters, Rated, counter_names, rate, select
from services.metering.domain.usage_event import IDENTIFIER, MAX_TOKENS, Outcome, usage_violations
from services.metering.rating_jobs import RatingJobs
from services.metering.rpc.convert import (
    OUTCOMES_FROM_PROTO,
    line_to_proto,
    malformed_fields,
    money_to_proto,
    result_from_proto,
    usage_from_proto,
    within,
)
from services.metering.rpc.counter_reader import CounterReader
from services.metering.rpc.parties import Directory
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.prices import price_list_from_proto, price_list_to_proto
from services.metering.rpc.shadows import Shadows
from services.metering.rpc.simulations import MAX_BOOKS, check_simulation
from services.metering.rpc.terms import TermsFinder, Work
from services.metering.store import price_books
from tallystick.metering.v1 import rating_service_pb2 as pb
from tallystick.metering.v1 import rating_service_pb2_grpc, usage_pb2

_MAX_COUNTERS: Final = 1_000

Context = grpc.aio.ServicerContext[Any, Any]


class _Priced(NamedTuple):
    """The price that applies to a hypothetical run."""

    price: CompiledPrice
    price_version_id: str
    currency_code: str
    # What was agreed with the customer who would pay.
    terms: CompiledTerms = NO_COMPILED_TERMS
    # Where the customer's counters stand.
    stood: Counters = MappingProxyType({})


class _Listed(NamedTuple):
    """What prices say, and whose book they are of; both empty for those that came with a request."""

    prices: pb.PriceList
    price_book_id: str
    owner_id: str


class RatingService(rating_service_pb2_grpc.RatingServiceServicer):
    """Serves RatingService."""

    def __init__(
        self,
        *,
        reader: Database,
        directory: Directory,
        catalog: PriceCatalog,
        terms: TermsFinder,
        counters: CounterReader,
        jobs: RatingJobs,
        shadows: Shadows,
        database_url: str,
        clock: Clock,
    ) -> None:
        self._reader = reader
        self._directory = directory
        self._catalog = catalog
        self._terms = terms
        self._counters = counters
        self._jobs = jobs
        self._shadows = shadows
        self._database_url = database_url
        self._clock = clock

    async def Quote(self, request: pb.QuoteRequest, context: Context) -> pb.QuoteResponse:
        principal, now = current_principal(), self._clock.now()
        execution = _execution(request, now)
        _check_customer(request.customer_id, principal)
        given = _opening(request)
        priced = await self._priced(request, execution, principal, now)
        opening = {
            name: given.get(name, priced.stood.get(name, 0))
            for name in counter_names(priced.price, priced.terms)
        }
        rated = rate(priced.price, execution, priced.terms, opening)
        return _quoted(priced, rated, opening)

    async def Simulate(self, request: pb.SimulateRequest, context: Context) -> pb.SimulateResponse:
        principal = current_principal()
        versions = await self._give_price_lists(request, principal)
        check_simulation(request, self._clock.now())
        answer = b""
        async with aclosing(self._jobs.run("simulate", {}, request.SerializeToString())) as answers:
            async for message in answers:
                answer = message
        response = pb.SimulateResponse.FromString(answer)
        for book, price_version_id in zip(response.books, versions, strict=True):
            book.price_version_id = price_version_id
        return response

    async def Rerate(self, request: pb.RerateRequest, context: Context) -> AsyncIterator[pb.RerateResponse]:
        principal = current_principal()
        start_time = time_from_proto(request, "start_time")
        end_time = time_from_proto(request, "end_time")
        if end_time <= start_time:
            raise InvalidArgument.of("end_time", "must be after start_time")
        if request.customer_id:
            ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        if request.currency_code:
            check_currency(request.currency_code)
        organization_id = await self._rerated_organization(request.organization_id, principal)
        other = await self._other_prices(request, principal)
        content, currency_code = b"", request.currency_code
        if other is not None:
            if currency_code not in ("", other.prices.currency_code):
                raise InvalidArgument.of("currency_code", "must be that of the prices")
            content, currency_code = other.prices.SerializeToString(), other.prices.currency_code
            if other.owner_id not in ("", PLATFORM_OWNER):
                if organization_id not in ("", other.owner_id):
                    raise InvalidArgument.of("organization_id", "must be that of the prices")
                organization_id = other.owner_id
        tenants = tenants_of(principal)
        settings = {
            "database_url": self._database_url,
            "tenants": list(tenants.ids),
            "platform": tenants.platform,
            "start_time": start_time.isoformat(),
            "end_time": end_time.isoformat(),
            "organization_id": organization_id,
            "customer_id": request.customer_id,
            "currency_code": currency_code,
            "price_book_id": "" if other is None else other.price_book_id,
        }
        async with aclosing(self._jobs.run("rerate", settings, content)) as answers:
            async for message in answers:
                yield pb.RerateResponse.FromString(message)

    async def StartShadow(self, request: pb.StartShadowRequest, context: Context) -> pb.StartShadowResponse:
        return await self._shadows.start(request)

    async def StopShadow(self, request: pb.StopShadowRequest, context: Context) -> pb.StopShadowResponse:
        return await self._shadows.stop(request)

    async def GetShadow(self, request: pb.GetShadowRequest, context: Context) -> pb.GetShadowResponse:
        return await self._shadows.get(request)

    async def ListShadows(self, request: pb.ListShadowsRequest, context: Context) -> pb.ListShadowsResponse:
        return await self._shadows.list_shadows(request)

    async def ListShadowDivergences(
        self, request: pb.ListShadowDivergencesRequest, context: Context
    ) -> pb.ListShadowDivergencesResponse:
        return await self._shadows.list_divergences(request)

    async def _rerated_organization(self, organization_id: str, principal: Principal) -> str:
        if not organization_id:
            return ""
        ids.check_id(organization_id, ids.ORGANIZATION, field="organization_id")
        if principal.organization_id not in (None, organization_id):
            # Another organization answers as one that does not exist.
            raise NotFound(
                f"organization {organization_id} does not exist",
                reason="ORGANIZATION_NOT_FOUND",
                metadata={"organization_id": organization_id},
            )
        return organization_id

    async def _other_prices(self, request: pb.RerateRequest, principal: Principal) -> _Listed | None:
        match request.WhichOneof("prices"):
            case "price_version_id":
                return await self._load_listed(request.price_version_id, principal, "price_version_id")
            case "price_list":
                check_given_list(request.price_list, "price_list")
                return _Listed(request.price_list, "", "")
            case _:
                return None

    async def _give_price_lists(self, request: pb.SimulateRequest, principal: Principal) -> list[str]:
        """Put the price list of every version in its place: the ids of the versions, "" for lists that came
        with the request.
        """
        if not 1 <= len(request.books) <= MAX_BOOKS:
            raise InvalidArgument.of("books", f"must be 1 to {MAX_BOOKS}")
        versions = []
        for index, book in enumerate(request.books):
            versions.append(book.price_version_id)
            match book.WhichOneof("prices"):
                case "price_version_id":
                    found = await self._load_listed(
                        book.price_version_id, principal, f"books[{index}].price_version_id"
                    )
                    book.price_list.CopyFrom(found.prices)
                case "price_list":
                    check_given_list(book.price_list, f"books[{index}].price_list")
                case _:
                    raise InvalidArgument.of(f"books[{index}].prices", "is required")
        return versions

    async def _load_listed(self, price_version_id: str, principal: Principal, field: str) -> _Listed:
        """What a version says. Raises NotFound for one that the caller may not see."""
        ids.check_id(price_version_id, ids.PRICE_VERSION, field=field)
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(principal))
            version = await price_books.find_version(connection, price_version_id)
            book = None if version is None else await price_books.find_book(connection, version.price_book_id)
        if version is None or book is None:
            raise NotFound(
                f"price version {price_version_id} does not exist",
                reason="PRICE_VERSION_NOT_FOUND",
                metadata={"price_version_id": price_version_id},
            )
        prices, meters, plans = price_list_to_proto(version.price_list)
        listed = pb.PriceList(currency_code=book.currency_code, prices=prices, meters=meters, plans=plans)
        return _Listed(listed, book.price_book_id, book.owner_id)

    async def _priced(
        self, request: pb.QuoteRequest, execution: Execution, principal: Principal, now: datetime
    ) -> _Priced:
        match request.WhichOneof("prices"):
            case "price_version_id":
                listed = await self._load_listed(request.price_version_id, principal, "price_version_id")
            case "price_list":
                check_given_list(request.price_list, "price_list")
                listed = _Listed(request.price_list, "", "")
            case _:
                return await self._in_force(request, execution, principal, now)
        currency_code = listed.prices.currency_code
        prices = compile_price_list(price_list_from_proto(listed.prices), listed.price_book_id)
        price = select(prices, execution.action_type, execution.agent_id)
        if price is None:
            raise _no_price(execution, currency_code, "")
        return _Priced(price, request.price_version_id, currency_code)

    async def _in_force(
        self, request: pb.QuoteRequest, execution: Execution, principal: Principal, now: datetime
    ) -> _Priced:
        agent_id = ids.check_id(request.agent_id, ids.AGENT, field="agent_id")
        if request.currency_code:
            check_currency(request.currency_code)
        if request.customer_id:
            work = Work(
                customer_id=request.customer_id,
                agent_id=agent_id,
                agent_version="",
                action_type=execution.action_type,
                currency_code=request.currency_code,
                time=execution.occur_time,
                principal=principal,
            )
            (terms,) = await self._terms.find([work], now)
            if isinstance(terms, Exception):
                raise terms
            stood = await self._counters.current(request.customer_id, terms)
            return _Priced(
                terms.price, terms.price_version_id, terms.currency_code, terms.agreed.compiled, stood
            )
        # For nobody in particular: by what the books say.
        agent = (await self._directory.find((), {(agent_id, "")})).agents.get(agent_id)
        if agent is None or principal.organization_id not in (None, agent.organization_id):
            raise NotFound(
                f"agent {agent_id} does not exist",
                reason="AGENT_NOT_FOUND",
                metadata={"agent_id": agent_id},
            )
        index = await self._catalog.index()
        currency_code = request.currency_code or index.currency_of(agent.organization_id)
        versions = index.in_force(agent.organization_id, currency_code, min(execution.occur_time, now))
        compiled = await self._catalog.compiled(versions)
        for version in versions:
            price = select(compiled.get(version, ()), execution.action_type, agent_id)
            if price is not None:
                return _Priced(price, version, currency_code)
        raise _no_price(execution, currency_code, agent.organization_id)


def check_given_list(message: pb.PriceList, field: str) -> None:
    """Raise InvalidArgument unless a price list that came with a request could be stored."""
    check_currency(message.currency_code, field=f"{field}.currency_code")
    try:
        check_price_list(price_list_from_proto(message))
    except InvalidArgument as error:
        raise within(field, error) from None


def _execution(request: pb.QuoteRequest, now: datetime) -> Execution:
    """The run in a request. Raises InvalidArgument with everything that is malformed."""
    malformed: list[FieldViolation] = []
    usage = usage_from_proto(request.usage)
    malformed += usage_violations(usage)
    if not IDENTIFIER.fullmatch(request.action_type):
        malformed.append(FieldViolation("action_type", "must be 1 to 128 letters, digits and '_.:/-'"))
    result = result_from_proto(request, malformed)
    outcome = OUTCOMES_FROM_PROTO.get(request.outcome)
    if request.outcome == usage_pb2.OUTCOME_UNSPECIFIED:
        outcome = Outcome.UNKNOWN
    if outcome is None:
        malformed.append(FieldViolation("outcome", "is not an outcome"))
        outcome = Outcome.UNKNOWN
    if malformed:
        raise malformed_fields(malformed)
    return Execution(
        usage=usage,
        outcome=outcome,
        occur_time=optional_time_from_proto(request, "occur_time") or now,
        result=result,
        action_type=request.action_type,
        agent_id=request.agent_id,
        agent_version=request.agent_version,
        tool_name=request.tool_name,
        outcome_candidate=request.outcome_candidate,
    )


def _opening(request: pb.QuoteRequest) -> Mapping[str, int]:
    counters = request.opening_counters
    if len(counters) > _MAX_COUNTERS or any(not 0 <= value <= MAX_TOKENS for value in counters.values()):
        raise InvalidArgument.of(
            "opening_counters", f"must be at most {_MAX_COUNTERS}, each from 0 to {MAX_TOKENS}"
        )
    return counters


def _check_customer(customer_id: str, principal: Principal) -> None:
    if customer_id:
        ids.check_id(customer_id, ids.CUSTOMER, field="customer_id")
    # Another customer answers as one that does not exist.
    if customer_id and principal.customer_id not in (None, customer_id):
        raise NotFound(
            f"customer {customer_id} does not exist",
            reason="CUSTOMER_NOT_FOUND",
            metadata={"customer_id": customer_id},
        )


def _no_price(execution: Execution, currency_code: str, organization_id: str) -> NotFound:
    return NotFound(
        f"no price in {currency_code} applies to {execution.action_type} of agent {execution.agent_id}",
        reason="PRICE_NOT_FOUND",
        metadata={
            "agent_id": execution.agent_id,
            "action_type": execution.action_type,
            "currency_code": currency_code,
            "organization_id": organization_id,
        },
    )


def _quoted(priced: _Priced, rated: Rated, opening: Mapping[str, int]) -> pb.QuoteResponse:
    return pb.QuoteResponse(
        total=money_to_proto(priced.currency_code, rated.total_micros),
        lines=[line_to_proto(line, priced.currency_code) for line in rated.lines],
        price_version_id=priced.price_version_id,
        price_name=priced.price.name,
        opening_counters=opening,
        closing_counters=rated.closing,
    )
