"""ContractService."""

from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import grpc

from services.kit import ids
from services.kit.auth import Principal, current_principal
from services.kit.clock import Clock
from services.kit.db import Connection, Database, retry_transaction
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PreconditionViolation,
)
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, scope, tenants_of
from services.kit.times import optional_time_from_proto
from services.metering.domain.contract import Contract, ContractContent, check_key
from services.metering.domain.price_book import PLATFORM_OWNER
from services.metering.rpc.contract_catalog import ContractCatalog
from services.metering.rpc.contract_convert import (
    billing_period_from_proto,
    content_from_proto,
    contract_to_proto,
    from_stored,
    key_from_proto,
    optional_time,
    to_stored,
)
from services.metering.rpc.explanations import Explanations
from services.metering.rpc.ledger import Ledger
from services.metering.rpc.parties import Directory
from services.metering.rpc.period_checks import check_contract
from services.metering.rpc.subscription_catalog import SubscriptionCatalog
from services.metering.store import contracts, periods, price_books
from tallystick.metering.v1 import contract_service_pb2 as pb
from tallystick.metering.v1 import contract_service_pb2_grpc

_CREATE_CONTRACT: Final = "/tallystick.metering.v1.ContractService/CreateContract"

Context = grpc.aio.ServicerContext[Any, Any]


