"""The page of one charge: what it was for, how its price came about, and where the money went."""

from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

from starlette.responses import Response
from starlette.routing import Route

from services.kit.errors import NotFound, TallystickError
from services.kit.runs import ChargeKind, kind_of, subscription_of
from services.reporting.web.backend import answers
from services.reporting.web.site import Site, Subject, Visit
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import charge_pb2, ledger_service_pb2
from tallystick.metering.v1 import charge_line_pb2, period_service_pb2, subscription_service_pb2
from tallystick.reporting.v1 import charge_report_pb2, reporting_service_pb2

AnyCharge: TypeAlias = charge_pb2.Charge | charge_report_pb2.ReportedCharge


class Agreed(NamedTuple):
    """How a charge came about that is for no work."""

    # The name of the price, if lines are of several, and the line.
    lines: list[tuple[str, charge_line_pb2.ChargeLine]]
    # What credit of earlier fees or closings paid.
    from_credit: money_pb2.Money
    # What earlier closings of the period came to.
    closed_before: money_pb2.Money | None = None


class ChargePage:
    """For its customer, for who earns by it, and for operators; each sees what the services tell them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._backend = site.backend

    def routes(self) -> list[Route]:
        """For the application."""
        return [Route("/charges/{charge_id}", self._site.page(self._show), methods=["GET"])]

    async def _show(self, visit: Visit) -> Response:
        charge_id = str(visit.request.path_params["charge_id"])
        found = await answers(
            posted=visit.asker.ask(
                self._backend.ledger.GetCharge, ledger_service_pb2.GetChargeRequest(charge_id=charge_id)
            ),
            corrections=visit.asker.ask(
                self._backend.ledger.ListCorrections,
                ledger_service_pb2.ListCorrectionsRequest(charge_id=charge_id, page_size=1_000),
            ),
            reported=self._reported(visit, charge_id),
        )
        posted, reported = found["posted"], found["reported"]
        if posted.value is None and reported.value is None:
            # Neither knows it, and at least one could not be asked.
            raise posted.error or reported.error or _unknown(charge_id)
        charge = reported.value.charge if reported.value is not None else posted.value.charge
        match kind_of(charge.workflow_id):
            case ChargeKind.SUBSCRIPTION:
                found |= await answers(agreed=self._fee(visit, charge))
            case ChargeKind.PERIOD_CLOSE:
                found |= await answers(agreed=self._closing(visit, charge))
        return self._site.render(
            visit.request,
            "charge.html",
            status=HTTPStatus.OK,
            visit=visit,
            title=charge_id,
            subject=_own(visit),
            charge_id=charge_id,
            charge=charge,
            **found,
        )

    async def _reported(self, visit: Visit, charge_id: str) -> Any:
        """What reporting knows of it; None if it has not read that far, which the ledger tells from a charge
        that does not exist.
        """
        try:
            return await visit.asker.ask(
                self._backend.reporting.GetCharge,
                reporting_service_pb2.GetChargeRequest(charge_id=charge_id),
            )
        except NotFound:
            return None

    async def _fee(self, visit: Visit, charge: AnyCharge) -> Agreed | None:
        """How the fee of a subscription came about, as metering tells; None if it knows no such fee."""
        request = subscription_service_pb2.ListSubscriptionFeesRequest(
            subscription_id=subscription_of(charge.workflow_id),
            workflow_id=charge.workflow_id,
            page_size=1_000,
        )
        try:
            listed = await visit.asker.ask(self._backend.subscriptions.ListSubscriptionFees, request)
        except NotFound:
            return None
        for fee in listed.fees:
            if fee.charge_id == charge.charge_id:
                return Agreed([("", line) for line in fee.lines], fee.from_credit)
        return None

    async def _closing(self, visit: Visit, charge: AnyCharge) -> Agreed | None:
        """The same of what closing a billing period charged."""
        request = period_service_pb2.ListPeriodClosingsRequest(
            customer_id=charge.customer_id, workflow_id=charge.workflow_id, page_size=1_000
        )
        listed = await visit.asker.ask(self._backend.periods.ListPeriodClosings, request)
        for one in listed.period_closings:
            if one.charge_id == charge.charge_id:
                lines = [(price.price_name, line) for price in one.prices for line in price.lines]
                return Agreed(lines, one.from_credit, one.closed_before)
        return None


def _own(visit: Visit) -> Subject | None:
    """Whose pages the head of the page leads to: the reader's own. Operators have none."""
    principal = visit.principal
    if principal.organization_id is not None:
        return Subject("organization", principal.organization_id, principal.organization_id)
    if principal.customer_id is not None:
        return Subject("customer", principal.customer_id, principal.customer_id)
    return None


def _unknown(charge_id: str) -> TallystickError:
    return NotFound(f"there is no charge {charge_id}", reason="CHARGE_NOT_FOUND")
