"""Why work costs what it costs: everything that was looked at, and what became of it."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from services.kit import ids
from services.kit.auth import Principal
from services.kit.db import Database
from services.kit.errors import InvalidArgument
from services.kit.money import check_currency
from services.kit.tenancy import PLATFORM, scope
from services.kit.times import optional_time_from_proto, set_timestamp
from services.metering.domain.contract import Contract, ContractKey
from services.metering.domain.price_book import PLATFORM_OWNER, Price, PriceVersion
from services.metering.domain.usage_event import IDENTIFIER
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.contract_convert import billing_period_to_proto
from services.metering.rpc.parties import Directory
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.prices import version_to_proto
from services.metering.rpc.subscription_catalog import SubscriptionCatalog
from services.metering.rpc.terms import (
    Candidate,
    Source,
    billing_period_of,
    candidates,
    contracts_in_force,
    customer_not_found,
    organization_of,
    period_of,
    work_time,
)
from services.metering.store import price_books
from tallystick.metering.v1 import contract_pb2
from tallystick.metering.v1 import contract_service_pb2 as pb

_SOURCES: Final = {
    Source.PINNED: contract_pb2.PRICE_SOURCE_PINNED,
    Source.ORGANIZATION_CONTRACT: contract_pb2.PRICE_SOURCE_ORGANIZATION_CONTRACT,
    Source.CUSTOMER_CONTRACT: contract_pb2.PRICE_SOURCE_CUSTOMER_CONTRACT,
    Source.ORGANIZATION_BOOK: contract_pb2.PRICE_SOURCE_ORGANIZATION_BOOK,
    Source.PLATFORM_BOOK: contract_pb2.PRICE_SOURCE_PLATFORM_BOOK,
}


class Explanations:
    """Answers ExplainPrice, from what pricing itself goes by."""

    def __init__(
        self,
        *,
        reader: Database,
        directory: Directory,
        catalog: PriceCatalog,
        contracts: ContractCatalog,
        subscriptions: SubscriptionCatalog,
    ) -> None:
        self._reader = reader
        self._directory = directory
        self._catalog = catalog
        self._contracts = contracts
        self._subscriptions = subscriptions

    async def explain(
        self, request: pb.ExplainPriceRequest, principal: Principal, now: datetime
    ) -> pb.ExplainPriceResponse:
        """Why such work has the price that it has. Raises as reporting the work would, but for a price."""
        _check(request)
        parties = await self._directory.find([request.customer_id], [(request.agent_id, "")])
        if request.customer_id not in parties.customers or not _may_see(principal, request.customer_id):
            raise customer_not_found(request.customer_id)
        organization_id = organization_of(request.agent_id, "", parties, principal)
        index = await self._catalog.index()
        currency_code = request.currency_code or index.currency_of(organization_id)
        at = work_time(optional_time_from_proto(request, "time"), now)
        key = ContractKey(request.customer_id, organization_id, currency_code)
        contracts, subscriptions = await self._contracts.index(), await self._subscriptions.index()
        known = contracts_in_force(contracts, key, at)
        found = list(candidates(index, key, known, at, request.price_version_id))
        pinned, *others = [one.price_version_id for one in found]
        versions = dict(await self._versions([one for one in others if one]))
        if pinned:
            versions |= await self._pinned(pinned, versions.values(), organization_id, principal)
        answer = pb.ExplainPriceResponse(organization_id=organization_id, currency_code=currency_code)
        for candidate in found:
            _add(answer, candidate, versions, request, principal)
        subscribed = subscriptions.in_force(key, at)
        answer.subscription_id = "" if subscribed is None else subscribed.subscription_id
        billing_period = billing_period_of(known.binding, subscribed)
        answer.billing_period.CopyFrom(billing_period_to_proto(billing_period))
        period = period_of(contracts, subscriptions, key, at)
        set_timestamp(answer.period_start_time, period.start)
        set_timestamp(answer.period_end_time, period.end)
        contract = known.binding
        if contract is not None and _may_see_contract(principal, contract):
            answer.contract_id = contract.contract_id
            answer.contract_version_number = contract.version_number
        return answer

    async def _pinned(
        self, price_version_id: str, found: Iterable[PriceVersion], organization_id: str, principal: Principal
    ) -> Mapping[str, PriceVersion]:
        """The version that is said to be pinned, if the caller may know it: nobody learns what others agreed
        on by naming their version.
        """
        versions = await self._versions([price_version_id])
        version = versions.get(price_version_id)
        if version is None or principal.is_platform:
            return versions
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            book = await price_books.find_book(connection, version.price_book_id)
        if book is None:
            return {}
        is_for_all = not book.for_contracts and book.owner_id in (PLATFORM_OWNER, organization_id)
        is_agreed = any(one.price_book_id == book.price_book_id for one in found)
        is_own = book.owner_id == principal.organization_id
        return versions if is_for_all or is_agreed or is_own else {}

    async def _versions(self, price_version_ids: Sequence[str]) -> Mapping[str, PriceVersion]:
        async with self._reader.begin() as connection:
            # Whose price applies to one's work, one may see.
            await scope(connection, PLATFORM)
            found = [
                await price_books.find_version(connection, id_) for id_ in dict.fromkeys(price_version_ids)
            ]
        return {one.price_version_id: one for one in found if one is not None and one.is_published}


def _add(
    answer: pb.ExplainPriceResponse,
    candidate: Candidate,
    versions: Mapping[str, PriceVersion],
    request: pb.ExplainPriceRequest,
    principal: Principal,
) -> None:
    """Add what became of a candidate; the price too, if it is the one."""
    version = versions.get(candidate.price_version_id)
    position = None if version is None else _matching(version.prices, request)
    verdict = _verdict(candidate, position, answer, request)
    message = answer.candidates.add(
        source=_SOURCES[candidate.source], verdict=verdict, price_version_id=candidate.price_version_id
    )
    contract = candidate.contract
    if contract is not None and _may_see_contract(principal, contract):
        message.contract_id = contract.contract_id
        message.contract_version_number = contract.version_number
    if version is None or position is None:
        return
    message.price_name = version.prices[position].name
    if verdict == contract_pb2.PRICE_VERDICT_CHOSEN:
        answer.price_version_id = version.price_version_id
        answer.price.CopyFrom(version_to_proto(version).prices[position])


def _verdict(
    candidate: Candidate,
    position: int | None,
    answer: pb.ExplainPriceResponse,
    request: pb.ExplainPriceRequest,
) -> contract_pb2.PriceVerdict.ValueType:
    is_pin = candidate.source is Source.PINNED
    is_contract = candidate.source in (Source.ORGANIZATION_CONTRACT, Source.CUSTOMER_CONTRACT)
    if is_contract and candidate.contract is None:
        return contract_pb2.PRICE_VERDICT_NO_CONTRACT
    if is_pin and not candidate.price_version_id:
        return contract_pb2.PRICE_VERDICT_NOT_PINNED
    if request.price_version_id and not is_pin:
        return contract_pb2.PRICE_VERDICT_OVERRULED_BY_PIN
    if not candidate.price_version_id:
        names_book = candidate.contract is None or candidate.contract.content.price_book_id
        return (
            contract_pb2.PRICE_VERDICT_NOT_IN_FORCE
            if names_book
            else contract_pb2.PRICE_VERDICT_NO_OWN_PRICES
        )
    if position is None:
        return contract_pb2.PRICE_VERDICT_NO_PRICE_MATCHES
    return (
        contract_pb2.PRICE_VERDICT_NOT_NEEDED
        if answer.price_version_id
        else contract_pb2.PRICE_VERDICT_CHOSEN
    )


def _matching(prices: Sequence[Price], request: pb.ExplainPriceRequest) -> int | None:
    for position, price in enumerate(prices):
        if price.selector.matches(request.action_type, request.agent_id):
            return position
    return None


def _may_see(principal: Principal, customer_id: str) -> bool:
    return principal.customer_id in (None, customer_id) and principal.may_use_customer(customer_id)


def _may_see_contract(principal: Principal, contract: Contract) -> bool:
    """An organization sees what was agreed with it, and not what was agreed for all."""
    return principal.organization_id in (None, contract.key.organization_id)


def _check(request: pb.ExplainPriceRequest) -> None:
    ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
    ids.check_id(request.agent_id, ids.AGENT, field="agent_id")
    if not IDENTIFIER.fullmatch(request.action_type):
        raise InvalidArgument.of("action_type", "must be an action type")
    if request.currency_code:
        check_currency(request.currency_code)
    if request.price_version_id:
        ids.check_id(request.price_version_id, ids.PRICE_VERSION, field="price_version_id")