class ContractService(contract_service_pb2_grpc.ContractServiceServicer):
    """Serves ContractService."""

    def __init__(
        self,
        *,
        writer: Database,
        reader: Database,
        ledger: Ledger,
        directory: Directory,
        catalog: ContractCatalog,
        subscriptions: SubscriptionCatalog,
        explanations: Explanations,
        clock: Clock,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._ledger = ledger
        self._directory = directory
        self._catalog = catalog
        self._subscriptions = subscriptions
        self._explanations = explanations
        self._clock = clock

    async def CreateContract(
        self, request: pb.CreateContractRequest, context: Context
    ) -> pb.CreateContractResponse:
        principal = current_principal()
        new = self._new(request, principal)
        await self._check_parties(new, principal)
        subscriptions = await self._subscriptions.index()

        async def create() -> Contract:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                await contracts.lock(connection)
                end_time = new.content.end_time
                stored = to_stored(new)
                existing = await contracts.find(
                    connection, new.contract_id
                ) or await contracts.find_overlapping(connection, stored, end_time=end_time)
                if existing is not None:
                    first = await contracts.find(connection, existing.contract_id, 1)
                    return _repeated(new, None if first is None else from_stored(first), request)
                await _check_prices(connection, new)
                if not await contracts.create(connection, stored, end_time=end_time):
                    raise _taken(new.contract_id)
                # The caller may keep this contract; what it meets may be anybody's.
                await scope(connection, PLATFORM)
                await check_contract(connection, new, subscriptions, self._clock.now())
                await periods.look_again(connection, *new.key)
                return new

        created = await retry_transaction(create, idempotent=True)
        self._catalog.expire()
        return pb.CreateContractResponse(contract=contract_to_proto(created))

    async def UpdateContract(
        self, request: pb.UpdateContractRequest, context: Context
    ) -> pb.UpdateContractResponse:
        principal = current_principal()
        id_ = _contract_id(request.contract_id)

        async def update() -> Contract:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                await contracts.lock(connection)
                newest = await _find(connection, id_)
                content = content_from_proto(
                    request.content,
                    currency_code=newest.key.currency_code,
                    start_time=newest.start_time,
                    path="content",
                )
                replaced = request.replaced_version_number
                if newest.version_number == replaced + 1 and newest.content == content:
                    return newest
                if newest.version_number != replaced:
                    raise _conflict(newest, f"version {newest.version_number}", "it was changed meanwhile")
                return await self._add(connection, newest, content, principal)

        updated = await retry_transaction(update, idempotent=True)
        self._catalog.expire()
        return pb.UpdateContractResponse(contract=contract_to_proto(updated))

    async def EndContract(self, request: pb.EndContractRequest, context: Context) -> pb.EndContractResponse:
        principal = current_principal()
        id_ = _contract_id(request.contract_id)
        wanted = optional_time_from_proto(request, "end_time")

        async def end() -> Contract:
            async with self._writer.begin() as connection:
                await scope(connection, tenants_of(principal))
                await contracts.lock(connection)
                newest = await _find(connection, id_)
                known, now = newest.content.end_time, self._clock.now()
                if known is not None and (wanted == known or (wanted is None and known <= now)):
                    return newest
                # One that has not begun yet ends with its start, and never begins.
                end_time = max(wanted or now, newest.start_time)
                content = replace(newest.content, end_time=end_time)
                return await self._add(connection, newest, content, principal, now=now)

        ended = await retry_transaction(end, idempotent=True)
        self._catalog.expire()
        return pb.EndContractResponse(contract=contract_to_proto(ended))

    async def GetContract(self, request: pb.GetContractRequest, context: Context) -> pb.GetContractResponse:
        id_ = _contract_id(request.contract_id)
        if request.version_number < 0:
            raise InvalidArgument.of("version_number", "must not be negative")
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            contract = await _find(connection, id_, request.version_number)
        return pb.GetContractResponse(contract=contract_to_proto(contract))

    async def ListContracts(
        self, request: pb.ListContractsRequest, context: Context
    ) -> pb.ListContractsResponse:
        if request.customer_id:
            ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str,),
            filter={"list": "contracts", "customer_id": request.customer_id},
        )
        tenants = tenants_of(current_principal())
        async with self._reader.begin() as connection:
            await scope(connection, tenants)
            rows = await contracts.list_contracts(
                connection,
                tenant_ids=None if tenants.platform else tenants.ids,
                customer_id=request.customer_id,
                after="" if page.after is None else str(page.after[0]),
                limit=page.limit,
            )
        found, next_page_token = page.cut(rows, lambda stored: (stored.contract_id,))
        return pb.ListContractsResponse(
            contracts=[contract_to_proto(from_stored(stored)) for stored in found],
            next_page_token=next_page_token,
        )

    async def ListContractVersions(
        self, request: pb.ListContractVersionsRequest, context: Context
    ) -> pb.ListContractVersionsResponse:
        id_ = _contract_id(request.contract_id)
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(int,),
            filter={"list": "contract_versions", "contract_id": id_},
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            await _find(connection, id_)
            rows = await contracts.list_versions(
                connection,
                id_,
                before=None if page.after is None else int(page.after[0]),
                limit=page.limit,
            )
        found, next_page_token = page.cut(rows, lambda stored: (stored.version_number,))
        return pb.ListContractVersionsResponse(
            contracts=[contract_to_proto(from_stored(stored)) for stored in found],
            next_page_token=next_page_token,
        )

    async def ExplainPrice(
        self, request: pb.ExplainPriceRequest, context: Context
    ) -> pb.ExplainPriceResponse:
        return await self._explanations.explain(request, current_principal(), self._clock.now())

    def _new(self, request: pb.CreateContractRequest, principal: Principal) -> Contract:
        """The contract that a request wants. Raises InvalidArgument for what is malformed."""
        message, now = request.contract, self._clock.now()
        if message.contract_id:
            ids.check_id(message.contract_id, ids.CONTRACT, field="contract.contract_id")
        key = key_from_proto(message)
        check_key(key)
        start_time = optional_time(message, "start_time", path="contract") or now
        return Contract(
            contract_id=message.contract_id or ids.new_id(ids.CONTRACT, clock=self._clock),
            key=key,
            billing_period=(
                billing_period_from_proto(message.billing_period, path="contract.billing_period")
                if message.HasField("billing_period")
                else None
            ),
            start_time=start_time,
            version_number=1,
            content=content_from_proto(
                message.content,
                currency_code=key.currency_code,
                start_time=start_time,
                path="contract.content",
            ),
            effective_time=start_time,
            create_time=now,
            api_key_id=principal.api_key_id,
        )

    async def _add(
        self,
        connection: Connection,
        newest: Contract,
        content: ContractContent,
        principal: Principal,
        *,
        now: datetime | None = None,
    ) -> Contract:
        """Add a version with this content to a contract that has not ended."""
        now = now or self._clock.now()
        if newest.content.end_time is not None and newest.content.end_time <= now:
            raise _conflict(newest, "ended", "it has ended")
        if content.end_time is not None and content.end_time < now:
            raise InvalidArgument.of("end_time", "must not be in the past")
        changed = replace(
            newest,
            version_number=newest.version_number + 1,
            content=content,
            effective_time=max(now, newest.effective_time),
            create_time=now,
            api_key_id=principal.api_key_id,
        )
        stored = to_stored(changed)
        await _check_prices(connection, changed)
        other = await contracts.find_overlapping(connection, stored, end_time=content.end_time)
        if other is not None:
            raise _taken(other.contract_id)
        await contracts.add_version(connection, stored, end_time=content.end_time)
        await scope(connection, PLATFORM)
        await periods.look_again(connection, *changed.key)
        return changed

    async def _check_parties(self, contract: Contract, principal: Principal) -> None:
        """Raise unless the customer and the organization exist, and are within the caller's reach."""
        organization_id = contract.key.organization_id
        if principal.organization_id is not None and not organization_id:
            raise PermissionDenied(
                "only operators may keep contracts for all organizations",
                metadata={"role": principal.role, "method": _CREATE_CONTRACT},
            )
        if principal.organization_id not in (None, organization_id):
            # Another organization answers as one that does not exist.
            raise NotFound(
                f"organization {organization_id} does not exist",
                reason="ORGANIZATION_NOT_FOUND",
                metadata={"organization_id": organization_id},
            )
        if organization_id:
            await self._ledger.get_organization(organization_id)
        customer_id = contract.key.customer_id
        parties = await self._directory.find([customer_id], [])
        if customer_id not in parties.customers or not principal.may_use_customer(customer_id):
            raise NotFound(
                f"customer {customer_id} does not exist",
                reason="CUSTOMER_NOT_FOUND",
                metadata={"customer_id": customer_id},
            )


