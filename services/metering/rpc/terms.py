"""What applies to a piece of work: who earns from it, and the price that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from services.kit.auth import Principal
from services.kit.errors import NotFound, TallystickError
from services.metering.domain.billing_period import MONTH_IN_UTC, BillingPeriod
from services.metering.domain.price_index import PriceIndex
from services.metering.domain.rating import (
    NO_COMPILED_TERMS,
    NO_TERMS,
    CompiledPrice,
    CompiledTerms,
    ContractTerms,
    compile_terms,
    select,
)
from services.metering.rpc.parties import Directory, Parties
from services.metering.rpc.price_catalog import PriceCatalog


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


class TermsFinder:
    """Finds the terms of work, from the directory and the published prices."""

    def __init__(self, directory: Directory, catalog: PriceCatalog) -> None:
        self._directory = directory
        self._catalog = catalog

    async def find(self, works: Sequence[Work], now: datetime) -> list[Terms | TallystickError]:
        """The terms of each piece of work, or what is missing: its customer, agent, version or price."""
        parties = await self._directory.find(
            {work.customer_id for work in works}, {(work.agent_id, work.agent_version) for work in works}
        )
        index = await self._catalog.index()
        versions = [_versions(work, parties, index, now) for work in works]
        compiled = await self._catalog.compiled({version for some in versions for version in some})
        found: list[Terms | TallystickError] = []
        for work, candidates in zip(works, versions, strict=True):
            try:
                found.append(_terms(work, parties, index, candidates, compiled))
            except TallystickError as error:
                found.append(error)
        return found


def _versions(work: Work, parties: Parties, index: PriceIndex, now: datetime) -> Sequence[str]:
    """The versions that may price the work, the first that does before the next."""
    if work.price_version_id:
        return [work.price_version_id]
    agent = parties.agents.get(work.agent_id)
    if agent is None:
        return []
    # A host's clock may be a little ahead; nothing is priced by the future.
    at = now if work.time is None else min(work.time, now)
    return index.in_force(agent.organization_id, _currency(index, agent.organization_id, work), at)


def _terms(
    work: Work,
    parties: Parties,
    index: PriceIndex,
    versions: Sequence[str],
    compiled: Mapping[str, Sequence[CompiledPrice]],
) -> Terms:
    if work.customer_id not in parties.customers or not work.principal.may_use_customer(work.customer_id):
        raise NotFound(
            f"customer {work.customer_id} does not exist",
            reason="CUSTOMER_NOT_FOUND",
            metadata={"customer_id": work.customer_id},
        )
    organization_id = _organization(work, parties)
    currency_code = _currency(index, organization_id, work)
    for version in versions:
        price = select(compiled.get(version, ()), work.action_type, work.agent_id)
        if price is not None:
            return Terms(organization_id, version, currency_code, price)
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


def _organization(work: Work, parties: Parties) -> str:
    """Who earns from the work, if this caller may report it."""
    agent = parties.agents.get(work.agent_id)
    if (
        agent is None
        # Another organization's agent answers as one that does not exist.
        or work.principal.organization_id not in (None, agent.organization_id)
        or not work.principal.may_use_agent(work.agent_id)
    ):
        raise NotFound(
            f"agent {work.agent_id} does not exist",
            reason="AGENT_NOT_FOUND",
            metadata={"agent_id": work.agent_id},
        )
    if not agent.has_version(work.agent_version):
        raise NotFound(
            f"agent {work.agent_id} has no version {work.agent_version}",
            reason="AGENT_VERSION_NOT_FOUND",
            metadata={"agent_id": work.agent_id, "agent_version": work.agent_version},
        )
    return agent.organization_id


def _currency(index: PriceIndex, organization_id: str, work: Work) -> str:
    return work.currency_code or index.currency_of(organization_id)
