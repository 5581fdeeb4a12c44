"""CreditService: credits set aside before work is done, over gRPC. One transaction per call."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.clock import Clock
from services.kit.db import Database, retry_transaction
from services.kit.errors import InvalidArgument, TallystickError
from services.kit.money import check_currency
from services.kit.pages import Page
from services.kit.status import to_item_error
from services.kit.tenancy import Tenants, scope, tenants_of
from services.ledger.domain import credits as rules
from services.ledger.domain.credits import GrantedLease, HoldRequest, PlacedHold, ReleasedReservation
from services.ledger.rpc import credits_convert as convert
from services.ledger.store import balances, credits, lots
from tallystick.ledger.v1 import credit_service_pb2 as pb
from tallystick.ledger.v1 import credit_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Wire = TypeVar("Wire", bound=Message)
Item = TypeVar("Item")
Done = TypeVar("Done")

# Entries that a list of lots allocates at most; what is more, the background step has to.
_REFRESH_LIMIT = 1000


class CreditService(credit_service_pb2_grpc.CreditServiceServicer):
    """Leases, holds and the end of reservations.

    `lease_duration` is how long a lease lasts from when it is opened or renewed, `lease_drain` how long one
    that was superseded still pays for what was allocated in it.
    """

    def __init__(
        self,
        writer: Database,
        reader: Database,
        clock: Clock,
        *,
        lease_duration: timedelta,
        lease_drain: timedelta,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._clock = clock
        self._lease_duration = lease_duration
        self._lease_drain = lease_drain

    async def OpenLease(self, request: pb.OpenLeaseRequest, context: Context) -> pb.OpenLeaseResponse:
        customer_id = ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        currency = check_currency(request.currency_code)
        seen_epoch = rules.check_epoch(request.seen_epoch, field="seen_epoch", minimum=rules.NO_LEASE)
        wanted = rules.check_wanted(request.wanted_micros, field="wanted_micros")

        async def attempt() -> tuple[GrantedLease, bool]:
            async with self._writer.hot() as connection:
                return await credits.open_lease(
                    connection,
                    customer_id=customer_id,
                    currency_code=currency,
                    seen_epoch=seen_epoch,
                    wanted=wanted,
                    duration=self._lease_duration,
                    drain=self._lease_drain,
                )

        # Not repeated after a lost connection: it would find its own lease, and take it for somebody else's.
        granted, opened = await retry_transaction(attempt)
        return pb.OpenLeaseResponse(granted=convert.granted_to_proto(granted), opened=opened)

    async def RenewLeases(self, request: pb.RenewLeasesRequest, context: Context) -> pb.RenewLeasesResponse:
        renewals = _items(request.renewals, "renewals", convert.renewal_from_proto, rules.check_renewal)
        rules.check_distinct([(one.customer_id, one.currency_code) for one in request.renewals], "renewals")

        async def renew(items: Sequence[rules.LeaseRenewal]) -> list[GrantedLease | TallystickError | None]:
            async with self._writer.hot() as connection:
                return await credits.renew_leases(connection, items, self._lease_duration)

        response = pb.RenewLeasesResponse()
        for verdict in await _judged(renewals, renew):
            message = response.verdicts.add()
            if isinstance(verdict, TallystickError):
                message.error.CopyFrom(to_item_error(verdict))
            elif verdict is not None:
                message.granted.CopyFrom(convert.granted_to_proto(verdict))
        return response

    async def ReturnLease(self, request: pb.ReturnLeaseRequest, context: Context) -> pb.ReturnLeaseResponse:
        customer_id = ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        currency = check_currency(request.currency_code)
        epoch = rules.check_epoch(request.epoch, field="epoch")
        rules.check_return(request.return_number, request.amount_micros)
        actor = current_principal().api_key_id

        async def attempt() -> GrantedLease:
            async with self._writer.hot() as connection:
                return await credits.return_lease(
                    connection,
                    customer_id=customer_id,
                    currency_code=currency,
                    epoch=epoch,
                    return_number=request.return_number,
                    amount=request.amount_micros,
                    actor_api_key_id=actor,
                )

        granted = await retry_transaction(attempt, idempotent=True)
        return pb.ReturnLeaseResponse(granted=convert.granted_to_proto(granted))

    async def PlaceHolds(self, request: pb.PlaceHoldsRequest, context: Context) -> pb.PlaceHoldsResponse:
        now = self._clock.now()

        def check(item: HoldRequest) -> None:
            rules.check_hold(item, now)

        holds = _items(request.holds, "holds", convert.hold_request_from_proto, check)
        rules.check_distinct([(one.customer_id, one.hold_id) for one in request.holds], "holds")

        async def place(items: Sequence[HoldRequest]) -> list[PlacedHold | TallystickError]:
            async with self._writer.hot() as connection:
                return await credits.place_holds(connection, items)

        return pb.PlaceHoldsResponse(
            verdicts=[
                pb.HoldVerdict(error=to_item_error(verdict))
                if isinstance(verdict, TallystickError)
                else pb.HoldVerdict(placed=convert.placed_to_proto(verdict))
                for verdict in await _judged(holds, place)
            ]
        )

    async def ReleaseReservations(
        self, request: pb.ReleaseReservationsRequest, context: Context
    ) -> pb.ReleaseReservationsResponse:
        releases = _items(request.releases, "releases", convert.release_from_proto, rules.check_release)
        rules.check_distinct([(one.customer_id, one.reservation_id) for one in request.releases], "releases")

        async def release(
            items: Sequence[rules.ReservationRelease],
        ) -> list[ReleasedReservation | TallystickError]:
            async with self._writer.hot() as connection:
                return await credits.release_reservations(connection, items)

        return pb.ReleaseReservationsResponse(
            verdicts=[
                pb.ReleaseVerdict(error=to_item_error(verdict))
                if isinstance(verdict, TallystickError)
                else pb.ReleaseVerdict(released=convert.released_to_proto(verdict))
                for verdict in await _judged(releases, release)
            ]
        )

    async def ListLeases(self, request: pb.ListLeasesRequest, context: Context) -> pb.ListLeasesResponse:
        customer_id = _customer_filter(request.customer_id)
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str, str, int),
            filter={"customer_id": customer_id},
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await credits.list_leases(connection, customer_id, page)
        shown, next_page_token = page.cut(found, lambda one: (one.customer_id, one.currency_code, one.epoch))
        return pb.ListLeasesResponse(
            leases=[convert.lease_to_proto(lease) for lease in shown], next_page_token=next_page_token
        )

    async def ListHolds(self, request: pb.ListHoldsRequest, context: Context) -> pb.ListHoldsResponse:
        customer_id = _customer_filter(request.customer_id)
        purpose = convert.purpose_from_proto(request.purpose, "purpose") if request.purpose else None
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str, str),
            filter={"customer_id": customer_id, "purpose": purpose},
        )
        async with self._reader.begin() as connection:
            await scope(connection, tenants_of(current_principal()))
            found = await credits.list_holds(connection, customer_id, purpose, page)
        shown, next_page_token = page.cut(found, lambda one: (one.customer_id, one.hold_id))
        return pb.ListHoldsResponse(
            holds=[convert.hold_to_proto(hold) for hold in shown], next_page_token=next_page_token
        )

    async def ListCreditLots(
        self, request: pb.ListCreditLotsRequest, context: Context
    ) -> pb.ListCreditLotsResponse:
        customer_id = _customer_filter(request.customer_id)
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str, str, str),
            filter={"customer_id": customer_id, "open_only": str(request.open_only)},
        )
        tenants = tenants_of(current_principal())
        if customer_id and page.after is None:
            await self._refresh_lots(tenants, customer_id)
        async with self._reader.begin() as connection:
            await scope(connection, tenants)
            found = await lots.list_lots(connection, customer_id, request.open_only, page)
        shown, next_page_token = page.cut(found, lambda one: (one.customer_id, one.currency_code, one.lot_id))
        now = self._clock.now()
        return pb.ListCreditLotsResponse(
            lots=[convert.lot_to_proto(lot, now) for lot in shown], next_page_token=next_page_token
        )

    async def _refresh_lots(self, tenants: Tenants, customer_id: str) -> None:
        """Let the lots of a customer that the caller may see be what they are now."""
        async with self._reader.begin() as connection:
            await scope(connection, tenants)
            await balances.check_owner(connection, customer_id)

        async def refresh() -> None:
            async with self._writer.hot() as connection:
                await lots.refresh(connection, customer_id, _REFRESH_LIMIT)

        await retry_transaction(refresh, idempotent=True)


def _items(
    messages: Sequence[Wire], field: str, convert: Callable[[Wire], Item], check: Callable[[Item], None]
) -> list[Item | TallystickError]:
    """The items of a batch, or what is wrong with each. Raises InvalidArgument for none, or too many."""
    if not 1 <= len(messages) <= rules.MAX_ITEMS_PER_CALL:
        raise InvalidArgument.of(field, f"must be one to {rules.MAX_ITEMS_PER_CALL}")
    items: list[Item | TallystickError] = []
    for message in messages:
        try:
            item = convert(message)
            check(item)
        except InvalidArgument as error:
            items.append(error)
        else:
            items.append(item)
    return items


async def _judged(
    items: Sequence[Item | TallystickError],
    judge: Callable[[Sequence[Item]], Awaitable[list[Done | TallystickError]]],
) -> list[Done | TallystickError]:
    """The verdicts on a batch: on the good items those of one transaction, in the order of the request."""
    good = [item for item in items if not isinstance(item, TallystickError)]

    async def attempt() -> list[Done | TallystickError]:
        return await judge(good)

    judged = iter(await retry_transaction(attempt, idempotent=True) if good else [])
    return [item if isinstance(item, TallystickError) else next(judged) for item in items]


def _customer_filter(customer_id: str) -> str:
    return ids.check_id(customer_id, ids.CUSTOMER, field="customer_id") if customer_id else ""
