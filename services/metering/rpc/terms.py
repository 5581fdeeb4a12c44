"""What applies to a piece of work: who earns from it, its price, and the contract with its customer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from functools import partial
from typing import Final, NamedTuple

from services.kit.auth import Principal
from services.kit.errors import NotFound, TallystickError
from services.metering.domain.billing_period import MONTH_IN_UTC, BillingPeriod, Period
from services.metering.domain.compiled_price import (
    NO_COMPILED_TERMS,
    NO_TERMS,
    CompiledPrice,
    CompiledTerms,
    ContractTerms,
    compile_terms,
)
from services.metering.domain.contract import Contract, ContractIndex, ContractKey
from services.metering.domain.price_book import PLATFORM_OWNER
from services.metering.domain.price_index import PriceIndex
from services.metering.domain.rating import select
from services.metering.domain.subscription import Subscribed, SubscriptionIndex
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.parties import Directory, Parties
from services.metering.rpc.price_catalog import PriceCatalog
from services.metering.rpc.subscription_catalog import SubscriptionCatalog

_SECOND: Final = timedelta(seconds=1)


class Work(NamedTuple):
    """A piece of work, done or to be done, and who reports it."""

    customer_id: str
    agent_id: str
    agent_version: str
    action_type: str
    # Empty for that of the price book.
    currency_code: str
    # When the work is done; None for now.
    time: datetime | None
    principal: Principal
    # The price version that was pinned when the work was authorized; empty to choose the one in force.
    price_version_id: str = ""


class AgreedTerms(NamedTuple):
    """What a contract adds to prices, as it is recorded, and ready for rating."""

    terms: ContractTerms
    compiled: CompiledTerms

    @classmethod
    def of(cls, terms: ContractTerms) -> AgreedTerms:
        return NOTHING_AGREED if terms == NO_TERMS else cls(terms, compile_terms(terms))


NOTHING_AGREED: Final = AgreedTerms(NO_TERMS, NO_COMPILED_TERMS)


class Terms(NamedTuple):
    """What applies to it."""

    organization_id: str
    price_version_id: str
    currency_code: str
    price: CompiledPrice
    agreed: AgreedTerms = NOTHING_AGREED
    # How the customer's billing periods are cut.
    billing_period: BillingPeriod = MONTH_IN_UTC
    # The contract that says so, if there is one.
    contract: Contract | None = None
    # When the work is done: what is reported as later than now is of now.
    time: datetime | None = None
    # Finds the billing period that the work falls into, if that takes more than `billing_period` to say: few
    # prices ask for it.
    cut: Callable[[], Period] | None = None

    @property
    def period(self) -> Period:
        """The billing period that the work falls into."""
        if self.cut is not None:
            return self.cut()
        if self.time is None:
            raise ValueError("terms that no work was found for have no period")
        return self.billing_period.period_containing(self.time)


class Source(Enum):
    """Where a price may come from, in the order in which prices are looked for."""

    PINNED = "pinned"
    ORGANIZATION_CONTRACT = "organization_contract"
    CUSTOMER_CONTRACT = "customer_contract"
    ORGANIZATION_BOOK = "organization_book"
    PLATFORM_BOOK = "platform_book"


class Candidate(NamedTuple):
    """A place where a price may come from: the version there, "" for none, and the contract, if it is one."""

    source: Source
    price_version_id: str
    contract: Contract | None = None


class InForce(NamedTuple):
    """The contracts of a customer that are in force: with an organization, and for all."""

    with_organization: Contract | None
    for_all: Contract | None

    @property
    def binding(self) -> Contract | None:
        """The one whose terms apply."""
        return self.with_organization or self.for_all


class TermsFinder:
    """Finds the terms of work, from the directory, the published prices and the contracts."""

    def __init__(
        self,
        directory: Directory,
        catalog: PriceCatalog,
        contracts: ContractCatalog,
        subscriptions: SubscriptionCatalog,
    ) -> None:
        self._directory = directory
        self._catalog = catalog
        self._contracts = contracts
        self._subscriptions = subscriptions

    async def find(self, works: Sequence[Work], now: datetime) -> list[Terms | TallystickError]:
        """The terms of each piece of work, or what is missing: its customer, agent, version or price."""
        parties = await self._directory.find(
            {work.customer_id for work in works}, {(work.agent_id, work.agent_version) for work in works}
        )
        index, contracts = await self._catalog.index(), await self._contracts.index()
        subscriptions = await self._subscriptions.index()
        circumstances = [
            _circumstances(work, parties, index, contracts, subscriptions, now) for work in works
        ]
        compiled = await self._catalog.compiled(
            {version for one in circumstances for version in one.versions}
        )
        found: list[Terms | TallystickError] = []
        for work, one in zip(works, circumstances, strict=True):
            try:
                found.append(_terms(work, parties, index, one, compiled))
            except TallystickError as error:
                found.append(error)
        return found


class _Circumstances(NamedTuple):
    """The versions that may price a piece of work, in the order that decides, and what was agreed."""

    versions: Sequence[str]
    time: datetime
    contract: Contract | None = None
    subscribed: Subscribed | None = None
    cut: Callable[[], Period] | None = None


def contracts_in_force(contracts: ContractIndex, key: ContractKey, at: datetime) -> InForce:
    """The customer's contracts about the work of an organization in a currency, in force at that time."""
    return InForce(contracts.in_force(key, at), contracts.in_force(key._replace(organization_id=""), at))


