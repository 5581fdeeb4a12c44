"""ConnectService: the accounts at the payment processor on which organizations are paid."""

from typing import Any

import grpc

from services.kit.auth import current_principal
from services.kit.db import Database
from services.kit.pages import Page
from services.kit.tenancy import scope, tenants_of
from services.kit.times import timestamp
from services.payouts.accounts import Accounts
from services.payouts.domain.account import check_country
from services.payouts.rpc.access import check_organization
from services.payouts.rpc.connect_convert import account_to_proto, state_from_proto
from services.payouts.rpc.ledger import Ledger
from services.payouts.rpc.refusals import processor_errors
from services.payouts.store import accounts as store
from tallystick.payouts.v1 import connect_service_pb2 as pb
from tallystick.payouts.v1 import connect_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class ConnectService(connect_service_pb2_grpc.ConnectServiceServicer):
    """Serves ConnectService."""

    def __init__(self, *, accounts: Accounts, ledger: Ledger, reader: Database) -> None:
        self._accounts = accounts
        self._ledger = ledger
        self._reader = reader

    async def CreateOnboardingLink(
        self, request: pb.CreateOnboardingLinkRequest, context: Context
    ) -> pb.CreateOnboardingLinkResponse:
        organization_id = check_organization(request.organization_id)
        country_code = check_country(request.country_code) if request.country_code else ""
        # An account at Stripe cannot be taken back: none is made for who is not there.
        await self._ledger.get_organization(organization_id)
        with processor_errors():
            account = await self._accounts.ensure(organization_id, country_code)
            link = await self._accounts.begin_onboarding(account)
        return pb.CreateOnboardingLinkResponse(
            url=link.url,
            expire_time=timestamp(link.expire_time),
            account=account_to_proto(organization_id, account),
        )

    async def GetConnectedAccount(
        self, request: pb.GetConnectedAccountRequest, context: Context
    ) -> pb.GetConnectedAccountResponse:
        organization_id = check_organization(request.organization_id)
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            account = await store.find(connection, organization_id)
        return pb.GetConnectedAccountResponse(account=account_to_proto(organization_id, account))

    async def RefreshConnectedAccount(
        self, request: pb.RefreshConnectedAccountRequest, context: Context
    ) -> pb.RefreshConnectedAccountResponse:
        organization_id = check_organization(request.organization_id)
        with processor_errors():
            account = await self._accounts.refresh_organization(organization_id)
        return pb.RefreshConnectedAccountResponse(account=account_to_proto(organization_id, account))

    async def ListConnectedAccounts(
        self, request: pb.ListConnectedAccountsRequest, context: Context
    ) -> pb.ListConnectedAccountsResponse:
        state = state_from_proto(request.state)
        page = Page.parse(
            request.page_size, request.page_token, key_types=(str,), filter={"state": state or ""}
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await store.list_by_organization(connection, state, page)
        shown, token = page.cut(found, lambda one: (one.organization_id,))
        return pb.ListConnectedAccountsResponse(
            accounts=[account_to_proto(one.organization_id, one) for one in shown], next_page_token=token
        )
