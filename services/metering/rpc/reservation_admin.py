"""ReservationService: what operators see of reservations, and how they have drift explained and repaired."""

from typing import Any, Final

import grpc

from services.kit import ids
from services.kit.errors import FieldViolation, InvalidArgument, Unavailable
from services.kit.money import check_currency
from services.kit.pages import Page
from services.metering.domain.price_index import DEFAULT_CURRENCY
from services.metering.domain.reservation_token import from_microseconds, microseconds
from services.metering.reconciler import Drift, DriftKind, Reconciler
from services.metering.rpc.convert import money_to_proto, time_to_proto
from services.metering.rpc.leases import lease_key
from services.metering.store.pools import OpenReservation, PoolKey, Pools
from tallystick.metering.v1 import (
    reservation_pb2,
    reservation_service_pb2,
    reservation_service_pb2_grpc,
)

_KINDS: Final = {
    kind: reservation_service_pb2.DriftKind.Value(f"DRIFT_KIND_{kind.name}") for kind in DriftKind
}
Context = grpc.aio.ServicerContext[Any, Any]


class ReservationService(reservation_service_pb2_grpc.ReservationServiceServicer):
    """Serves ReservationService. Without Redis there is nothing that it could show."""

    def __init__(self, *, pools: Pools | None, reconciler: Reconciler | None) -> None:
        self._pools = pools
        self._reconciler = reconciler

    async def ListReservations(
        self, request: reservation_service_pb2.ListReservationsRequest, context: Context
    ) -> reservation_service_pb2.ListReservationsResponse:
        customer_id = ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        currency_code = check_currency(request.currency_code or DEFAULT_CURRENCY)
        page = Page.parse(
            request.page_size,
            request.page_token,
            # The time is longer than the numbers of a keyset.
            key_types=(str, str),
            filter={"customer_id": customer_id, "currency_code": currency_code},
        )
        key = lease_key(customer_id, currency_code)
        if self._pools is None:
            raise _no_redis()
        found = await self._pools.list_reservations(key, after=_after(page), limit=page.limit)
        rows, next_page_token = page.cut(
            found, lambda row: (str(microseconds(row.expire_time)), row.reservation_id)
        )
        return reservation_service_pb2.ListReservationsResponse(
            reservations=[_reservation(key, row) for row in rows], next_page_token=next_page_token
        )

    async def Reconcile(
        self, request: reservation_service_pb2.ReconcileRequest, context: Context
    ) -> reservation_service_pb2.ReconcileResponse:
        if request.customer_id:
            ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        if self._reconciler is None:
            raise _no_redis()
        found = await self._reconciler.run(customer_id=request.customer_id, dry_run=request.dry_run)
        return reservation_service_pb2.ReconcileResponse(
            drifts=map(_drift, found.drifts),
            compared_leases=found.compared_leases,
            compared_budgets=found.compared_budgets,
        )


def _after(page: Page) -> OpenReservation | None:
    if page.after is None:
        return None
    time, reservation_id = page.after
    try:
        return OpenReservation(str(reservation_id), 0, from_microseconds(int(time)))
    except (ValueError, OverflowError):
        # As Page.parse does with what it can tell to be forged.
        raise InvalidArgument(
            "page_token is damaged",
            reason="INVALID_PAGE_TOKEN",
            field_violations=[FieldViolation("page_token", "is damaged")],
        ) from None


def _reservation(key: PoolKey, row: OpenReservation) -> reservation_pb2.Reservation:
    return reservation_pb2.Reservation(
        reservation_id=row.reservation_id,
        customer_id=key.tag,
        amount=money_to_proto(key.name, row.amount),
        expire_time=time_to_proto(row.expire_time),
        kind=reservation_pb2.RESERVATION_KIND_LEASED,
    )


def _drift(drift: Drift) -> reservation_service_pb2.Drift:
    return reservation_service_pb2.Drift(
        kind=_KINDS[drift.kind],
        customer_id=drift.customer_id,
        budget_id=drift.budget_id,
        expected=money_to_proto(drift.currency_code, drift.expected),
        found=money_to_proto(drift.currency_code, drift.found),
        explanation=drift.explanation,
        repaired=drift.repaired,
    )


def _no_redis() -> Unavailable:
    return Unavailable("metering runs without Redis: every reservation is a hold, which the ledger lists")