def candidates(
    index: PriceIndex, key: ContractKey, contracts: InForce, at: datetime, price_version_id: str = ""
) -> Iterator[Candidate]:
    """Every place where the price of such work may come from, in the order that decides."""
    yield Candidate(Source.PINNED, price_version_id)
    for source, contract in (
        (Source.ORGANIZATION_CONTRACT, contracts.with_organization),
        (Source.CUSTOMER_CONTRACT, contracts.for_all),
    ):
        version = "" if contract is None else _version_of(contract, index, at)
        yield Candidate(source, version, contract)
    for source, owner_id in (
        (Source.ORGANIZATION_BOOK, key.organization_id),
        (Source.PLATFORM_BOOK, PLATFORM_OWNER),
    ):
        yield Candidate(source, index.in_force_of(owner_id, key.currency_code, at))


def billing_period_of(contract: Contract | None, subscribed: Subscribed | None) -> BillingPeriod:
    """How a customer's billing periods are cut: as the contract says, or else the subscription, or else in
    calendar months of UTC.
    """
    if contract is not None and contract.billing_period is not None:
        return contract.billing_period
    return MONTH_IN_UTC if subscribed is None else subscribed.billing_period


def period_of(
    contracts: ContractIndex, subscriptions: SubscriptionIndex, key: ContractKey, at: datetime
) -> Period:
    """The billing period that such work at that time falls into.

    Where a contract or subscription begins or ends that cuts periods otherwise, the period ends with that
    second, too, and another one begins: periods follow each other without gap and never overlap.
    """
    cut = _cut_at(contracts, subscriptions, key, at)
    whole = cut.period_containing(at)
    begin, end = whole.start, whole.end
    moments = sorted(
        {
            second
            for moment in _moments(contracts, subscriptions, key)
            # First of all, since a contract may last until the last microsecond that there is.
            if whole.contains(moment) and begin < (second := _next_second(moment)) < end
        }
    )
    for moment in reversed(moments):
        if moment <= at and _cut_at(contracts, subscriptions, key, moment - _SECOND) != cut:
            begin = moment
            break
    for moment in moments:
        if moment > at and _cut_at(contracts, subscriptions, key, moment) != cut:
            end = moment
            break
    return Period(begin, end)


def whole_period_of(
    contracts: ContractIndex, subscriptions: SubscriptionIndex, key: ContractKey, at: datetime
) -> Period:
    """The same as if nothing began or ended in it."""
    return _cut_at(contracts, subscriptions, key, at).period_containing(at)


def _cut_at(
    contracts: ContractIndex, subscriptions: SubscriptionIndex, key: ContractKey, at: datetime
) -> BillingPeriod:
    # As at the begin of the second: the runs of charges that close periods name these by the second.
    at = at.replace(microsecond=0)
    contract = contracts_in_force(contracts, key, at).binding
    return billing_period_of(contract, subscriptions.in_force(key, at))


def _next_second(moment: datetime) -> datetime:
    return moment.replace(microsecond=0) + _SECOND if moment.microsecond else moment


def moments_of(contracts: ContractIndex, key: ContractKey) -> Iterator[datetime]:
    """The moments at which the contracts in force about such work may change, in no order."""
    yield from contracts.moments(key)
    yield from contracts.moments(key._replace(organization_id=""))


def _moments(
    contracts: ContractIndex, subscriptions: SubscriptionIndex, key: ContractKey
) -> Iterator[datetime]:
    yield from moments_of(contracts, key)
    yield from subscriptions.moments(key)


def period_start_of(
    contracts: ContractIndex,
    subscriptions: SubscriptionIndex,
    customer_id: str,
    organization_id: str,
    currency_code: str,
    at: datetime,
) -> datetime:
    """When the customer's billing period began that such work at that time falls into."""
    key = ContractKey(customer_id, organization_id, currency_code)
    return period_of(contracts, subscriptions, key, at).start


