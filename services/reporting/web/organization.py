"""Pages of an organization: what it earned, and how it is paid."""

import secrets
from collections.abc import Awaitable, Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from services.kit.auth import Role
from services.kit.errors import NotFound, PermissionDenied, TallystickError, Unauthenticated
from services.kit.money import MINOR_UNIT_DIGITS
from services.reporting.web import words
from services.reporting.web.backend import Answer, answers
from services.reporting.web.common import currencies, leads_away, page_status
from services.reporting.web.forms import FormError, parse_amount, type_amount
from services.reporting.web.periods import CHOICES, chosen, period
from services.reporting.web.rendering import path
from services.reporting.web.site import Site, Subject, Visit
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, directory_service_pb2, ledger_service_pb2
from tallystick.payouts.v1 import connect_service_pb2, payout_service_pb2
from tallystick.reporting.v1 import reporting_service_pb2, revenue_pb2

_TOP: Final = 10
_SERIES: Final = 10
_LATEST_PAYOUTS: Final = 3
_PAYOUTS: Final = 20
_CHARGES: Final = 50
_MONTHS: Final = 12
_AGENTS: Final = 1_000


class OrganizationPages:
    """For its owners and billing admins, and for operators; members learn that money is not theirs to see."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._backend = site.backend

    def routes(self) -> list[Route]:
        """For the application."""
        base = "/organizations/{organization_id}"
        return [
            Route(base, self._site.page(self._overview), methods=["GET"]),
            Route(f"{base}/payouts", self._site.page(self._payouts), methods=["GET"]),
            Route(f"{base}/payouts", self._site.form(self._request_payout), methods=["POST"]),
            Route(f"{base}/onboarding", self._site.form(self._onboard), methods=["POST"]),
            Route(f"{base}/onboarding", self._site.page(self._to_payouts), methods=["GET"]),
            Route(f"{base}/charges", self._site.page(self._charges), methods=["GET"]),
        ]

    async def _overview(self, visit: Visit) -> Response:
        if visit.principal.role is Role.MEMBER:
            return await self._without_money(visit)
        organization_id, currency, choice = _organization_id(visit), visit.currency(), chosen(visit)
        time = period(visit, choice)
        ask, reporting = visit.asker.ask, self._backend.reporting
        found = await answers(
            organization=self._organization(visit),
            summary=ask(
                reporting.GetRevenueSummary,
                reporting_service_pb2.GetRevenueSummaryRequest(
                    organization_id=organization_id,
                    currency_code=currency,
                    time_zone=visit.session.time_zone,
                    month_count=_MONTHS,
                ),
            ),
            series=ask(
                reporting.GetRevenueSeries,
                reporting_service_pb2.GetRevenueSeriesRequest(
                    organization_id=organization_id,
                    currency_code=currency,
                    period=time,
                    interval=choice.interval,
                ),
            ),
            by_agent=ask(
                reporting.GetRevenueSeries,
                reporting_service_pb2.GetRevenueSeriesRequest(
                    organization_id=organization_id,
                    currency_code=currency,
                    period=time,
                    interval=choice.interval,
                    grouping=revenue_pb2.REVENUE_GROUPING_AGENT,
                    series_limit=_SERIES,
                ),
            ),
            agents=ask(
                reporting.ListTopAgents,
                reporting_service_pb2.ListTopAgentsRequest(
                    organization_id=organization_id, currency_code=currency, period=time, limit=_TOP
                ),
            ),
            customers=ask(
                reporting.ListTopCustomers,
                reporting_service_pb2.ListTopCustomersRequest(
                    organization_id=organization_id, currency_code=currency, period=time, limit=_TOP
                ),
            ),
            payouts=ask(
                reporting.ListPayoutHistory,
                reporting_service_pb2.ListPayoutHistoryRequest(
                    organization_id=organization_id, page_size=_LATEST_PAYOUTS
                ),
            ),
            known_agents=self._agents(visit),
            accounts=self._accounts(visit),
        )
        agents = found["known_agents"]
        names = {one.agent_id: one.display_name for one in agents.value.agents} if agents.ok else {}
        sparks = (
            {one.key: one for one in found["by_agent"].value.series if not one.others}
            if found["by_agent"].ok
            else {}
        )
        return self._site.render(
            visit.request,
            "organization.html",
            status=page_status(found),
            visit=visit,
            subject=_subject(visit, found),
            title=_title(visit, found),
            currency=currency,
            currencies=currencies(found["accounts"], currency),
            choice=choice,
            choices=CHOICES,
            names=names,
            sparks=sparks,
            **found,
        )

    async def _without_money(self, visit: Visit) -> Response:
        found = await answers(organization=self._organization(visit), known_agents=self._agents(visit))
        return self._site.render(
            visit.request,
            "member.html",
            status=page_status(found),
            visit=visit,
            subject=_subject(visit, found),
            title=_title(visit, found),
            **found,
        )

    async def _charges(self, visit: Visit) -> Response:
        organization_id = _organization_id(visit)
        found = await answers(
            organization=self._organization(visit),
            charges=visit.asker.ask(
                self._backend.reporting.ListCharges,
                reporting_service_pb2.ListChargesRequest(
                    organization_id=organization_id,
                    page_size=_CHARGES,
                    page_token=visit.request.query_params.get("page", ""),
                ),
            ),
        )
        return self._site.render(
            visit.request,
            "charges.html",
            status=page_status(found),
            visit=visit,
            subject=_subject(visit, found),
            title="Charges",
            **found,
        )

    async def _payouts(self, visit: Visit) -> Response:
        return await self._payouts_page(visit, currency=visit.currency())

    async def _request_payout(self, visit: Visit, fields: Mapping[str, str]) -> Response:
        organization_id = _organization_id(visit)
        currency, typed = fields.get("currency", ""), fields.get("amount", "")
        key = fields.get("request", "")
        if currency not in MINOR_UNIT_DIGITS:
            raise NotFound("there is no such currency", reason="INVALID_FIELD")
        try:
            micros = parse_amount(typed, currency)
        except FormError as error:
            return await self._payouts_page(
                visit, currency=currency, typed=typed, problem=str(error), status=HTTPStatus.BAD_REQUEST
            )
        request = payout_service_pb2.RequestPayoutRequest(
            organization_id=organization_id,
            amount=money_pb2.Money(currency_code=currency, amount_micros=micros),
            idempotency_key=key,
        )
        try:
            response = await visit.asker.tell(self._backend.payouts.RequestPayout, request)
        except (Unauthenticated, PermissionDenied, NotFound):
            raise
        except TallystickError as error:
            # The same key again while it is open what became of it, so that it is paid once; a new one
            # otherwise, since a refusal is final for its key.
            undecided = words.is_undecided(error)
            return await self._payouts_page(
                visit,
                currency=currency,
                typed=typed,
                problem=words.explain(error),
                key=key if undecided else "",
                status=HTTPStatus.SERVICE_UNAVAILABLE if undecided else HTTPStatus.CONFLICT,
            )
        # A reload of the page that follows asks for nothing.
        address = (
            f"/organizations/{path(organization_id)}/payouts?requested={path(response.payout.payout_id)}"
        )
        return RedirectResponse(f"{address}&currency={currency}", HTTPStatus.SEE_OTHER)

    async def _payouts_page(
        self,
        visit: Visit,
        *,
        currency: str,
        typed: str = "",
        problem: str = "",
        key: str = "",
        status: int = 200,
    ) -> Response:
        organization_id = _organization_id(visit)
        ask = visit.asker.ask
        found = await answers(
            organization=self._organization(visit),
            balance=ask(
                self._backend.ledger.GetEarningsBalance,
                ledger_service_pb2.GetEarningsBalanceRequest(
                    organization_id=organization_id, currency_code=currency
                ),
            ),
            account=ask(
                self._backend.connect.GetConnectedAccount,
                connect_service_pb2.GetConnectedAccountRequest(organization_id=organization_id),
            ),
            payouts=ask(
                self._backend.reporting.ListPayoutHistory,
                reporting_service_pb2.ListPayoutHistoryRequest(
                    organization_id=organization_id,
                    page_size=_PAYOUTS,
                    page_token=visit.request.query_params.get("page", ""),
                ),
            ),
            accounts=self._accounts(visit),
        )
        available = found["balance"].value.balance.available.amount_micros if found["balance"].ok else 0
        return self._site.render(
            visit.request,
            "payouts.html",
            status=status if problem else page_status(found),
            visit=visit,
            subject=_subject(visit, found),
            title="Payouts",
            currency=currency,
            currencies=currencies(found["accounts"], currency),
            problem=problem,
            typed=typed or type_amount(available, currency),
            key=key or f"dashboard-{secrets.token_urlsafe(18)}",
            requested=visit.request.query_params.get("requested", ""),
            transit=_in_transit(found["accounts"], currency),
            **found,
        )

    async def _onboard(self, visit: Visit, _: Mapping[str, str]) -> Response:
        organization_id = _organization_id(visit)
        try:
            response = await visit.asker.tell(
                self._backend.connect.CreateOnboardingLink,
                connect_service_pb2.CreateOnboardingLinkRequest(organization_id=organization_id),
            )
        except (Unauthenticated, PermissionDenied, NotFound):
            raise
        except TallystickError as error:
            undecided = words.is_undecided(error)
            return await self._payouts_page(
                visit,
                currency=visit.currency(),
                problem="The payment processor did not answer. Please try again in a moment."
                if undecided
                else words.explain(error),
                status=HTTPStatus.SERVICE_UNAVAILABLE if undecided else HTTPStatus.CONFLICT,
            )
        return self._site.render(
            visit.request,
            "leave.html",
            visit=visit,
            title="To the payment processor",
            address=leads_away(response.url),
            text="You are taken to the payment processor, which asks who you are and where your money goes.",
            go="Go on to the payment processor",
            back=f"/organizations/{path(organization_id)}/payouts",
        )

    async def _to_payouts(self, visit: Visit) -> Response:
        """For who reloads a page that a form has led to."""
        address = f"/organizations/{path(_organization_id(visit))}/payouts"
        return RedirectResponse(address, HTTPStatus.SEE_OTHER)

    def _organization(self, visit: Visit) -> Awaitable[Any]:
        return visit.asker.ask(
            self._backend.directory.GetOrganization,
            directory_service_pb2.GetOrganizationRequest(organization_id=_organization_id(visit)),
        )

    def _agents(self, visit: Visit) -> Awaitable[Any]:
        return visit.asker.ask(
            self._backend.directory.ListAgents,
            directory_service_pb2.ListAgentsRequest(
                organization_id=_organization_id(visit), page_size=_AGENTS
            ),
        )

    def _accounts(self, visit: Visit) -> Awaitable[Any]:
        return visit.asker.ask(
            self._backend.ledger.ListAccounts,
            ledger_service_pb2.ListAccountsRequest(owner_id=_organization_id(visit), page_size=1_000),
        )


def _organization_id(visit: Visit) -> str:
    return str(visit.request.path_params["organization_id"])


def _subject(visit: Visit, found: Mapping[str, Any]) -> Subject:
    organization_id = _organization_id(visit)
    name = found["organization"].value.organization.display_name if found["organization"].ok else ""
    return Subject("organization", organization_id, name or organization_id)


def _title(visit: Visit, found: Mapping[str, Any]) -> str:
    return _subject(visit, found).name


def _in_transit(accounts: Answer, currency: str) -> money_pb2.Money:
    """What payouts under way have taken; zero if there is no such account, or none could be asked for."""
    for one in accounts.value.accounts if accounts.value is not None else ():
        if (
            one.account.kind == account_pb2.ACCOUNT_KIND_PAYOUTS_IN_TRANSIT
            and one.account.currency_code == currency
        ):
            balance: money_pb2.Money = one.balance
            return balance
    return money_pb2.Money(currency_code=currency)
