"""Pages of the operator: whether everything runs and adds up, and charges as they come."""

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from services.kit.auth import Role
from services.kit.errors import PermissionDenied, TallystickError
from services.kit.ids import CHARGE, CUSTOMER, ORGANIZATION
from services.reporting.web.backend import Answer, answers
from services.reporting.web.rendering import path
from services.reporting.web.site import Site, Visit
from services.reporting.web.words import explain
from tallystick.ledger.v1 import (
    audit_service_pb2,
    directory_service_pb2,
    ledger_service_pb2,
    transaction_pb2,
)
from tallystick.payouts.v1 import reconciliation_service_pb2
from tallystick.reporting.v1 import projection_service_pb2

# How far back the journal is read for the newest charges, and how many of them are shown.
_WINDOW: Final = 400
_SHOWN: Final = 15
_LISTED: Final = 20
_PAGES: Final = {ORGANIZATION: "organizations", CUSTOMER: "customers", CHARGE: "charges"}


@dataclass(frozen=True, slots=True)
class Live:
    """The newest charges of the journal, the newest first, as of its last position."""

    position: int = 0
    charges: list[ledger_service_pb2.SequencedTransaction] = field(default_factory=list)


class OperatorPages:
    """For operators only: others are answered as the services answer them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._backend = site.backend

    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route("/operator", self._site.page(self._overview), methods=["GET"]),
            Route("/operator/charges", self._site.page(self._live), methods=["GET"]),
            Route("/operator/go", self._site.page(self._go), methods=["GET"]),
            Route("/operator/reconciliation", self._site.form(self._reconcile), methods=["POST"]),
            Route("/operator/reconciliation", self._site.page(self._back), methods=["GET"]),
            Route("/operator/audit", self._site.form(self._begin_audit), methods=["POST"]),
            Route("/operator/audit", self._site.page(self._audited), methods=["GET"]),
        ]

    async def _overview(self, visit: Visit) -> Response:
        return await self._page(visit)

    async def _page(
        self,
        visit: Visit,
        *,
        reconciled: Answer | None = None,
        problem: str = "",
        audit_problem: str = "",
        status: int = HTTPStatus.OK,
    ) -> Response:
        _only_operators(visit)
        ask = visit.asker.ask
        found = await answers(
            health=self._backend.health(),
            projections=ask(
                self._backend.projections.ListProjections, projection_service_pb2.ListProjectionsRequest()
            ),
            live=self._newest(visit),
            audited=ask(self._backend.audits.GetLatestAudit, audit_service_pb2.GetLatestAuditRequest()),
            organizations=ask(
                self._backend.directory.ListOrganizations,
                directory_service_pb2.ListOrganizationsRequest(page_size=_LISTED),
            ),
            customers=ask(
                self._backend.directory.ListCustomers,
                directory_service_pb2.ListCustomersRequest(page_size=_LISTED),
            ),
        )
        return self._site.render(
            visit.request,
            "operator.html",
            status=status,
            visit=visit,
            title="Platform",
            reconciled=reconciled,
            problem=problem,
            audit_problem=audit_problem,
            **found,
        )

    async def _live(self, visit: Visit) -> Response:
        """The charges alone, for a page that asks again and again; 204 while there is nothing new."""
        _only_operators(visit)
        try:
            live = await self._newest(visit)
        except TallystickError as error:
            return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE, headers={"X-Reason": error.reason})
        if visit.request.query_params.get("after") == str(live.position):
            return Response(status_code=HTTPStatus.NO_CONTENT)
        return self._site.render(visit.request, "live_fragment.html", visit=visit, live=live, update=True)

    async def _newest(self, visit: Visit) -> Live:
        """The newest charges. The first message of the journal says where it ends."""
        head, log_id = await self._head(visit)
        request = ledger_service_pb2.ReadJournalRequest(
            after_position=max(0, head - _WINDOW),
            log_id=log_id,
            types=[transaction_pb2.TRANSACTION_TYPE_CHARGE],
            batch_size=_WINDOW,
            include_charges=True,
        )
        found: list[ledger_service_pb2.SequencedTransaction] = []
        async with aclosing(visit.asker.stream(self._backend.ledger.ReadJournal, request)) as batches:
            async for batch in batches:
                found = [*found, *batch.transactions][-_SHOWN:]
                if batch.last_position >= head:
                    # What came meanwhile is for the next time; the journal may grow faster than it is read.
                    head = batch.last_position
                    break
        return Live(head, found[::-1])

    async def _head(self, visit: Visit) -> tuple[int, str]:
        request = ledger_service_pb2.ReadJournalRequest(batch_size=1)
        async with aclosing(visit.asker.stream(self._backend.ledger.ReadJournal, request)) as batches:
            async for batch in batches:
                return batch.head_position, batch.log_id
        return 0, ""

    async def _go(self, visit: Visit) -> Response:
        """From an id to its page."""
        wanted = visit.request.query_params.get("id", "").strip()
        folder = _PAGES.get(wanted.partition("_")[0])
        if folder is None:
            return await self._page(
                visit,
                problem="Ids of organizations begin with org_, of customers with cus_, of charges with ch_.",
                status=HTTPStatus.NOT_FOUND,
            )
        return RedirectResponse(f"/{folder}/{path(wanted)}", HTTPStatus.SEE_OTHER)

    async def _back(self, _: Visit) -> Response:
        """For who reloads a page that a form has led to."""
        return RedirectResponse("/operator", HTTPStatus.SEE_OTHER)

    async def _reconcile(self, visit: Visit, _: Mapping[str, str]) -> Response:
        _only_operators(visit)
        try:
            compared = await visit.asker.tell(
                self._backend.reconciliation.Reconcile, reconciliation_service_pb2.ReconcileRequest()
            )
        except TallystickError as error:
            return await self._page(visit, reconciled=Answer(None, error))
        return await self._page(visit, reconciled=Answer(compared))

    async def _begin_audit(self, visit: Visit, _: Mapping[str, str]) -> Response:
        """Begin an audit, which goes on in the ledger; the page then shows how far it is."""
        _only_operators(visit)
        try:
            await visit.asker.tell(self._backend.audits.StartAudit, audit_service_pb2.StartAuditRequest())
        except TallystickError as error:
            # One that runs already is as good.
            if error.reason != "AUDIT_IN_PROGRESS":
                return await self._page(visit, audit_problem=explain(error))
        return RedirectResponse("/operator#audit", HTTPStatus.SEE_OTHER)

    async def _audited(self, visit: Visit) -> Response:
        """The last audit and the one that runs, for a page that asks again until none does."""
        _only_operators(visit)
        if not visit.request.headers.get("hx-request"):
            return await self._back(visit)
        try:
            found = await visit.asker.ask(
                self._backend.audits.GetLatestAudit, audit_service_pb2.GetLatestAuditRequest()
            )
        except TallystickError as error:
            return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE, headers={"X-Reason": error.reason})
        return self._site.render(
            visit.request,
            "audit_fragment.html",
            visit=visit,
            audit=found.audit if found.HasField("audit") else None,
            running=found.running if found.HasField("running") else None,
        )


def _only_operators(visit: Visit) -> None:
    # The services would say so too; this spares asking them.
    if visit.principal.role is not Role.OPERATOR:
        raise PermissionDenied("only operators may see this")