def work_time(time: datetime | None, now: datetime) -> datetime:
    """When work was done. A host's clock may be a little ahead; nothing is priced by the future."""
    return now if time is None else min(time, now)


def agreed_in(contract: Contract | None, subscribed: Subscribed | None) -> AgreedTerms:
    """What the contract says, and what the subscription includes besides."""
    agreed = NOTHING_AGREED if contract is None else AgreedTerms(contract.terms, contract.compiled_terms)
    if subscribed is None or not subscribed.included:
        return agreed
    allowances = dict(agreed.terms.allowances)
    for meter, units in subscribed.included.items():
        allowances[meter] = allowances.get(meter, 0) + units
    return AgreedTerms(
        agreed.terms._replace(allowances=allowances), agreed.compiled._replace(allowances=allowances)
    )


def _version_of(contract: Contract, index: PriceIndex, at: datetime) -> str:
    content = contract.content
    if content.price_version_id:
        return content.price_version_id
    return index.in_force_in(content.price_book_id, at) if content.price_book_id else ""


def _circumstances(
    work: Work,
    parties: Parties,
    index: PriceIndex,
    contracts: ContractIndex,
    subscriptions: SubscriptionIndex,
    now: datetime,
) -> _Circumstances:
    at = work_time(work.time, now)
    agent = parties.agents.get(work.agent_id)
    if agent is None:
        return _Circumstances([work.price_version_id] if work.price_version_id else [], at)
    currency_code = _currency(index, agent.organization_id, work)
    key = ContractKey(work.customer_id, agent.organization_id, currency_code)
    known = contracts_in_force(contracts, key, at)
    subscribed = subscriptions.in_force(key, at)
    # Most customers have neither.
    has_any = subscriptions.has_any_of(key) or contracts.has_any_of(key)
    cut = partial(period_of, contracts, subscriptions, key, at) if has_any else None
    if work.price_version_id:
        return _Circumstances([work.price_version_id], at, known.binding, subscribed, cut)
    if known.binding is None:
        versions = index.in_force(agent.organization_id, currency_code, at)
        return _Circumstances(versions, at, None, subscribed, cut)
    versions = [one.price_version_id for one in candidates(index, key, known, at) if one.price_version_id]
    return _Circumstances(versions, at, known.binding, subscribed, cut)


def _terms(
    work: Work,
    parties: Parties,
    index: PriceIndex,
    circumstances: _Circumstances,
    compiled: Mapping[str, Sequence[CompiledPrice]],
) -> Terms:
    if work.customer_id not in parties.customers or not work.principal.may_use_customer(work.customer_id):
        raise customer_not_found(work.customer_id)
    organization_id = organization_of(work.agent_id, work.agent_version, parties, work.principal)
    currency_code = _currency(index, organization_id, work)
    for version in circumstances.versions:
        price = select(compiled.get(version, ()), work.action_type, work.agent_id)
        if price is not None:
            contract, subscribed = circumstances.contract, circumstances.subscribed
            return Terms(
                organization_id,
                version,
                currency_code,
                price,
                agreed_in(contract, subscribed),
                billing_period_of(contract, subscribed),
                contract,
                circumstances.time,
                circumstances.cut,
            )
    raise NotFound(
        f"no price in {currency_code} applies to {work.action_type} of agent {work.agent_id}",
        reason="PRICE_NOT_FOUND",
        metadata={
            "agent_id": work.agent_id,
            "action_type": work.action_type,
            "currency_code": currency_code,
            "organization_id": organization_id,
        },
    )


def organization_of(agent_id: str, agent_version: str, parties: Parties, principal: Principal) -> str:
    """Who earns from the work of an agent, if this caller may ask for it; raises NotFound otherwise."""
    agent = parties.agents.get(agent_id)
    if (
        agent is None
        # Another organization's agent answers as one that does not exist.
        or principal.organization_id not in (None, agent.organization_id)
        or not principal.may_use_agent(agent_id)
    ):
        raise NotFound(
            f"agent {agent_id} does not exist", reason="AGENT_NOT_FOUND", metadata={"agent_id": agent_id}
        )
    if not agent.has_version(agent_version):
        raise NotFound(
            f"agent {agent_id} has no version {agent_version}",
            reason="AGENT_VERSION_NOT_FOUND",
            metadata={"agent_id": agent_id, "agent_version": agent_version},
        )
    return agent.organization_id


def customer_not_found(customer_id: str) -> NotFound:
    """What a caller is told of a customer that is not there for it."""
    return NotFound(
        f"customer {customer_id} does not exist",
        reason="CUSTOMER_NOT_FOUND",
        metadata={"customer_id": customer_id},
    )


def _currency(index: PriceIndex, organization_id: str, work: Work) -> str:
    return work.currency_code or index.currency_of(organization_id)
