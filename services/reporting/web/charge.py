"""The page of one charge: what it was for, how its price came about, and where the money went."""

from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from services.kit.errors import NotFound, TallystickError
from services.reporting.web.backend import answers
from services.reporting.web.site import Site, Subject, Visit
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.reporting.v1 import reporting_service_pb2


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
        return self._site.render(
            visit.request,
            "charge.html",
            status=HTTPStatus.OK,
            visit=visit,
            title=charge_id,
            subject=_own(visit),
            charge_id=charge_id,
            charge=reported.value.charge if reported.value is not None else posted.value.charge,
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