async def _check_prices(connection: Connection, contract: Contract) -> None:
    """Raise unless the version or the book that the contract names may price what it is about."""
    content = contract.content
    book_id = content.price_book_id
    if content.price_version_id:
        version = await price_books.find_version(connection, content.price_version_id)
        if version is None:
            raise NotFound(
                f"price version {content.price_version_id} does not exist",
                reason="PRICE_VERSION_NOT_FOUND",
                metadata={"price_version_id": content.price_version_id},
            )
        if not version.is_published:
            raise InvalidArgument.of("content.price_version_id", "must be published")
        book_id = version.price_book_id
    if not book_id:
        return
    book = await price_books.find_book(connection, book_id)
    if book is None:
        raise NotFound(
            f"price book {book_id} does not exist",
            reason="PRICE_BOOK_NOT_FOUND",
            metadata={"price_book_id": book_id},
        )
    if book.owner_id not in (PLATFORM_OWNER, contract.key.organization_id):
        raise InvalidArgument.of(
            "content.prices", "must be the platform's, or those of the contract's organization"
        )
    if book.currency_code != contract.key.currency_code:
        raise InvalidArgument.of("content.prices", f"must be in {contract.key.currency_code}")


def _repeated(wanted: Contract, first: Contract | None, request: pb.CreateContractRequest) -> Contract:
    """The contract that an equal request created before. Raises AlreadyExists if that was another one."""
    if first is not None:
        same = replace(
            wanted,
            contract_id=wanted.contract_id if request.contract.contract_id else first.contract_id,
            create_time=first.create_time,
            api_key_id=first.api_key_id,
        )
        if not request.contract.HasField("start_time"):
            same = replace(same, start_time=first.start_time, effective_time=first.effective_time)
        if same == first:
            return first
    raise _taken(wanted.contract_id if first is None else first.contract_id)


def _taken(contract_id: str) -> AlreadyExists:
    return AlreadyExists(
        f"contract {contract_id} exists with other content, or about the same at the same time",
        metadata={"resource_id": contract_id},
    )


def _conflict(contract: Contract, state: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"contract {contract.contract_id} cannot be changed so: {why}",
        reason="AGREEMENT_STATE_CONFLICT",
        metadata={"resource_id": contract.contract_id, "state": state},
        precondition_violations=[
            PreconditionViolation("AGREEMENT_STATE_CONFLICT", contract.contract_id, why)
        ],
    )


async def _find(connection: Connection, contract_id: str, version_number: int = 0) -> Contract:
    stored = await contracts.find(connection, contract_id, version_number)
    if stored is None:
        raise NotFound(
            f"contract {contract_id} does not exist",
            reason="CONTRACT_NOT_FOUND",
            metadata={"contract_id": contract_id},
        )
    return from_stored(stored)


def _contract_id(value: str) -> str:
    return ids.check_id(value, ids.CONTRACT, field="contract_id")
