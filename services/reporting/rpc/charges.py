"""Charges with the usage that they are for: RPCs about charges."""

import dataclasses
from datetime import UTC, datetime
from typing import Final

from services.kit import ids
from services.kit.errors import NotFound
from services.kit.money import check_currency
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, scope
from services.kit.times import time_from_page_key
from services.reporting.domain.charge import Charge
from services.reporting.domain.owner import Owner, OwnerKind
from services.reporting.rpc.access import caller_as_owner, owner_of, tenants_of_owner
from services.reporting.rpc.charge_convert import charge_to_proto
from services.reporting.rpc.convert import as_of_to_proto, period_from_proto, says_nothing
from services.reporting.rpc.reporting_base import Context, ReportingBase
from services.reporting.store import charges
from services.reporting.store.charges import ChargeFilter
from services.reporting.store.snapshots import Snapshot
from services.reporting.store.spans import Span
from tallystick.reporting.v1 import reporting_service_pb2 as pb

# Before and after any work.
_ALWAYS: Final[Span] = (datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))


class ChargeRpcs(ReportingBase):
    """Lists of charges, and single ones."""

    async def ListCharges(self, request: pb.ListChargesRequest, context: Context) -> pb.ListChargesResponse:
        owner = owner_of(request)
        period = period_from_proto(request.period, self._clock)
        wanted = ChargeFilter(
            owner=owner,
            span=_ALWAYS if says_nothing(request.period) else (period.start, period.end),
            currency_code=check_currency(request.currency_code) if request.currency_code else "",
            agent_id=ids.check_id(request.agent_id, ids.AGENT, field="agent_id") if request.agent_id else "",
        )
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str, str),
            # The period as it was asked for: "30d" goes on, and is the same list.
            filter={
                "owner_id": owner.id,
                "period": request.period.SerializeToString(deterministic=True).hex(),
                "currency_code": wanted.currency_code,
                "agent_id": wanted.agent_id,
            },
        )
        before = None if page.after is None else (time_from_page_key(page.after[0]), str(page.after[1]))
        async with self._snapshot(tenants_of_owner(owner)) as snapshot:
            found = await charges.list_newest(
                snapshot.connection, snapshot.projection_id, wanted, before, page.limit
            )
        shown, token = page.cut(found, lambda one: (one.occur_time.isoformat(), one.charge_id))
        return pb.ListChargesResponse(
            charges=map(charge_to_proto, shown),
            next_page_token=token,
            as_of=as_of_to_proto(snapshot.known),
        )

    async def GetCharge(self, request: pb.GetChargeRequest, context: Context) -> pb.GetChargeResponse:
        charge_id = ids.check_id(request.charge_id, ids.CHARGE, field="charge_id")
        owner = caller_as_owner()
        async with self._snapshot(PLATFORM if owner is None else tenants_of_owner(owner)) as snapshot:
            if owner is None:
                charge = await _find_for_platform(snapshot, charge_id)
            else:
                charge = await _find(snapshot, owner, charge_id)
        if charge is None:
            raise NotFound(
                "there is no such charge", reason="CHARGE_NOT_FOUND", metadata={"charge_id": charge_id}
            )
        return pb.GetChargeResponse(charge=charge_to_proto(charge), as_of=as_of_to_proto(snapshot.known))


async def _find_for_platform(snapshot: Snapshot, charge_id: str) -> Charge | None:
    """The whole charge, as its payer sees it, with the agent of its first payee."""
    payer = await charges.find_payer(snapshot.connection, snapshot.projection_id, charge_id)
    if payer is None:
        return None
    customer_id, agent_id = payer
    owner = Owner(OwnerKind.CUSTOMER, customer_id)
    await scope(snapshot.connection, tenants_of_owner(owner))
    charge = await _find(snapshot, owner, charge_id)
    return None if charge is None else dataclasses.replace(charge, agent_id=charge.agent_id or agent_id)


async def _find(snapshot: Snapshot, owner: Owner, charge_id: str) -> Charge | None:
    wanted = ChargeFilter(owner=owner, span=_ALWAYS, charge_id=charge_id)
    found = await charges.list_newest(snapshot.connection, snapshot.projection_id, wanted, None, 1)
    return found[0] if found else None
