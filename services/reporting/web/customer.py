"""Pages of a customer: what it has, what it used, what it was charged, and how it buys credits."""

import secrets
from collections.abc import Awaitable, Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from services.kit.errors import NotFound, PermissionDenied, TallystickError, Unauthenticated
from services.kit.money import MINOR_UNIT_DIGITS
from services.reporting.web import words
from services.reporting.web.backend import answers
from services.reporting.web.common import currencies, leads_away, page_status
from services.reporting.web.forms import FormError, parse_amount
from services.reporting.web.periods import CHOICES, chosen, period
from services.reporting.web.rendering import path
from services.reporting.web.site import Site, Subject, Visit
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import directory_service_pb2, ledger_service_pb2
from tallystick.metering.v1 import metering_service_pb2, subscription_service_pb2
from tallystick.payouts.v1 import payment_service_pb2, purchase_pb2
from tallystick.reporting.v1 import reporting_service_pb2, usage_report_pb2

_LATEST_CHARGES: Final = 8
_CHARGES: Final = 50
_PURCHASES: Final = 20
_SUBSCRIPTIONS: Final = 100


class CustomerPages:
    """For the customer itself, and for operators."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._backend = site.backend

    def routes(self) -> list[Route]:
        """For the application."""
        base = "/customers/{customer_id}"
        return [
            Route(base, self._site.page(self._overview), methods=["GET"]),
            Route(f"{base}/charges", self._site.page(self._charges), methods=["GET"]),
            Route(f"{base}/credits", self._site.page(self._credits), methods=["GET"]),
            Route(f"{base}/credits", self._site.form(self._buy), methods=["POST"]),
        ]

    async def _overview(self, visit: Visit) -> Response:
        customer_id, currency, choice = _customer_id(visit), visit.currency(), chosen(visit)
        ask, reporting = visit.asker.ask, self._backend.reporting
        found = await answers(
            customer=self._customer(visit),
            balance=self._balance(visit, currency),
            usage=ask(
                reporting.GetUsage,
                reporting_service_pb2.GetUsageRequest(
                    customer_id=customer_id,
                    currency_code=currency,
                    period=period(visit, choice),
                    grouping=usage_report_pb2.USAGE_GROUPING_AGENT,
                    include_series=True,
                    interval=choice.interval,
                ),
            ),
            charges=ask(
                reporting.ListCharges,
                reporting_service_pb2.ListChargesRequest(customer_id=customer_id, page_size=_LATEST_CHARGES),
            ),
            subscriptions=ask(
                self._backend.subscriptions.ListSubscriptions,
                subscription_service_pb2.ListSubscriptionsRequest(
                    customer_id=customer_id, page_size=_SUBSCRIPTIONS
                ),
            ),
            accounts=self._accounts(visit),
        )
        return self._site.render(
            visit.request,
            "customer.html",
            status=page_status(found),
            visit=visit,
            subject=_subject(visit),
            title=customer_id,
            currency=currency,
            currencies=currencies(found["accounts"], currency),
            choice=choice,
            choices=CHOICES,
            **found,
        )

    async def _charges(self, visit: Visit) -> Response:
        found = await answers(
            customer=self._customer(visit),
            charges=visit.asker.ask(
                self._backend.reporting.ListCharges,
                reporting_service_pb2.ListChargesRequest(
                    customer_id=_customer_id(visit),
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
            subject=_subject(visit),
            title="Charges",
            **found,
        )

    async def _credits(self, visit: Visit) -> Response:
        return await self._credits_page(visit, currency=visit.currency())

    async def _buy(self, visit: Visit, fields: Mapping[str, str]) -> Response:
        customer_id = _customer_id(visit)
        # An operator could, with the customer's card. That is not what this page is for.
        if not visit.is_customer:
            raise PermissionDenied("only the customer buys here")
        currency, typed = fields.get("currency", ""), fields.get("amount", "")
        key, method = fields.get("request", ""), fields.get("payment_method", "")
        if currency not in MINOR_UNIT_DIGITS:
            raise NotFound("there is no such currency", reason="INVALID_FIELD")
        try:
            micros = parse_amount(typed, currency)
        except FormError as error:
            return await self._credits_page(
                visit, currency=currency, typed=typed, problem=str(error), status=HTTPStatus.BAD_REQUEST
            )
        request = payment_service_pb2.PurchaseCreditsRequest(
            customer_id=customer_id,
            amount=money_pb2.Money(currency_code=currency, amount_micros=micros),
            payment_method_id=method,
            idempotency_key=key,
        )
        try:
            response = await visit.asker.tell(self._backend.payments.PurchaseCredits, request)
        except (Unauthenticated, PermissionDenied):
            raise
        except TallystickError as error:
            if error.reason == "CUSTOMER_NOT_FOUND":
                raise
            undecided = words.is_undecided(error)
            return await self._credits_page(
                visit,
                currency=currency,
                typed=typed,
                problem=words.explain(error),
                key=key if undecided else "",
                status=HTTPStatus.SERVICE_UNAVAILABLE if undecided else HTTPStatus.CONFLICT,
            )
        back = f"/customers/{path(customer_id)}/credits?bought={path(response.purchase.purchase_id)}"
        if response.purchase.state == purchase_pb2.PURCHASE_STATE_REQUIRES_ACTION and response.action_url:
            return self._site.render(
                visit.request,
                "confirm.html",
                visit=visit,
                subject=_subject(visit),
                title="Your bank wants you to confirm",
                address=leads_away(response.action_url),
                purchase=response.purchase,
                back=back,
            )
        return RedirectResponse(f"{back}&currency={currency}", HTTPStatus.SEE_OTHER)

    async def _credits_page(
        self,
        visit: Visit,
        *,
        currency: str,
        typed: str = "",
        problem: str = "",
        key: str = "",
        status: int = 200,
    ) -> Response:
        customer_id = _customer_id(visit)
        found = await answers(
            customer=self._customer(visit),
            balance=self._balance(visit, currency),
            methods=visit.asker.ask(
                self._backend.payments.ListPaymentMethods,
                payment_service_pb2.ListPaymentMethodsRequest(customer_id=customer_id),
            ),
            purchases=visit.asker.ask(
                self._backend.payments.ListPurchases,
                payment_service_pb2.ListPurchasesRequest(
                    customer_id=customer_id,
                    page_size=_PURCHASES,
                    page_token=visit.request.query_params.get("page", ""),
                ),
            ),
            accounts=self._accounts(visit),
        )
        return self._site.render(
            visit.request,
            "credits.html",
            status=status if problem else page_status(found),
            visit=visit,
            subject=_subject(visit),
            title="Credits",
            currency=currency,
            currencies=currencies(found["accounts"], currency),
            problem=problem,
            typed=typed,
            key=key or f"dashboard-{secrets.token_urlsafe(18)}",
            bought=visit.request.query_params.get("bought", ""),
            **found,
        )

    def _customer(self, visit: Visit) -> Awaitable[Any]:
        return visit.asker.ask(
            self._backend.directory.GetCustomer,
            directory_service_pb2.GetCustomerRequest(customer_id=_customer_id(visit)),
        )

    def _balance(self, visit: Visit, currency: str) -> Awaitable[Any]:
        return visit.asker.ask(
            self._backend.metering.GetBalance,
            metering_service_pb2.GetBalanceRequest(customer_id=_customer_id(visit), currency_code=currency),
        )

    def _accounts(self, visit: Visit) -> Awaitable[Any]:
        return visit.asker.ask(
            self._backend.ledger.ListAccounts,
            ledger_service_pb2.ListAccountsRequest(owner_id=_customer_id(visit), page_size=1_000),
        )


def _customer_id(visit: Visit) -> str:
    return str(visit.request.path_params["customer_id"])


def _subject(visit: Visit) -> Subject:
    customer_id = _customer_id(visit)
    return Subject("customer", customer_id, customer_id)
